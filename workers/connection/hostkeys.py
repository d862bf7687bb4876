"""Host keys: which keys a host may show, and the refusal of all others.

Keys come from the inventory (`host_key`, pinned) or from a known_hosts file in OpenSSH's format (sshd(8),
"SSH_KNOWN_HOSTS FILE FORMAT"): plain names, patterns, hashed names, `[host]:port`, `@revoked`.
`@cert-authority` lines are not used. paramiko's own reader knows neither patterns nor markers, so the file
is read here. A key is taken up by itself only where the inventory says `host_key_policy: accept-new`, and
never in place of another.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import fnmatch
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

import paramiko

from orchestrator.domain.inventory import Host
from workers.connection.errors import HostKeyProblem

# The signature algorithms that prove the possession of a key of a type (RFC 8332 for RSA; SHA-1 is not
# offered).
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
ACCEPTED_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


@dataclass(frozen=True, slots=True)
class HostKey:
    """One public key. `blob` is the key in SSH's wire form."""

    type: str
    blob: bytes

    @classmethod
    def parse(cls, text: str) -> HostKey:
        """From "ssh-ed25519 AAAA... comment". Raises ValueError where the text is no public key."""
        fields = text.split()
        if len(fields) < 2:
            raise ValueError("a public key is two words: its type and its base64 text")
        try:
            blob = base64.b64decode(fields[1], validate=True)
        except binascii.Error as error:
            raise ValueError(f"the key's base64 text is damaged ({error})") from error
        name = fields[0].encode()
        if blob[: 4 + len(name)] != len(name).to_bytes(4, "big") + name:
            raise ValueError(f"the key's text does not hold a key of type {fields[0]}")
        return cls(fields[0], blob)

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.type} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What is known of one host's keys. `source` names the place for messages."""

    keys: tuple[HostKey, ...]
    revoked: tuple[HostKey, ...]
    source: str

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms to offer: only those of known keys, so that the server shows a key that can be
        compared.
        """
        if not self.keys:
            return ACCEPTED_ALGORITHMS
        types = {algorithm for key in self.keys for algorithm in _ALGORITHMS.get(key.type, (key.type,))}
        return tuple(algorithm for algorithm in ACCEPTED_ALGORITHMS if algorithm in types)


def known_keys(host: Host) -> KnownKeys:
    """The keys that `host` may show. A missing known_hosts file holds none.

    Raises HostKeyProblem: code "host_key_invalid" for a pin of an unsupported type, "known_hosts" for a file
    that cannot be read.
    """
    if host.host_key is not None:
        pinned = HostKey.parse(host.host_key)
        known = KnownKeys((pinned,), (), "the inventory")
        if not known.algorithms:
            raise HostKeyProblem(
                f"`host_key` has type {pinned.type}, which is not supported",
                code="host_key_invalid",
                hint=f"pin a key for one of: {', '.join(ACCEPTED_ALGORITHMS)}",
            )
        return known
    path = known_hosts_path(host)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        hint = "correct `known_hosts` in the inventory, or pin `host_key` there"
        raise HostKeyProblem(f"{path}: {error.strerror}", code="known_hosts", hint=hint) from error
    return search(text, known_name(host), str(path))


def known_hosts_path(host: Host) -> Path:
    return Path(host.known_hosts or "~/.ssh/known_hosts").expanduser()


def known_name(host: Host) -> str:
    """The name under which OpenSSH files a host: with its port where that is not 22."""
    return host.address if host.port == 22 else f"[{host.address}]:{host.port}"


def search(text: str, name: str, source: str) -> KnownKeys:
    """The keys of the known_hosts `text` whose names match `name`. Lines that are no key lines are skipped,
    as ssh does.
    """
    keys: list[HostKey] = []
    revoked: list[HostKey] = []
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) < 3 or not _names_match(fields[0], name) or marker not in ("", "@revoked"):
            continue
        try:
            key = HostKey.parse(f"{fields[1]} {fields[2]}")
        except ValueError:
            continue
        (revoked if marker else keys).append(key)
    supported = [k for k in keys if set(_ALGORITHMS.get(k.type, (k.type,))) & set(ACCEPTED_ALGORITHMS)]
    return KnownKeys(tuple(supported), tuple(revoked), source)


def _names_match(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        return _hash_matches(patterns, name)
    matched = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        if _pattern_matches(pattern.removeprefix("!"), name):
            if negated:
                return False
            matched = True
    return matched


def _pattern_matches(pattern: str, name: str) -> bool:
    # ssh's patterns know only * and ?; the brackets of [host]:port are literal, fnmatch would read them as
    # a set.
    return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))


def _hash_matches(hashed: str, name: str) -> bool:
    """`|1|salt|HMAC-SHA1(salt, name)`, both base64."""
    try:
        _, _, salt, digest = hashed.split("|")
        wanted = base64.b64decode(digest)
        found = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
    except ValueError:
        return False
    return hmac.compare_digest(wanted, found)


class HostKeyPolicy(paramiko.MissingHostKeyPolicy):
    """The only judge of host keys: paramiko's own stores are left empty, so that it asks here for every
    host.
    """

    def __init__(self, host: Host, known: KnownKeys) -> None:
        self._host = host
        self._known = known
        self.accepted = False

    def missing_host_key(self, client: object, hostname: str, key: paramiko.PKey) -> None:
        """Accept `key` by returning. Raises HostKeyProblem."""
        judge(self._host, self._known, HostKey(key.get_name(), key.asbytes()))
        self.accepted = True


def judge(host: Host, known: KnownKeys, shown: HostKey) -> None:
    """Raise HostKeyProblem unless `host` may show the key `shown`; take a new one up where the inventory
    says so.
    """
    if shown in known.revoked:
        raise HostKeyProblem(
            f"the host shows {shown.type} {shown.fingerprint}, which {known.source} marks as revoked",
            code="host_key_revoked",
            hint="do not connect until someone has looked at the host's console",
        )
    if shown in known.keys:
        return
    if known.keys:
        wanted = ", ".join(f"{key.type} {key.fingerprint}" for key in known.keys)
        raise HostKeyProblem(
            f"the host key HAS CHANGED: {known.source} has {wanted}, "
            f"the host shows {shown.type} {shown.fingerprint}",
            code="host_key_changed",
            hint="either someone is between, or the host was installed anew: then replace its key in "
            f"{known.source}, compared with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on its console",
        )
    if host.host_key_policy == "accept-new":
        remember(known_hosts_path(host), known_name(host), shown)
        return
    raise HostKeyProblem(
        f"the host key is not known: the host shows {shown.type} {shown.fingerprint}",
        code="host_key_unknown",
        hint="compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the host's console, then put "
        f'this into the inventory under {host.name}:  host_key: "{shown}"',
    )


def remember(path: Path, name: str, key: HostKey) -> None:
    """Append a line to a known_hosts file, under a lock because many threads and workers connect at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        now = search(text, name, str(path))
        if key in now.keys:
            return
        if now.keys:
            raise HostKeyProblem(
                f"another key of {name} was taken up at the same moment",
                code="host_key_changed",
                hint="two connections saw two different keys: look at the host's console",
            )
        file.write(("" if not text or text.endswith("\n") else "\n") + f"{name} {key}\n")
