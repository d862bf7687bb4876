"""What must hold before a load is tried: a load that fails after placement leaks CMA until the next boot.

Header offsets: Documentation/arch/x86/boot.rst (protocol 2.06 for cmdline_size, 2.10 for init_size) and
Documentation/arch/arm64/booting.rst.
"""

import os
import struct
from typing import NamedTuple, Optional

from workers.hostagent.cma import meminfo
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.files import read_int, read_line

# arch/x86/kernel/kexec-bzimage64.c, MAX_ELFCOREHDR_STR_LEN: kept free on every command line.
_CMDLINE_RESERVE = 30
# arch/arm64/include/uapi/asm/setup.h, COMMAND_LINE_SIZE: a longer one would be cut off by the new kernel.
_ARM64_CMDLINE = 2048
# Purgatory, boot parameters, device tree: some tens of KiB.
_SMALL_SEGMENTS = 1 << 20


class Header(NamedTuple):
    """What the image says of itself; None where it does not say."""

    cmdline_size: Optional[int]
    memory: Optional[int]


def parse_header(head: bytes) -> Header:
    """The first 4096 bytes of a kernel image (x86 bzImage or arm64 Image; anything else says nothing)."""
    if len(head) >= 0x264 and head[0x202:0x206] == b"HdrS":
        version = struct.unpack_from("<H", head, 0x206)[0]
        cmdline_size = struct.unpack_from("<I", head, 0x238)[0] if version >= 0x206 else 255
        init_size = struct.unpack_from("<I", head, 0x260)[0] if version >= 0x20A else None
        return Header(cmdline_size, init_size)
    if len(head) >= 64 and head[56:60] == b"ARM\x64":
        return Header(_ARM64_CMDLINE + _CMDLINE_RESERVE, struct.unpack_from("<Q", head, 16)[0] or None)
    return Header(None, None)


class Sizes(NamedTuple):
    """Bytes: the two files, and about what the loaded segments will take."""

    kernel: int
    initrd: int
    estimate: int


def measure(header: Header, kernel_fd: int, initrd_fd: Optional[int]) -> Sizes:
    kernel = os.fstat(kernel_fd).st_size
    initrd = 0 if initrd_fd is None else os.fstat(initrd_fd).st_size
    return Sizes(kernel, initrd, max(header.memory or 0, kernel) + initrd + _SMALL_SEGMENTS)


def check_cmdline(header: Header, cmdline: bytes) -> None:
    """Raises AgentError `cmdline_too_long`; the kernel would answer a bare EINVAL."""
    if b"\0" in cmdline:
        raise AgentError("bad_request", "the command line holds a NUL byte")
    if header.cmdline_size is None:
        return
    room = header.cmdline_size - _CMDLINE_RESERVE
    if len(cmdline) + 1 > room:
        raise AgentError(
            "cmdline_too_long",
            "the command line takes {} bytes with its NUL, this image accepts {}".format(
                len(cmdline) + 1, room
            ),
            "shorten the command line",
            detail={"length": len(cmdline) + 1, "room": room, "cmdline_size": header.cmdline_size},
        )


def check_memory(env: Environment, sizes: Sizes) -> None:
    """Raises AgentError `too_big` (the kernel's own rule) or `no_memory`, both with the figures in bytes.

    The rule: all segments together take at most half of the pages in RAM (sanity_check_segment_list,
    kernel/kexec_core.c). During the load both files also lie in kernel buffers beside their segments
    (kimage_file_prepare_segments, kernel/kexec_file.c).
    """
    memory = meminfo(env)
    total, available = memory.get("MemTotal"), memory.get("MemAvailable")
    if total is None or available is None:
        return
    figures = {
        "kernel": sizes.kernel,
        "initrd": sizes.initrd,
        "estimate": sizes.estimate,
        "needed": sizes.estimate + sizes.kernel + sizes.initrd,
        "ram": total * 1024,
        "available": available * 1024,
    }
    if sizes.estimate > total * 1024 // 2:
        raise AgentError(
            "too_big",
            "the segments take about {} bytes, over half of this host's {} bytes of RAM".format(
                sizes.estimate, total * 1024
            ),
            "use a smaller initrd: the kernel refuses such an image, and each refusal leaks CMA",
            detail=figures,
        )
    if figures["needed"] > available * 1024:
        raise AgentError(
            "no_memory",
            "loading takes about {} bytes, {} are available".format(figures["needed"], available * 1024),
            "free memory (stop services) and load again",
            detail=figures,
        )


def check_allowed(env: Environment) -> None:
    """Raises AgentError `load_disabled` (Documentation/admin-guide/sysctl/kernel.rst), `no_kexec`.

    Unloading counts against the limit as loading does: an image that could not be unloaded again is not
    loaded.
    """
    if env.kexec_loaded() is None:
        raise AgentError("no_kexec", "this kernel has no kexec (/sys/kernel/kexec_loaded is missing)")
    limit = read_int(env.proc + "/sys/kernel/kexec_load_limit_reboot")
    if read_line(env.proc + "/sys/kernel/kexec_load_disabled") == "1":
        raise AgentError(
            "load_disabled",
            "kernel.kexec_load_disabled is 1",
            "it stays so until the next boot: this host needs a reboot through its firmware",
            detail={"load_disabled": 1, "load_limit_reboot": limit},
        )
    if limit is not None and 0 <= limit < 2:
        raise AgentError(
            "load_disabled",
            "kernel.kexec_load_limit_reboot leaves {} calls, a load and its unload need 2".format(limit),
            "it stays so until the next boot: this host needs a reboot through its firmware",
            detail={"load_disabled": 0, "load_limit_reboot": limit},
        )
