"""The process that keeps a VM's serial console: each line with the host's time, for as long as QEMU lives.

Run by path as a process of its own (`console_logger.py SOCKET LOG MAX_BYTES`), so it imports nothing of ours. It
listens before QEMU starts and QEMU connects to it: no output can come before there is someone to write it down.
"""

from __future__ import annotations

import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

READ_BYTES = 65536
# QEMU connects when it starts; if it never does there is nothing to wait for.
CONNECT_SECONDS = 120.0


def stamp() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].encode() + b"Z "


class TimestampedLog:
    """Writes through at once, so that a partial line before a silent death is there too. When the file is full
    it becomes LOG.1 and a new one begins: at most `max_bytes` in both."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.half = max_bytes // 2
        self.stream = path.open("ab", buffering=0)
        self.line_open = False

    def write(self, data: bytes) -> None:
        out = bytearray()
        for piece in data.replace(b"\r", b"").splitlines(keepends=True):
            if not self.line_open:
                out += stamp()
            out += piece
            self.line_open = not piece.endswith(b"\n")
        self.stream.write(out)
        if not self.line_open and self.stream.tell() > self.half:
            self.stream.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self.stream = self.path.open("ab", buffering=0)

    def mark(self, text: str) -> None:
        if self.line_open:
            self.write(b"\n")
        self.write(f"--- lab: {text} ---\n".encode())


def main(arguments: list[str]) -> int:
    address, log_path, max_bytes = arguments
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with QEMU, not before
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        # Under another name until it listens: whoever sees the socket can connect.
        server.bind(address + ".new")
        server.listen(1)
        Path(address + ".new").rename(address)
        server.settimeout(CONNECT_SECONDS)
        try:
            connection, _peer = server.accept()
        except TimeoutError:
            return 1
    log = TimestampedLog(Path(log_path), int(max_bytes))
    log.mark("power on")
    with connection:
        connection.settimeout(None)
        while data := connection.recv(READ_BYTES):
            log.write(data)
    log.mark("QEMU is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
