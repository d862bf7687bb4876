"""The guest's RAM as this machine sees it: what a load left there, and pages that nobody uses."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator.lab.vm import Vm

PAGE = 4096


@contextmanager
def opened(vm: Vm) -> Iterator[mmap.mmap]:
    """The RAM, readable and writable, while QEMU lives. Raises LabError where it is not shared."""
    with vm.guest_ram().open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def segment_of(segments: Sequence[Mapping[str, Any]], role: str) -> Mapping[str, Any] | None:
    """The segment of a journaled placement with that role."""
    return next((segment for segment in segments if segment.get("role") == role), None)


def digest_stored(memory: mmap.mmap, segments: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the purgatory that lies in CMA is told to check the kernel segment.

    purgatory_sha_regions is an array of {start, len}, filled by kexec_calculate_store_digests() for each
    segment but purgatory itself, and left zero where the kernel skips the digest (Linux 7.2 and 7.3,
    kernel/kexec_file.c, include/linux/purgatory.h). None: there is no such segment to look at, or
    what lies there is not purgatory (a segment that will be copied is not at its place yet).
    """
    purgatory, kernel = segment_of(segments, "purgatory"), segment_of(segments, "kernel")
    if purgatory is None or kernel is None:
        return None
    start = int(purgatory["address"])
    body = memory[start : start + int(purgatory["memsz"])]
    if struct.pack("<QQ", int(kernel["address"]), int(kernel["memsz"])) in body:
        return True
    # The kernel's entry is patched into purgatory's code data in any case: without it this is something else.
    return False if struct.pack("<Q", int(kernel["address"]) + 0x200) in body else None


def free_page_near(memory: mmap.mmap, first: int, end: int) -> int | None:
    """A page between two physical addresses that holds only zeros, from the middle on and then before it.

    Most likely nobody uses it: a stray write there harms nothing of the old kernel. None: there is none.
    """
    middle = (first + end) // 2 // PAGE * PAGE
    low = -(-first // PAGE) * PAGE
    for page in (*range(middle, end - PAGE + 1, PAGE), *range(middle - PAGE, low - 1, -PAGE)):
        if memory[page : page + PAGE].count(0) == PAGE:
            return int(page)
    return None
