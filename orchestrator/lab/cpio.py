"""Writes initramfs archives (cpio "newc", Documentation/driver-api/early-userspace/buffer-format.rst).

Written here, not by a tool: the same content always gives the same bytes, and device nodes need no root.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    path: str  # without a leading slash
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, content)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, b"", (major, minor))


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _header(number: int, entry: Entry) -> bytes:
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,  # links
        0,  # mtime
        len(entry.content),
        0,  # major and minor of the archive's own device
        0,
        *entry.device,
        len(entry.path) + 1,
        0,  # checksum, unused in this variant
    )
    return b"070701" + b"".join(b"%08X" % field for field in fields)


def archive(entries: list[Entry]) -> bytes:
    """A whole archive, its length a multiple of 512, ready to be followed by another."""
    parts = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        parts.append(_pad(_header(number if entry.mode else 0, entry) + name))
        parts.append(_pad(entry.content))
    data = b"".join(parts)
    return data + b"\0" * (-len(data) % 512)
