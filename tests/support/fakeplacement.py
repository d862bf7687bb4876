"""What a kernel writes about a load, and what its memory then holds, for the fake host.

The records have the form of Linux 7.3.4's (tests/unit/data/loads); the area is cma=384M of a lab VM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.agentanswers import LoadAnswer

MIB = 1 << 20
PAGE = 4096
AREA = 0x60C00000
AREA_PAGES = 98304
FREE = AREA_PAGES - 64  # the DMA pool at the area's start
INIT_SIZE = 60 * MIB
NO_CMA = 0x10
RESERVED_LINE = f"6,43,0,-;cma: Reserved 384 MiB at 0x{AREA:016x}"


def counters(taken: int) -> dict[str, Any]:
    """`cma_before` and `cma_after` with so many pages taken by a load."""
    area = {
        "total_pages": AREA_PAGES,
        "available_pages": FREE - taken,
        "alloc_pages_success": 64 + taken,
        "alloc_pages_fail": 0,
        "release_pages_success": 0,
    }
    return {"areas": {"reserved": area}}


def loaded(
    flags: int, kernel_at: int, kernel_size: int, initrd_size: int, memsz: int = INIT_SIZE
) -> LoadAnswer:
    """A load that worked: in CMA with the kernel at that address, or copied where NO_CMA is set."""
    base = AREA if not flags & NO_CMA else 0x7AC00000
    setup = 4 * 512
    end = kernel_at + memsz
    pages = -(-initrd_size // PAGE)
    segments = [
        ("purgatory", base + 0x48000, 0x4000, 0x5000),
        ("boot_param, command line and misc", base + 0x4D000, 0x1100, 0x2000),
        ("64bit kernel", kernel_at, kernel_size - setup, memsz),
    ]
    if initrd_size:
        segments.append(("initrd", end, initrd_size, pages * PAGE))
    lines = [
        f"6,{n},1,-;kexec-bzImage64: Loaded {name} at 0x{at:x} bufsz=0x{buf:x} memsz=0x{mem:x}"
        for n, (name, at, buf, mem) in enumerate(segments)
    ]
    lines.append(f"6,50,1,-;kexec_file: nr_segments = {len(segments)}")
    lines += [
        f"6,{60 + n},1,-;kexec_file: segment[{n}]: buf=0x00000000deadbeef bufsz=0x{buf:x} mem=0x{at:x} "
        f"memsz=0x{mem:x}"
        for n, (_, at, buf, mem) in enumerate(segments)
    ]
    in_cma = not flags & NO_CMA
    head = 0x4 if in_cma else 0x26E2002
    lines.append(
        f"6,80,1,-;kexec_file: kexec_file_load: type:0, start:0x{base + 0x48130:x} head:0x{head:x} "
        f"flags:0x{flags:x}"
    )
    taken = sum(mem for *_, mem in segments) // PAGE if in_cma else 0
    return LoadAnswer(
        "loaded", 1.0, None, None, flags, tuple(lines), True, counters(0), counters(taken), 1, {}
    )


def read_back(segments: Sequence[Mapping[str, Any]], **changes: object) -> dict[str, Any]:
    """The agent's answer where everything lies in memory as it was loaded; `changes` go to every segment."""
    answers = [
        {
            "index": one["index"],
            "readable": True,
            "why_not": "",
            "bytes_read": one["memsz"],
            "body_compared": one["file"] is not None,
            "body_differs": 0 if one["file"] is not None else None,
            "first_difference": None,
            "tail_nonzero": 0,
            "first_tail_nonzero": None,
            "found": [True for _ in one["search"]],
            **changes,
        }
        for one in segments
    ]
    return {"source": "kcore", "seconds": 0.1, "segments": answers}
