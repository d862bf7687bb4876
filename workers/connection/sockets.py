"""The TCP side of an SSH session: lookup and connect with a deadline, and a socket that is fast and tells
what it saw.

paramiko never sets TCP_NODELAY; on loopback a connect plus a command takes 104-109 ms without it, 64-68 ms
with it and 25-27 ms with TCP_QUICKACK re-armed at every recv (measured, shared/facts/ssh.md).
"""

from __future__ import annotations

import socket
import threading
from typing import Protocol

from workers.connection.errors import NotAnSshServer
from workers.deadline import Deadline

# A dead host is noticed by TCP after 30 s at the latest, whether data is under way or not.
_IDLE_S, _INTERVAL_S, _COUNT = 10, 5, 4
_USER_TIMEOUT_MS = 30_000
_HEAD_BYTES = 512


class Stream(Protocol):
    """What paramiko needs of a socket: a socket.socket or a channel through a jump host."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class WatchedStream:
    """A stream handed to paramiko that remembers how the server began, so that a failed banner can be
    explained.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._tcp: socket.socket | None = None
        self._head = bytearray()
        self._ended = False
        self._closed = False  # paramiko's Transport.stop_thread reads this name of socket.socket
        if isinstance(stream, socket.socket):
            self._tcp = stream

    def recv(self, size: int) -> bytes:
        data = self._stream.recv(size)
        if not data:
            self._ended = True
            return data
        if self._tcp:
            try:  # the kernel forgets it after a while (tcp(7)): armed again at each recv
                self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            except OSError:
                pass  # closed meanwhile: the data in hand still counts
        if len(self._head) < _HEAD_BYTES:
            self._head += data[: _HEAD_BYTES - len(self._head)]
        return data

    def send(self, data: bytes) -> int:
        return self._stream.send(data)

    def settimeout(self, seconds: float | None) -> None:
        self._stream.settimeout(seconds)

    def getpeername(self) -> object:
        return self._tcp.getpeername() if self._tcp else ("jump", 0)

    def close(self) -> None:
        self._closed = True
        self._stream.close()

    def explain(self) -> NotAnSshServer | None:
        """Why there was no SSH banner; None when there was one, and the failure came later."""
        head = bytes(self._head)
        if head.startswith(b"SSH-") or b"\nSSH-" in head:
            return None
        said = head.decode("utf-8", "replace").strip()
        if "Not allowed at this time" in said:
            # OpenSSH 9.8 and later, PerSourcePenalties: connections that left without logging in are
            # punished.
            return NotAnSshServer(
                "sshd refuses this address for a while (PerSourcePenalties)",
                code="penalised",
                hint="wait up to 10 minutes without any connection to this sshd, then try again",
            )
        if "MaxStartups" in said or (self._ended and not said):
            return NotAnSshServer(
                said or "the connection was closed before the SSH banner",
                code="closed_before_banner",
                hint="sshd is full (MaxStartups), still starting or turns this address away: try again later",
            )
        if said:
            return NotAnSshServer(
                f"no SSH server answers: {said.splitlines()[0][:80]!r}", code="not_ssh", hint="check `port`"
            )
        return NotAnSshServer(
            "connected, but no SSH banner came",
            code="no_banner",
            hint="the host hangs, or only a forwarder in front of it accepted the connection",
        )


def dial(address: str, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection to the first address that accepts one, each tried once.

    Raises OSError (TimeoutError when the deadline passed, socket.gaierror for the name).
    """
    last: OSError = TimeoutError()
    for family, kind, proto, _, where in lookup(address, port, deadline):
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(max(deadline.left(), 0.001))
            sock.connect(where)
            _prepare(sock)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


def _prepare(sock: socket.socket) -> None:
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, _INTERVAL_S)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, _COUNT)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


AddressInfo = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, "tuple[str, int] | tuple[str, int, int, int]"
]


def lookup(address: str, port: int, deadline: Deadline) -> list[AddressInfo]:
    """getaddrinfo with a deadline: the resolver has none of its own, so a name is looked up in a thread."""
    try:
        return _getaddrinfo(address, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    found: list[AddressInfo] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            found.extend(_getaddrinfo(address, port, 0))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name=f"lookup {address}", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if thread.is_alive():
        raise TimeoutError(f"no answer from the name service for {address}")
    if failed:
        raise failed[0]
    return found


def _getaddrinfo(address: str, port: int, flags: int) -> list[AddressInfo]:
    infos = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, proto, name, where) for family, kind, proto, name, where in infos]  # type: ignore[misc]
