"""What is packed inside a bzImage: the vmlinux ELF, and the build-id that names it.

scripts/Makefile.lib and arch/x86/boot/compressed (Linux 7.2): the payload is one compressed stream, behind
which some compressors' output is followed by the unpacked size in four bytes; unpacked it is vmlinux and,
behind the ELF, relocation tables.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable

from orchestrator.domain.bootimage import BootHeader, parse_header

# A vmlinux without debug information has 50 to 120 MB; a bomb in its place ends here.
MAX_UNPACKED = 512 * 1024 * 1024
# The kernel packs with `zstd -22 --ultra`: a window of 2^27 bytes.
_ZSTD_WINDOW = 1 << 28
_NT_GNU_BUILD_ID = 3
_MAX_BUILD_ID = 64


def build_id(image: bytes) -> str | None:
    """The GNU build-id (lower-case hex) of a kernel image, as /sys/kernel/notes will carry it.

    None when the payload cannot be unpacked here (lz4, lzo, arm64) or has no such note. Raises BootImageError
    when `image` is no kernel image.
    """
    vmlinux = unpack(image, parse_header(image, len(image)))
    return elf_build_id(vmlinux) if vmlinux else None


def unpack(image: bytes, header: BootHeader) -> bytes | None:
    """The ELF and relocation tables packed in `image`; None: format not known, or data damaged."""
    packed = image[header.payload_offset : header.payload_offset + header.payload_length]
    unpackers: dict[bytes, Callable[[bytes], bytes]] = {
        b"\x28\xb5\x2f\xfd": _unpack_zstd,
        b"\x1f\x8b": lambda data: zlib.decompressobj(wbits=31).decompress(data, MAX_UNPACKED),
        b"\xfd7zXZ\x00": lambda data: lzma.LZMADecompressor().decompress(data, MAX_UNPACKED),
        b"\x5d\x00": lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, MAX_UNPACKED),
        b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data, MAX_UNPACKED),
        b"\x7fELF": lambda data: data,
    }
    for magic, unpacker in unpackers.items():
        if packed.startswith(magic):
            try:
                return unpacker(packed)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, MemoryError):
                return None
    return None


def _unpack_zstd(packed: bytes) -> bytes:
    """A zstd frame; what follows it is left alone."""
    import zstandard  # takes 20 ms to import, and few commands need it

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(packed, read_across_frames=False) as reader:
            return reader.read(MAX_UNPACKED)
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from None


def elf_build_id(vmlinux: bytes) -> str | None:
    """The GNU build-id note of an ELF file, or None."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    try:
        elf = ELFFile(io.BytesIO(vmlinux))
        segments = (segment for segment in elf.iter_segments() if isinstance(segment, NoteSegment))
        for segment in segments:
            for note in segment.iter_notes():
                if note["n_name"] == "GNU" and note["n_type"] in ("NT_GNU_BUILD_ID", _NT_GNU_BUILD_ID):
                    digits = str(note["n_desc"])
                    return digits if 0 < len(digits) <= 2 * _MAX_BUILD_ID else None
    except (ELFError, ValueError, OverflowError):
        return None
    return None
