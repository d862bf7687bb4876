"""Small kernel images and initrds made from nothing, so that unit tests need no kernel package.

A bzImage here is a header (Documentation/arch/x86/boot.rst), a version text, and a payload: a packed ELF file
with one GNU build-id note. It parses like a real one and would not boot.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import zstandard

RELEASE = "7.3.4+deb13-cloud-amd64"
VERSION = f"{RELEASE} (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1 (2026-11-04)"
BUILD_ID = bytes(range(20))


def elf(build_id: bytes | None = BUILD_ID) -> bytes:
    """An ELF64 file with a PT_NOTE segment: a foreign note, and the build-id's if there is one."""
    notes = struct.pack("<III4s4s", 4, 4, 8, b"Xen\0", b"abcd")
    if build_id is not None:
        notes += struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id
    offset = 64 + 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    program = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(notes), len(notes), 4)
    return header + program + notes + bytes(64)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": _zstd,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


def bzimage(
    *, packer: str = "zstd", vmlinux: bytes | None = None, payload: bytes | None = None, **changes: int
) -> bytes:
    """A bzImage. `changes` overwrite header fields by name: setup_sects=0, init_size=..."""
    unpacked = elf() if vmlinux is None else vmlinux
    # As the kernel's build does (size_append in scripts/Makefile.lib): the unpacked size behind the stream.
    packed = PACKERS[packer](unpacked) + struct.pack("<I", len(unpacked)) if payload is None else payload
    fields: dict[str, tuple[int, str, int]] = {
        "setup_sects": (0x1F1, "<B", 3),
        "boot_flag": (0x1FE, "<H", 0xAA55),
        "protocol": (0x206, "<H", 0x020F),
        "kernel_version": (0x20E, "<H", 0x100),
        "loadflags": (0x211, "<B", 1),
        "kernel_alignment": (0x230, "<I", 2 << 20),
        "relocatable": (0x234, "<B", 1),
        "xloadflags": (0x236, "<H", 0x7F),
        "cmdline_size": (0x238, "<I", 2047),
        "payload_offset": (0x248, "<I", 512),
        "payload_length": (0x24C, "<I", len(packed)),
        "init_size": (0x260, "<I", 60 << 20),
    }
    head = bytearray(4 * 512)
    head[0x202:0x206] = b"HdrS"
    for name, (offset, layout, value) in fields.items():
        struct.pack_into(layout, head, offset, changes.get(name, value))
    text = VERSION.encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head) + bytes(512) + packed


def arm64_image(image_size: int = 40 << 20) -> bytes:
    """An aarch64 Image's header (Documentation/arch/arm64/booting.rst) and some bytes."""
    return struct.pack("<IIQQQQQQ4sI", 0, 0, 0, image_size, 10, 0, 0, 0, b"ARM\x64", 0) + bytes(4096)


def cpio(*names: str, trailer: bool = True) -> bytes:
    """A newc archive of empty-ish files."""
    members = [(name, f"{name}\n".encode()) for name in names]
    if trailer:
        members.append(("TRAILER!!!", b""))
    result = b""
    for name, data in members:
        fields = [0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + name.encode() + b"\0", data):
            result += part + bytes(-len(part) % 4)
    return result


def lab_variables(folder: Path) -> dict[str, str]:
    """Write a kernel and an initrd into `folder`; the variables with which the lab's playbooks find them."""
    image, initrd = folder / "vmlinuz", folder / "initrd.img"
    image.write_bytes(bzimage())
    initrd.write_bytes(cpio("early") + gzip.compress(cpio("init")))
    return {
        "lab_target_image": str(image),
        "lab_target_initrd": str(initrd),
        "lab_target_release": RELEASE,
        "lab_name": "default",
        "lab_program": "kexec-fleet",
    }
