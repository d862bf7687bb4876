"""A real Redis on loopback with a password, for one test."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis as client

PASSWORD = "only-for-this-test"
PATIENCE = 60.0


@dataclass(frozen=True)
class RedisServer:
    """Where it answers."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Start one on a free port, keeping nothing on disk, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "redis.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nsave ''\nappendonly no\ndir {folder}\n"
    )
    process = subprocess.Popen(["redis-server", str(config)], stdout=subprocess.DEVNULL)
    try:
        _await_answer(port)
        yield RedisServer(port, process)
    finally:
        process.kill()
        process.wait()


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.Redis(port=port, password=PASSWORD).ping()
            return
        except client.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
