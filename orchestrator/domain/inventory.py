"""The hosts of a fleet, as the inventory describes them: values only, loading is elsewhere."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """Base of the values that a user writes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProbeKind(StrEnum):
    """How the outage prober asks whether the host answers; a bare connect is never an answer."""

    BANNER = "banner"  # any line that the service sends by itself after the connect
    HTTP = "http"  # any HTTP status line
    SSH = "ssh"  # the SSH banner; at most one a second, and none after the first (OpenSSH 9.8 penalties)


class Probe(Value):
    """A service on the host whose answer proves that the host is up, not a forwarder in front of it."""

    kind: ProbeKind = ProbeKind.BANNER
    port: int = Field(ge=1, le=65535)
    address: str | None = None  # the host's own address where not given
    path: str = "/"  # http only


class Host(Value):
    """One host, with group and default variables already folded in."""

    name: str
    address: str
    port: int = Field(default=22, ge=1, le=65535)
    user: str = "root"
    key: str | None = None  # private key file on the controller; None: the SSH agent and default keys
    sudo: bool = False
    host_key: str | None = None  # "ssh-ed25519 AAAA...": pinned; None: known_hosts decides
    known_hosts: str | None = None  # a known_hosts file of the user's own; None: ~/.ssh/known_hosts
    host_key_policy: str = Field(default="strict", pattern="^(strict|accept-new)$")
    proxy_jump: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    groups: tuple[str, ...] = ()
    variables: dict[str, str] = Field(default_factory=dict)
    probe: Probe | None = None


class Inventory(Value):
    """All hosts by name, in the order of the file, and the variables that playbooks may use."""

    hosts: dict[str, Host]
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    variables: dict[str, str] = Field(default_factory=dict)
