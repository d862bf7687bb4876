"""What a kernel image's header says, and the files that a rollout will boot: bytes in, values out.

x86: Documentation/arch/x86/boot.rst; what kexec_file_load(2) asks of it: bzImage64_probe in
arch/x86/kernel/kexec-bzimage64.c (Linux 7.2). aarch64: Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import struct
from enum import StrEnum

from orchestrator.domain.errors import BootImageError as BootImageError
from orchestrator.domain.values import Value

# setup_sects is one byte: no header and no version string lies further in.
HEAD_BYTES = (255 + 1) * 512

_SECTOR = 512
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_BOOT_FLAG_AT, _BOOT_FLAG = 0x1FE, 0xAA55
# 2.12 brought xloadflags, without which the kernel's loader refuses an image.
_OLDEST_PROTOCOL = 0x020C
_LOADED_HIGH = 0x01
_XLF_KERNEL_64, _XLF_CAN_BE_LOADED_ABOVE_4G = 0x01, 0x02
_DEFAULT_SETUP_SECTS = 4
# Bounds beyond which a header is taken for damaged, far from any real kernel's (2 MiB, 64 MiB, 2047).
_MAX_ALIGNMENT = 1 << 30
_MAX_INIT_SIZE = 1 << 30
_MAX_CMDLINE = 1 << 16

_ARM64_MAGIC_AT, _ARM64_MAGIC = 56, b"ARM\x64"
_ARM64_ALIGNMENT = 2 * 1024 * 1024
_ARM64_CMDLINE = 2048  # COMMAND_LINE_SIZE, arch/arm64/include/uapi/asm/setup.h

_OTHER_FILES = {
    b"\x7fELF": "it is an ELF file such as vmlinux: name the bzImage that was made of it (vmlinuz)",
    b"\x1f\x8b": "it is a gzip file: unpack it, or name the vmlinuz",
    b"MZ\x00\x00zimg": "it is an EFI zboot image, which the kexec call does not take: name the Image",
    b"!<arch>\n": "it is an archive such as a Debian package: name the vmlinuz inside",
}


class ImageKind(StrEnum):
    """Which of the formats that kexec_file_load(2) takes."""

    BZIMAGE = "bzImage"
    ARM64 = "arm64 Image"


class BootHeader(Value):
    """A kernel image's header. Sizes are bytes, offsets count from the start of the file."""

    kind: ImageKind
    machine: str  # as uname -m says it
    protocol: str  # "2.15"; empty for arm64
    setup_size: int  # the real-mode part in front: (setup_sects + 1) * 512; 0 for arm64
    kernel_alignment: int
    init_size: int  # memory that the kernel needs from its start until it runs by itself
    cmdline_size: int  # longest command line without its NUL
    payload_offset: int
    payload_length: int  # 0 where nothing is packed
    version: str | None  # the whole text: "7.3.4+deb13-cloud-amd64 (debian-kernel@...) #1 SMP ..."

    @property
    def release(self) -> str | None:
        """What uname -r will say, None where the header does not tell."""
        return self.version.split(" ", 1)[0] if self.version else None


class KernelFile(Value):
    """A kernel image on the controller."""

    path: str
    sha256: str
    size: int
    header: BootHeader
    build_id: str | None  # hex of the GNU build-id note; None: the payload cannot be unpacked here


class InitrdFile(Value):
    """An initrd on the controller; `formats` names its archives in order, as far as they can be told."""

    path: str
    sha256: str
    size: int
    formats: tuple[str, ...]


class Images(Value):
    """The controller's files of a playbook; both None when the files lie on the hosts."""

    kernel: KernelFile | None = None
    initrd: InitrdFile | None = None


def parse_header(head: bytes, size: int | None = None) -> BootHeader:
    """The header of an image from its first HEAD_BYTES; 4096 do but for `version`.

    Where the image's `size` in bytes is given, what the header tells of it is checked.

    Raises BootImageError when it is no image that kexec_file_load(2) would take, or its header is absurd.
    """
    if head[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC and _u16(head, _BOOT_FLAG_AT) == _BOOT_FLAG:
        return _bzimage(head, size)
    if head[_ARM64_MAGIC_AT : _ARM64_MAGIC_AT + 4] == _ARM64_MAGIC:
        return _arm64(head)
    hint = next(
        (hint for magic, hint in _OTHER_FILES.items() if head.startswith(magic)),
        "name a kernel such as /boot/vmlinuz-...",
    )
    raise BootImageError("not a bzImage" if head else "not a bzImage: the file is empty", hint=hint)


def _bzimage(head: bytes, size: int | None) -> BootHeader:
    if len(head) < 0x268:
        raise _damaged("it ends inside its header")
    protocol = _u16(head, 0x206)
    loadflags, xloadflags = head[0x211], _u16(head, 0x236)
    if protocol < _OLDEST_PROTOCOL or not loadflags & _LOADED_HIGH or not head[0x234]:
        raise BootImageError(
            f"a bzImage that kexec_file_load(2) refuses: boot protocol {protocol >> 8}.{protocol & 0xFF:02}, "
            f"loadflags 0x{loadflags:x}, relocatable {head[0x234]}",
            hint="take a relocatable kernel with boot protocol 2.12 or newer (Linux 3.8)",
        )
    wanted = _XLF_KERNEL_64 | _XLF_CAN_BE_LOADED_ABOVE_4G
    if xloadflags & wanted != wanted:
        raise BootImageError("a bzImage for 32-bit machines", hint="take an amd64 kernel")
    setup_size = ((head[0x1F1] or _DEFAULT_SETUP_SECTS) + 1) * _SECTOR
    header = BootHeader(
        kind=ImageKind.BZIMAGE,
        machine="x86_64",
        protocol=f"{protocol >> 8}.{protocol & 0xFF:02}",
        setup_size=setup_size,
        kernel_alignment=_u32(head, 0x230),
        init_size=_u32(head, 0x260),
        cmdline_size=_u32(head, 0x238),
        payload_offset=setup_size + _u32(head, 0x248),
        payload_length=_u32(head, 0x24C),
        version=_version(head, setup_size),
    )
    _check(header, size)
    return header


def _version(head: bytes, setup_size: int) -> str | None:
    """The version text, which boot.rst puts at kernel_version + 0x200, inside the setup part; or None."""
    pointer = _u16(head, 0x20E)
    start = pointer + 0x200
    if not pointer or start >= min(setup_size, len(head)):
        return None
    raw, end, _ = head[start:setup_size].partition(b"\0")
    text = raw.decode("ascii", "replace")
    return text if end and text.isprintable() and "\ufffd" not in text and text.strip() else None


def _check(header: BootHeader, size: int | None) -> None:
    """Refuse a header whose figures cannot be. Raises BootImageError."""
    alignment = header.kernel_alignment
    if size is not None and size <= header.setup_size:
        raise _damaged(f"it has {size} bytes, its setup part alone takes {header.setup_size}")
    if alignment < 4096 or alignment > _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _damaged(f"kernel_alignment is 0x{alignment:x}")
    if not 0 < header.init_size <= _MAX_INIT_SIZE:
        raise _damaged(f"init_size is 0x{header.init_size:x}")
    if not 255 <= header.cmdline_size <= _MAX_CMDLINE:
        raise _damaged(f"cmdline_size is {header.cmdline_size}")
    if size is not None and header.payload_offset + header.payload_length > size:
        raise _damaged(
            f"its payload ends at byte {header.payload_offset + header.payload_length}, the file at {size}"
        )


def _damaged(what: str) -> BootImageError:
    return BootImageError(f"a damaged bzImage: {what}", hint="fetch the kernel again and compare its SHA-256")


def _arm64(head: bytes) -> BootHeader:
    image_size = struct.unpack_from("<Q", head, 16)[0]
    if not 0 < image_size <= _MAX_INIT_SIZE:
        raise BootImageError(
            f"a damaged arm64 Image: image_size is 0x{image_size:x}", hint="fetch the kernel again"
        )
    return BootHeader(
        kind=ImageKind.ARM64,
        machine="aarch64",
        protocol="",
        setup_size=0,
        kernel_alignment=_ARM64_ALIGNMENT,
        init_size=image_size,
        cmdline_size=_ARM64_CMDLINE,
        payload_offset=0,
        payload_length=0,
        version=None,
    )


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")
