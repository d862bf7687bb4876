"""The process that keeps a VM's serial console: each line with the host's time, for as long as QEMU lives.

Run by path as a process of its own (`console_logger.py FIFO LOG MAX_BYTES READY`), so it imports nothing of
ours. It opens the FIFO before QEMU starts: no output can come before there is someone to write it down.

A FIFO and not a socket: QEMU writes single bytes and drops what it cannot write (hw/char/serial.c tries
four times). A socket's buffer is full after some 280 such bytes, for each costs a whole buffer head (seen:
words missing from a kernel's command line with four VMs booting on two cores); a pipe packs a megabyte.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

READ_BYTES = 65536
PIPE_BYTES = 1 << 20
# QEMU opens the FIFO when it starts; if it never does there is nothing to wait for.
CONNECT_SECONDS = 120.0


def stamp() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].encode() + b"Z "


class TimestampedLog:
    """Writes through at once, so that a partial line before a silent death is there too. When the file is
    full it becomes LOG.1 and a new one begins: at most `max_bytes` in both."""

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
    fifo, log_path, max_bytes, ready = arguments
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with QEMU, not before
    source = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the machine allows less (fs.pipe-max-size): the default holds 64 KiB
    log = TimestampedLog(Path(log_path), int(max_bytes))
    log.mark("power on")
    Path(ready).touch()
    waiter = select.poll()
    waiter.register(source, select.POLLIN)  # and POLLHUP, which comes once a writer was there and is gone
    if not waiter.poll(CONNECT_SECONDS * 1000):
        log.mark("QEMU did not come")
        return 1
    os.set_blocking(source, True)
    while data := os.read(source, READ_BYTES):
        log.write(data)
    log.mark("QEMU is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
