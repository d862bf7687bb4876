"""Reading a host's serial console from the file in which somebody keeps it on this machine.

The keeper is not ours to know: QEMU, conserver, the lab's logger. Files grow, are truncated, or become NAME.1
(renamed or copied) when they are full; they may be gone, be huge, or hold any bytes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.consoletext import LEFT_OUT
from orchestrator.domain.inventory import Host

MOST_BYTES = 262144
_SEARCHED_BYTES = 64 << 20  # how far back a nonce is looked for, in each of the two files
_BLOCK = 1 << 20


_FINGERPRINT_BYTES = 256


@dataclass(frozen=True)
class _Place:
    """The end of a file that may be renamed or copied. `inode` is 0 where there was no file.

    `before` are the bytes that end there: a file system may give an inode's number to the next file at once.
    """

    device: int
    inode: int
    size: int
    before: bytes


class ConsoleTail:
    """What a console has said since a point in time. One use: `mark` before, `since_mark` after."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._older = self.path.with_name(self.path.name + ".1")
        self._mark: tuple[_Place, _Place] | None = None  # the ends of the file and of the older one

    def mark(self) -> None:
        """Remember where the console ends now. Never raises."""
        with _opened(self.path) as newer, _opened(self._older) as older:
            self._mark = newer.end, older.end

    def since_mark(self, nonce: str = "", max_bytes: int = MOST_BYTES) -> str | None:
        """The text since `mark`. Without a mark (another process told the jump) from the first line that
        names `nonce`: the load's, where its debug lines reach the console, else the new kernel's command
        line.

        At most about `max_bytes`: what is more is left out of the middle, and a line says so. None where that
        place cannot be found, or there is no console. Never raises.
        """
        # In this order: a file that is renamed between the two is opened twice, and never missed.
        with _opened(self.path) as newer, _opened(self._older) as found_older:
            older = _File(None) if found_older.is_same(newer) else found_older
            if not (older.there or newer.there):
                return None
            if self._mark is not None:
                parts = _parts_since(*self._mark, older, newer)
            else:
                found = _parts_from(nonce.encode(), older, newer) if nonce else None
                if found is None:
                    return None
                parts = found
            return _text(parts, max_bytes)


def console_of(host: Host) -> ConsoleTail | None:
    """The host's console, or None where the inventory names none."""
    return None if host.console is None else ConsoleTail(host.console.file)


def _parts_since(mark: _Place, older_then: _Place, older: _File, newer: _File) -> list[tuple[_File, int]]:
    """Which files hold the text since the mark, and from where."""
    if newer.is_renamed(mark) and newer.has(mark):
        return [(newer, mark.size)]
    if mark.size and older.has(mark):  # renamed, or copied before it was truncated
        return [(older, mark.size), (newer, 0)]
    # Truncated, replaced, turned over twice, or not there when marked: all is new but what was old then.
    stale = older.is_renamed(older_then) and older.has(older_then)
    return [(newer, 0)] if stale else [(older, 0), (newer, 0)]


def _parts_from(nonce: bytes, older: _File, newer: _File) -> list[tuple[_File, int]] | None:
    """From the beginning of the line that first names the nonce."""
    offset = older.line_of(nonce)
    if offset is not None:
        return [(older, offset), (newer, 0)]
    offset = newer.line_of(nonce)
    return None if offset is None else [(newer, offset)]


def _text(parts: list[tuple[_File, int]], most: int) -> str:
    """The parts as one text; where they are too long, their first and their last half."""
    total = sum(file.size - offset for file, offset in parts)
    if total <= most:
        return b"".join(file.read(offset, file.size - offset) for file, offset in parts).decode(
            "utf-8", "replace"
        )
    head, tail = bytearray(), b""
    for file, offset in parts:
        head += file.read(offset, min(file.size - offset, most // 2 - len(head)))
    for file, offset in reversed(parts):
        wanted = min(file.size - offset, most // 2 - len(tail))
        tail = file.read(file.size - wanted, wanted) + tail
    return f"{head.decode('utf-8', 'replace')}\n{LEFT_OUT}\n{tail.decode('utf-8', 'replace')}"


class _File:
    """An open file as it is now, or none at all; `size` is 0 then."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.there = descriptor is not None
        self._device = self._inode = self.size = 0
        if descriptor is not None:
            status = os.fstat(descriptor)
            self._device, self._inode, self.size = status.st_dev, status.st_ino, status.st_size

    @property
    def end(self) -> _Place:
        start = max(0, self.size - _FINGERPRINT_BYTES)
        return _Place(self._device, self._inode, self.size, self.read(start, self.size - start))

    def is_same(self, other: _File) -> bool:
        return self.there and (self._device, self._inode) == (other._device, other._inode)

    def is_renamed(self, place: _Place) -> bool:
        """Whether it may be the file of `place`, whatever its name is now."""
        return self.there and (self._device, self._inode) == (place.device, place.inode)

    def has(self, place: _Place) -> bool:
        """Whether the bytes that ended at `place` are in it, at that place."""
        start = place.size - len(place.before)
        return self.size >= place.size and self.read(start, len(place.before)) == place.before

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer where the file was truncated meanwhile or cannot be read."""
        data = bytearray()
        while self._descriptor is not None and len(data) < size:
            try:
                piece = os.pread(self._descriptor, min(size - len(data), _BLOCK), offset + len(data))
            except OSError:
                break
            if not piece:
                break
            data += piece
        return bytes(data)

    def line_of(self, word: bytes) -> int | None:
        """Offset of the line that first has `word`, at most _SEARCHED_BYTES before the end."""
        start = max(0, self.size - _SEARCHED_BYTES)
        line, kept = start, b""  # where the line begins, and the bytes since then that were read
        for offset in range(start, self.size, _BLOCK):
            kept += self.read(offset, min(_BLOCK, self.size - offset))
            at = kept.find(word)
            if at >= 0:
                return line + kept.rfind(b"\n", 0, at) + 1
            # A line of more than a block is not kept whole: what follows would be searched again and again.
            end = max(kept.rfind(b"\n") + 1, len(kept) - _BLOCK)
            line, kept = line + end, kept[end:]
        return None

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _opened(path: Path) -> _File:
    """The file, or an empty one where it cannot be read or is none (a FIFO would be emptied by reading)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return _File(None)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return _File(None)
    return _File(descriptor)
