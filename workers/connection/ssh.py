"""SSH sessions on Fabric and paramiko: connect, verify, log in, start programs.

Fabric holds the session (`fabric.Connection`), paramiko the protocol. Neither reads an ssh_config or a
fabric.yml here, so that a host is reached as the inventory says and in no other way. One connect attempt is
one attempt: nothing is retried here, because sshd punishes an address that comes too often (OpenSSH 9.8,
PerSourcePenalties).
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fabric
import paramiko

from orchestrator.domain.errors import HostError, HostRefused
from orchestrator.domain.inventory import Host
from workers.connection import hostkeys
from workers.connection.base import Completed
from workers.connection.errors import CAUGHT, HostKeyProblem, Phase, refusal, translate
from workers.connection.process import SshProcess
from workers.connection.sockets import Stream, WatchedStream, dial
from workers.connection.userkeys import read_key
from workers.deadline import Deadline, cut_at

# AES-GCM has no HMAC in Python: 25 % less CPU in bulk. Finite-field key exchange holds the GIL for 81 ms.
# Both from shared/facts/ssh.md; CBC, 3DES, SHA-1 and MD5 are left out because nothing that runs a current
# kernel needs them.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_KEX = (
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "mlkem768x25519-sha256",
)
_KEEPALIVE_S = 10
# paramiko's parsers raise ValueError for damaged bytes that a server sent.
_CONNECT_ERRORS: tuple[type[BaseException], ...] = (*CAUGHT, ValueError)
_STDOUT_BYTES = 16 * 1024 * 1024
_MAX_JUMPS = 4


class SshConnector:
    """Connects to hosts; threads may share one. `jump_hosts` are the hosts that `proxy_jump` may name."""

    def __init__(self, jump_hosts: Mapping[str, Host] | None = None) -> None:
        self._jump_hosts = dict(jump_hosts or {})
        # lazy and an empty SSHConfig: no file of this machine changes how a host is reached.
        self._config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())
        self._config_lock = threading.Lock()
        _quiet_paramiko()

    def connect(self, host: Host, deadline: Deadline) -> SshConnection:
        """Connect once, verify the host key, log in.

        Raises HostUnreachable, HostKeyRefused, LoginRefused; all of them say that nothing ran.
        """
        jumps = self._jumps(host)
        under: list[SshConnection] = []
        try:
            for number, hop in enumerate([*jumps, host]):
                last = number == len(jumps)
                step = "connect" if last else f"connect to jump host {hop.address}"
                under.append(_Dialer(self._cloned_config(), hop, host.name, step).connect(under, deadline))
        except BaseException:
            for connection in reversed(under):
                connection.close()
            raise
        return under[-1]

    def _jumps(self, host: Host) -> list[Host]:
        """The jump hosts from the outside in; "a,b" goes through a, then b, as in ssh's -J."""
        specs = [part.strip() for part in (host.proxy_jump or "").split(",") if part.strip()]
        if len(specs) > _MAX_JUMPS:
            message = f"more than {_MAX_JUMPS} jump hosts"
            raise HostRefused(host.name, "connect", message, code="jumps", hint="shorten `proxy_jump`")
        return [self._jump_hosts.get(spec) or parse_jump(spec, host) for spec in specs]

    def _cloned_config(self) -> Any:
        # One Config shared by threads without clone() failed in one of three runs (shared/facts/ssh.md).
        with self._config_lock:
            return self._config.clone()


def parse_jump(spec: str, host: Host) -> Host:
    """The host behind "user@address:port", with the key and the known_hosts rules of the host behind it."""
    user, _, rest = spec.rpartition("@")
    address, colon, port = rest.rpartition(":")
    if not colon or not port.isdigit() or (":" in address and not address.startswith("[")):
        address, port = rest, "22"
    return Host(
        name="jump",
        address=address.strip("[]"),
        port=int(port),
        user=user or host.user,
        key=host.key,
        known_hosts=host.known_hosts,
        host_key_policy=host.host_key_policy,
    )


class _Dialer:
    """One connect attempt to one host, and how far it has come."""

    def __init__(self, config: Any, host: Host, name: str, step: str) -> None:
        self._config = config
        self._host = host
        self._name = name  # the host that errors are about: the one behind the jump hosts
        self._step = step
        self._transport: paramiko.Transport | None = None
        self._stream: WatchedStream | None = None
        self._policy: hostkeys.HostKeyPolicy | None = None

    def connect(self, under: Sequence[SshConnection], deadline: Deadline) -> SshConnection:
        with cut_at(deadline, self._cut) as cut:
            try:
                return self._connect(under, deadline)
            except _CONNECT_ERRORS as error:
                self._cut()
                raise self._explain(error, deadline, cut_made=cut.made) from error

    def _connect(self, under: Sequence[SshConnection], deadline: Deadline) -> SshConnection:
        known = hostkeys.known_keys(self._host)
        self._policy = hostkeys.HostKeyPolicy(self._host, known)
        key = read_key(Path(self._host.key).expanduser()) if self._host.key else None
        stream: Stream = self._open_stream(under, deadline)
        self._stream = WatchedStream(stream)
        session = fabric.Connection(
            self._host.address,
            user=self._host.user,
            port=self._host.port,
            config=self._config,
            gateway=False,
            connect_kwargs={
                "sock": self._stream,
                "pkey": key,
                "allow_agent": key is None,
                "look_for_keys": key is None,
                "timeout": deadline.left(),
                "banner_timeout": deadline.left(),
                "auth_timeout": deadline.left(),
                "channel_timeout": deadline.left(),
                "transport_factory": lambda sock, **_: self._make_transport(sock, known, deadline),
            },
        )
        # Fabric sets AutoAddPolicy; ours is the only judge, and it refuses.
        session.client.set_missing_host_key_policy(self._policy)
        session.open()
        session.transport.set_keepalive(_KEEPALIVE_S)
        return SshConnection(self._host, session, tuple(under))

    def _open_stream(self, under: Sequence[SshConnection], deadline: Deadline) -> Stream:
        if under:
            return under[-1].open_tunnel(self._host.address, self._host.port, deadline)
        return dial(self._host.address, self._host.port, deadline)

    def _make_transport(self, sock: Any, known: hostkeys.KnownKeys, deadline: Deadline) -> paramiko.Transport:
        transport = paramiko.Transport(sock)
        options = transport.get_security_options()
        options.ciphers = _CIPHERS
        options.digests = _MACS
        options.kex = tuple(name for name in _KEX if name in options.kex)
        options.key_types = known.algorithms
        transport.handshake_timeout = deadline.left()
        self._transport = transport
        return transport

    def _explain(self, error: BaseException, deadline: Deadline, *, cut_made: bool) -> HostError:
        """Our error for `error`: what the deadline or the server's first bytes say goes before paramiko's
        words.
        """
        phase = self._phase()
        seen: BaseException = error
        if phase is Phase.HANDSHAKE and self._stream is not None:
            seen = self._stream.explain() or error
        if seen is error and (cut_made or deadline.expired) and not isinstance(error, HostKeyProblem):
            seen = TimeoutError()
        if isinstance(seen, ValueError):
            seen = paramiko.SSHException(str(seen))
        return translate(seen, self._name, self._step, phase)

    def _phase(self) -> Phase:
        if self._stream is None:
            return Phase.DIAL
        return Phase.LOGIN if self._policy is not None and self._policy.accepted else Phase.HANDSHAKE

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._stream is not None:
            self._stream.close()


class SshConnection:
    """See `workers.connection.base.Connection`."""

    def __init__(self, host: Host, session: Any, under: tuple[SshConnection, ...]) -> None:
        self.host = host
        self._session = session
        self._transport: paramiko.Transport = session.transport
        self._under = under

    @property
    def server_version(self) -> str:
        return str(self._transport.remote_version)

    def open_process(self, argv: Sequence[str], deadline: Deadline, *, sudo: bool = False) -> SshProcess:
        # LC_ALL=C through env, which every login shell runs alike: sudo's refusal is recognised by its words.
        words = ["env", "LC_ALL=C", "sudo", "-n", "--", *argv] if sudo else list(argv)
        with cut_at(deadline, self._cut) as cut:
            try:
                channel = self._transport.open_session(timeout=deadline.left())
                channel.exec_command(shlex.join(words))
            except CAUGHT as error:
                seen = TimeoutError() if cut.made or deadline.expired else error
                raise translate(seen, self.host.name, "start a program", Phase.REQUEST) from error
        return SshProcess(channel, self.host.name, self._cut)

    def run(self, argv: Sequence[str], deadline: Deadline, *, sudo: bool = False) -> Completed:
        process = self.open_process(argv, deadline, sudo=sudo)
        try:
            process.close_stdin()
            stdout = bytearray()
            while data := process.read(32 * 1024, deadline):
                stdout += data
                if len(stdout) > _STDOUT_BYTES:
                    message = f"{argv[0]} wrote more than {_STDOUT_BYTES} bytes"
                    raise HostRefused(self.host.name, "run", message, code="too_much")
            status = process.exit_status(deadline)
            if status is None:
                seen = TimeoutError() if deadline.expired else EOFError()
                raise translate(seen, self.host.name, f"run {argv[0]}", Phase.ANSWER)
            stderr = process.stderr
        finally:
            process.close()
        if refused := refusal(self.host.name, f"run {argv[0]}", argv[0], status, stderr, sudo=sudo):
            raise refused
        return Completed(tuple(argv), status, bytes(stdout), stderr)

    def open_tunnel(self, address: str, port: int, deadline: Deadline) -> paramiko.Channel:
        """A TCP connection from this host to another one. Raises paramiko's exceptions, for the caller's
        table.
        """
        return self._transport.open_channel(
            "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=deadline.left()
        )

    def alive(self, deadline: Deadline) -> bool:
        if not self._transport.is_active():
            return False
        with cut_at(deadline, self._cut) as cut:
            try:
                # OpenSSH refuses the request it does not know, and that is the answer (ssh's
                # ServerAliveInterval).
                self._transport.global_request("keepalive@openssh.com", wait=True)
            except CAUGHT:
                return False
        return self._transport.is_active() and not cut.made

    def close(self) -> None:
        self._cut()
        try:
            self._session.close()
        except CAUGHT:
            pass  # closing a session that broke is closing it
        for connection in reversed(self._under):
            connection.close()

    def _cut(self) -> None:
        self._transport.close()


def _quiet_paramiko() -> None:
    """paramiko logs each failed connection with its traceback; the error tree says it. A level set before
    stays.
    """
    logger = logging.getLogger("paramiko")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
