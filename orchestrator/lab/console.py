"""Reading a VM's kept console: all of it, its tail, or as it grows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
TAIL_BYTES = 1 << 20
POLL_SECONDS = 0.2


def without_stamp(line: str) -> str:
    return STAMP.sub("", line)


def read_all(path: Path) -> str:
    """The older half, where there is one, then the newer."""
    parts = (path.with_name(path.name + ".1"), path)
    return "".join(part.read_text(errors="replace") for part in parts if part.exists())


def tail(path: Path, lines: int) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()[-lines:]


def follow(path: Path, alive: Callable[[], bool]) -> Iterator[str]:
    """Pieces of text as they come, from the beginning, until the VM is gone and all is read."""
    position, inode = 0, -1
    while True:
        living = alive()
        try:
            info = path.stat()
        except FileNotFoundError:
            info = None
        if info is not None:
            if inode not in (-1, info.st_ino) or info.st_size < position:
                position = 0  # the log was turned over
            inode = info.st_ino
            with path.open("rb") as stream:
                stream.seek(position)
                data = stream.read()
            position += len(data)
            if data:
                yield data.decode(errors="replace")
        if not living:
            return
        time.sleep(POLL_SECONDS)
