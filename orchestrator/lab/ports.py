"""Free TCP ports on the loopback that stay free until QEMU takes them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from orchestrator.domain.errors import LabError

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 20000


def port_range() -> range:
    """Below what the kernel hands out by itself, where no outgoing connection can take a port meanwhile."""
    try:
        low = int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        low = 32768
    return range(LOWEST, low) if low - LOWEST >= 1000 else range(40000, 65000)


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(count: int, taken: set[int]) -> list[int]:
    """`taken` are the ports that labs have written down, running or not."""
    candidates = list(port_range())
    random.shuffle(candidates)
    chosen: list[int] = []
    for port in candidates:
        if len(chosen) == count:
            break
        if port not in taken and is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise LabError(
            f"no {count} free ports between {candidates and min(candidates)} and {max(candidates)}"
        )
    return chosen
