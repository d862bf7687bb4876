"""The hosts of a fleet, as the inventory describes them: values only, loading is elsewhere.

`Host` and `Inventory` are what everything else uses: groups and defaults are folded in. `InventoryFile` is
the shape that a user writes; `orchestrator.loading.inventory` folds the one into the other.
"""

from __future__ import annotations

import base64
import binascii
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from orchestrator.domain.power import Power
from orchestrator.domain.values import NAME_PATTERN, Invalid, Text
from orchestrator.domain.values import Value as Value

# A name that a selector gives a meaning to.
ALL = "all"

# RFC 4253 section 6.6, RFC 5656 section 3.1, RFC 8709 section 4, OpenSSH PROTOCOL.u2f section 3.
_KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


class ProbeKind(StrEnum):
    """How the outage prober asks whether the host answers; a bare connect is never an answer."""

    BANNER = "banner"  # any line that the service sends by itself after the connect
    HTTP = "http"  # any HTTP status line
    SSH = "ssh"  # the SSH banner; at most one a second, and none after the first (OpenSSH 9.8 penalties)


def check_name(name: str) -> str:
    """A name that a selector can spell. Raises Invalid."""
    if not re.match(NAME_PATTERN, name):
        raise Invalid(f"not a name: {name!r}", "names are letters, digits, `_`, `-` and `.`")
    if name == ALL:
        raise Invalid("`all` is the selector for every host", "take another name")
    return name


def check_address(address: str) -> str:
    """A host name or IP address without blanks, port or user. Raises Invalid."""
    if not address or re.search(r"[\s@/]", address) or address.startswith("-"):
        raise Invalid(
            f"not an address: {address!r}", "write a host name or an IP address; port and user apart"
        )
    return address


def check_host_key(text: str) -> str:
    """One public key as in a known_hosts line or a .pub file: type and base64, the comment dropped.

    The blob begins with its own type as an SSH string (RFC 4253 section 6.6). Raises Invalid.
    """
    hint = "write the line of the host's /etc/ssh/ssh_host_ed25519_key.pub: `ssh-ed25519 AAAA...`"
    kind, _, rest = text.strip().partition(" ")
    if kind not in _KEY_TYPES or not rest.strip():
        raise Invalid(f"not a host key: {text[:40]!r}", hint)
    encoded = rest.split()[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"the {kind} host key is not base64", hint) from None
    named = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")
    if named != kind or len(blob) < 4 + len(kind) + 8:
        raise Invalid(f"the host key says {kind}, its bytes say something else", hint)
    return f"{kind} {encoded}"


Name = Annotated[str, AfterValidator(check_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
Address = Annotated[str, AfterValidator(check_address)]
HostKey = Annotated[
    str,
    AfterValidator(check_host_key),
    WithJsonSchema({"type": "string", "pattern": r"^\s*(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ +AAAA"}),
]
Labels = dict[Name, Text]


class Probe(Value):
    """A service on the host whose answer proves that the host is up, not a forwarder in front of it."""

    kind: ProbeKind = ProbeKind.BANNER
    port: int = Field(ge=1, le=65535, description="port of the service")
    address: Address | None = Field(default=None, description="the host's own address where not given")
    path: str = Field(default="/", pattern="^/", description="`kind: http` only")


class Console(Value):
    """Where the host's serial console is kept on this machine, whoever writes it there."""

    file: Text = Field(
        min_length=1,
        description="file that grows with the console; its older part may lie beside it as FILE.1",
    )


class Host(Value):
    """One host, with group and default variables already folded in."""

    name: Name
    address: Address
    port: int = Field(default=22, ge=1, le=65535)
    user: str = "root"
    key: str | None = None  # private key file on the controller; None: the SSH agent and default keys
    sudo: bool = False
    host_key: HostKey | None = None  # "ssh-ed25519 AAAA...": pinned; None: known_hosts decides
    known_hosts: str | None = None  # a known_hosts file of the user's own; None: ~/.ssh/known_hosts
    host_key_policy: str = Field(default="strict", pattern="^(strict|accept-new)$")
    proxy_jump: str | None = None
    labels: Labels = Field(default_factory=dict)
    groups: tuple[str, ...] = ()
    variables: Labels = Field(default_factory=dict)
    probe: Probe | None = None
    power: Power | None = None
    console: Console | None = None


class Inventory(Value):
    """All hosts by name, in the order of the file, and the variables that playbooks may use."""

    hosts: dict[str, Host]
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    variables: Labels = Field(default_factory=dict)


class HostSettings(Value):
    """What `defaults`, a group and a host may all say; unset where None."""

    address: Annotated[Address | None, Field(description="host name or IP; the host's name if not given")] = (
        None
    )
    port: Annotated[int | None, Field(ge=1, le=65535, description="port of the SSH server")] = None
    user: Annotated[str | None, Field(min_length=1, description="login name")] = None
    key: Annotated[str | None, Field(min_length=1, description="private key file on this machine")] = None
    sudo: Annotated[bool | None, Field(description="run the agent with `sudo -n`")] = None
    host_key: Annotated[HostKey | None, Field(description="the host's public key, pinned")] = None
    known_hosts: Annotated[str | None, Field(min_length=1, description="known_hosts file to use")] = None
    host_key_policy: Annotated[
        Literal["strict", "accept-new"] | None, Field(description="what to do with an unknown host key")
    ] = None
    proxy_jump: Annotated[str | None, Field(min_length=1, description="[user@]host[:port] to go through")] = (
        None
    )
    labels: Annotated[Labels, Field(description="for selectors")] = Field(default_factory=dict)
    variables: Annotated[Labels, Field(description="texts of this host")] = Field(default_factory=dict)
    probe: Annotated[Probe | None, Field(description="a service whose answer proves that the host is up")] = (
        None
    )
    power: Annotated[Power | None, Field(description="how the host is switched off and on again")] = None
    console: Annotated[Console | None, Field(description="where the host's serial console is kept")] = None


class GroupEntry(HostSettings):
    """A group: its hosts, groups that it contains, and settings for all of them."""

    hosts: tuple[Text, ...] = Field(default=(), description="names of hosts")
    children: tuple[Text, ...] = Field(default=(), description="names of groups whose hosts belong to it too")


class _MayBeEmpty:
    """Annotates a mapping whose key may stand in the YAML with nothing behind it."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: {} if value is None else value, handler(source)
        )

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}


class InventoryFile(Value):
    """An inventory as it is written."""

    variables: Annotated[Labels, _MayBeEmpty] = Field(
        default_factory=dict, description="texts for ${name} in playbooks"
    )
    defaults: Annotated[HostSettings, _MayBeEmpty] = Field(
        default_factory=HostSettings, description="settings of every host"
    )
    groups: Annotated[dict[Name, Annotated[GroupEntry, _MayBeEmpty]], _MayBeEmpty] = Field(
        default_factory=dict, description="groups by name"
    )
    hosts: dict[Name, Annotated[HostSettings, _MayBeEmpty]] = Field(
        description="hosts by name",
        # min_length would count only those hosts that are valid, and call a file of one mistake empty.
        json_schema_extra={"minProperties": 1},
    )

    @model_validator(mode="after")
    def _some_host(self) -> Self:
        if not self.hosts:
            raise Invalid("there is no host", "write at least one under `hosts:`", at=("hosts",))
        return self
