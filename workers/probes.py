"""One probe: a fresh connection to a service of the host, and whether the host itself answered.

A bare connect is never an answer: a forwarder in front of a dead host accepts it (QEMU's user network does
so in 0.2 ms, shared/facts/lab.md). An answer is a line that the service sends, or an HTTP status line.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.inventory import Host, ProbeKind
from workers.outage_fold import Ended, Instant, Outcome

# What only this machine can be guilty of: it says nothing about the host.
_OWN_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EACCES,
        errno.EPERM,
    }
)
# A loop that looks at a probe this long after its time was over cannot say that no answer had come. Seconds.
_BLIND_S = 0.25
_MOST_BYTES = 1024
# How long one answer is waited for where only its being there counts, and the pause after it. Seconds.
_LISTEN_S = 5.0


def now() -> Instant:
    return Instant(time.monotonic(), time.time())


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask and how. `source` names it in records."""

    kind: ProbeKind
    address: str
    port: int
    path: str
    source: str

    @classmethod
    def of(cls, host: Host) -> Target:
        """The host's probe service, or its sshd where the inventory names none."""
        probe = host.probe
        if probe is None or probe.kind is ProbeKind.SSH:
            port = probe.port if probe else host.port
            address = (probe.address if probe else None) or host.address
            return cls(ProbeKind.SSH, address, port, "/", "ssh banner")
        address = probe.address or host.address
        path = probe.path if probe.kind is ProbeKind.HTTP else ""
        return cls(probe.kind, address, probe.port, path, f"{probe.kind} {address}:{probe.port}{path}")


@dataclass(frozen=True, slots=True)
class Place:
    """A looked up address, as socket() and connect() take it."""

    family: int
    where: tuple[Any, ...]


async def look_up(target: Target) -> Place:
    """Raises OSError."""
    where_to = (target.address, target.port)
    try:  # a number needs no resolver, and so no thread of asyncio's
        found = socket.getaddrinfo(*where_to, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(*where_to, type=socket.SOCK_STREAM)
    family, _, _, _, where = found[0]
    return Place(family, where)


async def ask(target: Target, place: Place, timeout_s: float) -> Outcome:
    """One probe; never raises but when cancelled."""
    sent = now()
    try:
        async with asyncio.timeout(timeout_s):
            answered = await _exchange(target, place)
    except TimeoutError:
        done = now()
        if done.monotonic - sent.monotonic - timeout_s > _BLIND_S:
            return Outcome(sent, done, Ended.VOID, "this machine was too busy to look for the answer in time")
        return Outcome(sent, done, Ended.FAILED, f"no answer within {timeout_s:g} s")
    except OSError as error:
        how = Ended.VOID if error.errno in _OWN_ERRORS else Ended.FAILED
        # asyncio's own text is only "Connect call failed".
        return Outcome(sent, now(), how, os.strerror(error.errno) if error.errno else str(error))
    how = Ended.ANSWERED if answered else Ended.FAILED
    return Outcome(sent, now(), how, "" if answered else "the connection was closed without an answer")


def answers_within(host: Host, seconds: float) -> bool | None:
    """Whether anything of the host answers in that time; asked from a thread without a loop.

    Its probe service and its sshd are asked; a refused connection is its kernel's answer. None: it cannot be
    told, because the fault is ours (no route, no name, no descriptors) or it is reached through a jump host.
    """
    if host.proxy_jump is not None:
        return None
    ssh = Target(ProbeKind.SSH, host.address, host.port, "/", "ssh banner")
    targets = list(dict.fromkeys((Target.of(host), ssh)))

    async def all_of_them() -> list[bool | None]:
        return list(await asyncio.gather(*(_listen(target, seconds) for target in targets)))

    found = asyncio.run(all_of_them())
    return True if True in found else None if None in found else False


async def _listen(target: Target, seconds: float) -> bool | None:
    until = time.monotonic() + seconds
    blind = False
    while (left := until - time.monotonic()) > 0:
        try:
            place = await asyncio.wait_for(look_up(target), left)
        except (OSError, TimeoutError):
            return None  # its name cannot be looked up
        outcome = await ask(target, place, min(left, _LISTEN_S))
        if outcome.how is Ended.ANSWERED or outcome.why == os.strerror(errno.ECONNREFUSED):
            return True
        blind = blind or outcome.how is Ended.VOID
        # sshd (OpenSSH 9.8) penalises those who connect and leave; once in this time it tolerates.
        await asyncio.sleep(min(max(until - time.monotonic(), 0.0), _LISTEN_S))
    return None if blind else False


async def _exchange(target: Target, place: Place) -> bool:
    loop = asyncio.get_running_loop()
    with socket.socket(place.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        if target.kind is not ProbeKind.SSH:
            # Closed with RST: 50 probes a second leave no TIME_WAIT behind, here or on the host.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await loop.sock_connect(sock, place.where)
        if target.kind is ProbeKind.HTTP:
            request = (
                f"GET {target.path} HTTP/1.0\r\nHost: {target.address}\r\nUser-Agent: kexec-fleet\r\n\r\n"
            )
            await loop.sock_sendall(sock, request.encode())
        data = b""
        while b"\n" not in data and len(data) < _MOST_BYTES:
            more = await loop.sock_recv(sock, _MOST_BYTES)
            if not more:
                break
            data += more
    return data.startswith(b"HTTP/") if target.kind is ProbeKind.HTTP else bool(data.strip())
