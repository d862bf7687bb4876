"""Which archives an initrd is made of, as the kernel will see them.

Source: unpack_to_rootfs in init/initramfs.c and compressed_formats in lib/decompress.c (Linux 7.2): archives
stand one behind the other, zero bytes between them are skipped, `0` at a multiple of four begins an
uncompressed cpio, all else must begin with a compressor's magic or is "invalid magic at start of compressed
archive".
"""

from __future__ import annotations

from mmap import mmap

from orchestrator.domain.errors import InputError

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9e": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_CPIO_MAGICS = (b"070701", b"070702")
# The fixed part of a newc member: 6 bytes of magic and 13 fields of 8 hex digits (cpio(5)).
_CPIO_HEADER = 110
_CPIO_TRAILER = b"TRAILER!!!"
_CHUNK = 1 << 20
_HINT = (
    "name an initrd such as /boot/initrd.img-...: cpio (newc), plain or packed with gzip, xz, zstd, lz4, ..."
)


def archive_formats(data: bytes | mmap) -> tuple[str, ...]:
    """The archives' formats in order, as ("cpio", "zstd") for early microcode before a packed archive.

    What follows a packed archive is not looked at: its end is known only by unpacking. Raises InputError when
    the kernel would find no archive, or something else behind one.
    """
    if not len(data):
        raise InputError("not an initrd archive: the file is empty", hint=_HINT)
    found: list[str] = []
    at = _skip_zeros(data, 0)
    while at < len(data):
        magic = bytes(data[at : at + 6])
        if magic in _CPIO_MAGICS and at % 4 == 0:
            found.append("cpio")
            at = _skip_zeros(data, _cpio_end(data, at))
            continue
        packed = next((name for known, name in _COMPRESSED.items() if magic.startswith(known)), None)
        if packed:
            return (*found, packed)
        if magic == b"070707":
            raise InputError("a cpio archive of the old format", hint="make it with `cpio -H newc`")
        place = f" at byte {at}, behind {' and '.join(found)}" if found else ""
        raise InputError(f"not an initrd archive{place}: it begins with {magic!r}", hint=_HINT)
    if not found:
        raise InputError("not an initrd archive: nothing but zeros", hint=_HINT)
    return tuple(found)


def _skip_zeros(data: bytes | mmap, at: int) -> int:
    """The offset of the next byte that is not zero, or the end."""
    while at < len(data):
        chunk = data[at : at + _CHUNK]
        rest = chunk.lstrip(b"\0")
        if rest:
            return at + len(chunk) - len(rest)
        at += len(chunk)
    return at


def _cpio_end(data: bytes | mmap, at: int) -> int:
    """The offset behind the trailer of the cpio archive at `at`. Raises InputError when it is cut off."""
    while True:
        header = bytes(data[at : at + _CPIO_HEADER])
        try:
            if header[:6] not in _CPIO_MAGICS or len(header) < _CPIO_HEADER:
                raise ValueError
            file_size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            raise InputError(
                f"a damaged cpio archive: no member at byte {at}, and no trailer before it",
                hint="make or fetch the initrd again",
            ) from None
        name_at = at + _CPIO_HEADER
        name = bytes(data[name_at : name_at + min(name_size, 64)]).rstrip(b"\0")
        end = _aligned(_aligned(name_at + name_size) + file_size)
        if name == _CPIO_TRAILER:
            return min(end, len(data))
        at = end


def _aligned(offset: int) -> int:
    """Members and their data begin at multiples of four."""
    return (offset + 3) & ~3
