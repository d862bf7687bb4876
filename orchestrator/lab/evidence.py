"""What a kernel image can do, read from the image itself: never guessed from its version.

A bzImage carries a compressed ELF whose BTF type information names structure members and functions.
`struct kimage` has a member `no_cma` where the kernel handles KEXEC_FILE_NO_CMA (kernel/kexec_file.c sets it
from the flag). Checked against the call itself: there in 6.18.15 and 7.2.12, which answer EBADF to the flag;
absent in 6.12.117 and 6.16.12, which answer EINVAL. `cma_alloc` is there where CONFIG_CMA is set (7.2.12,
7.3.4), `__x64_sys_kexec_file_load` where CONFIG_KEXEC_FILE is.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import zstandard

from orchestrator.domain.errors import InputError

BZIMAGE_MAGIC = b"HdrS"
BTF_MAGIC = b"\x9f\xeb\x01\x00"


@dataclass(frozen=True)
class KernelCapabilities:
    """None where the image gives no evidence (built without BTF and without a config file)."""

    kexec_file: bool | None
    cma: bool | None
    no_cma_flag: bool | None

    @property
    def role(self) -> str:
        """cma: places images in CMA; flag: knows the flag, has no CMA; old: knows neither."""
        if self.cma:
            return "cma"
        if self.no_cma_flag:
            return "flag"
        return "old" if self.no_cma_flag is False else "unknown"


def read_release(image: bytes, name: str) -> str:
    """The release string that the bzImage's header points to (Documentation/arch/x86/boot.rst)."""
    if image[0x202:0x206] != BZIMAGE_MAGIC:
        raise InputError(
            f"{name} is not an x86 kernel image (bzImage)", hint="give the path of a vmlinuz file"
        )
    (offset,) = struct.unpack_from("<H", image, 0x20E)
    text = image[offset + 0x200 : offset + 0x300].split(b"\0", 1)[0].decode("ascii", "replace")
    return text.split(" ", 1)[0]


def decompress(image: bytes) -> bytes | None:
    """The ELF inside a bzImage, or None where the compression is one that we cannot undo (lz4, lzo)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        if payload.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload)
        if payload.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            return lzma.LZMADecompressor().decompress(payload)
    except (zstandard.ZstdError, zlib.error, lzma.LZMAError):
        return None
    return None


def btf_strings(elf: bytes) -> bytes | None:
    """The strings of the kernel's own BTF blob (Documentation/bpf/btf.rst); the largest is vmlinux's."""
    best = b""
    position = elf.find(BTF_MAGIC)
    while position >= 0:
        header = elf[position : position + 24]
        if len(header) == 24:
            header_length, _type_off, _type_len, string_off, string_len = struct.unpack_from(
                "<IIIII", header, 4
            )
            start = position + header_length + string_off
            if header_length == 24 and len(best) < string_len <= len(elf) - start and elf[start] == 0:
                best = elf[start : start + string_len]
        position = elf.find(BTF_MAGIC, position + 1)
    return best or None


def read_config(text: str) -> dict[str, str]:
    """CONFIG_X=value lines; what is "not set" is not in the result."""
    pairs = (line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def judge(vmlinuz: Path, config: Path | None) -> KernelCapabilities:
    """The config file decides where there is one; the image's type information for the rest."""
    elf = decompress(vmlinuz.read_bytes())
    strings = btf_strings(elf) if elf is not None else None

    def named(symbol: str) -> bool | None:
        return None if strings is None else b"\0" + symbol.encode() + b"\0" in strings

    kexec_file, cma = named("__x64_sys_kexec_file_load"), named("cma_alloc")
    if config is not None:
        settings = read_config(config.read_text(encoding="utf-8", errors="replace"))
        kexec_file = settings.get("CONFIG_KEXEC_FILE") == "y"
        cma = settings.get("CONFIG_CMA") == "y"
    return KernelCapabilities(kexec_file=kexec_file, cma=cma, no_cma_flag=named("no_cma"))
