#!/usr/bin/python3 -I
"""Faults of a lab guest's memory, sent over SSH: dirty the CMA area, pin pages in it, or take all memory.

fault_memory.py dirty ROUNDS          fills and frees; ends; one JSON line says how far the area was used
fault_memory.py pin EVERY             holds one page of the area in each EVERY bytes, until it is killed
fault_memory.py fill LEAVE            takes memory until LEAVE bytes are available, until it is killed
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import mmap
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CHUNK = 16 << 20
PAGE = 4096
PATTERN = b"\xa5" * CHUNK
RESERVE_KB = 80 << 10  # what sshd and an agent need while we hold the rest
# While the area is filled nobody else needs memory, and the last free pages are half of them the area's.
DIRTY_RESERVE_KB = 28 << 10
DIRTY_CHUNK = 2 << 20
PIN_ROUNDS = 4
LOOKS_A_PART = 16
HOLD_SECONDS = 3600.0
MADV_HUGEPAGE, MADV_NOHUGEPAGE = 14, 15  # include/uapi/asm-generic/mman-common.h
PFN_MASK = (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
PRESENT = 1 << 63


def say(**told: object) -> None:
    print(json.dumps(told), flush=True)


def meminfo(name: str) -> int:
    """KiB; 0 where the kernel has no such line."""
    match = re.search(rf"^{name}:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def take(size: int = CHUNK, advice: int = MADV_NOHUGEPAGE) -> mmap.mmap:
    """A chunk of user memory with the pattern in it. User pages are movable: they may lie in CMA."""
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    chunk.madvise(advice)
    chunk.write(PATTERN[:size])
    return chunk


def take_until(left_kb: int) -> Iterator[mmap.mmap]:
    """Chunks until so little is available: large ones of huge pages, then small ones for the rest.

    An emulated guest takes a huge page in the time of a small one.
    """
    while (left := meminfo("MemAvailable") - left_kb) > DIRTY_CHUNK >> 10:
        yield take(CHUNK, MADV_HUGEPAGE) if left > 4 * CHUNK >> 10 else take(DIRTY_CHUNK)


def dirty(rounds: int) -> None:
    total, least = meminfo("CmaTotal"), meminfo("CmaFree")
    done = 0
    for _ in range(rounds):
        done += 1
        held = []
        for chunk in take_until(DIRTY_RESERVE_KB):
            held.append(chunk)
            least = min(least, meminfo("CmaFree"))
        for chunk in held:
            chunk.close()
        if least * 20 < total:
            break
    say(rounds=done, cma_total_kb=total, least_free_kb=least, cma_free_kb=meminfo("CmaFree"))


def area() -> tuple[int, int]:
    """The first and the one past the last page frame of the default area, from the boot log."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    while True:
        try:
            record = os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            sys.exit("the boot log tells of no CMA area")
        match = re.search(r"cma: Reserved (\d+) MiB at (0x[0-9a-f]+)", record)
        if match:
            base = int(match[2], 16)
            return base // PAGE, (base + (int(match[1]) << 20)) // PAGE


def frames(chunk: mmap.mmap) -> tuple[int, list[int]]:
    """The chunk's address, and the page frame of each of its pages (0: not there)."""
    view = ctypes.c_char.from_buffer(chunk)
    address = ctypes.addressof(view)
    del view
    pages = len(chunk) // PAGE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entries = struct.unpack(f"<{pages}Q", pagemap.read(pages * 8))
    return address, [entry & PFN_MASK if entry & PRESENT else 0 for entry in entries]


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def pin(every: int) -> None:
    first, last = area()
    step = every // PAGE
    parts = -(-(last - first) // step)
    out, into = os.pipe()
    # A pipe holds one page a slot; root may go beyond fs.pipe-max-size.
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, parts * PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    pinned: set[int] = set()
    # What is free at the end of one round is held by user pages in another.
    for _ in range(PIN_ROUNDS):
        # Clean page cache makes room (Documentation/admin-guide/sysctl/vm.rst).
        Path("/proc/sys/vm/drop_caches").write_text("3")
        held, before = list(take_until(DIRTY_RESERVE_KB)), len(pinned)
        for chunk in held:
            address, numbers = frames(chunk)
            # Neighbours in memory are mostly neighbours in the area: a look here and there finds each part.
            for index in range(0, len(numbers), max(1, step // LOOKS_A_PART)):
                frame = numbers[index]
                part = (frame - first) // step
                if not first <= frame < last or part in pinned:
                    continue
                vector = IoVec(address + index * PAGE, PAGE)
                if libc.vmsplice(into, ctypes.byref(vector), ctypes.c_ulong(1), ctypes.c_uint(0)) == PAGE:
                    pinned.add(part)
        for chunk in held:
            chunk.close()
        if len(pinned) - before <= parts // 50:
            break
    longest = max((len(run) for run in gaps(parts, pinned)), default=0)
    say(pinned=len(pinned), parts=parts, largest_gap=longest * every, pid=os.getpid())
    time.sleep(HOLD_SECONDS)
    os.close(out)


def gaps(parts: int, pinned: set[int]) -> list[range]:
    """The runs of parts in which nothing is pinned."""
    marks = [-1, *sorted(pinned), parts]
    return [range(low + 1, high) for low, high in itertools.pairwise(marks)]


def fill(leave: int) -> None:
    Path("/proc/self/oom_score_adj").write_text("-1000")
    held = list(take_until(leave >> 10))
    say(taken_kb=sum(map(len, held)) >> 10, available_kb=meminfo("MemAvailable"), pid=os.getpid())
    time.sleep(HOLD_SECONDS)


def main(words: list[str]) -> None:
    {"dirty": dirty, "pin": pin, "fill": fill}[words[0]](int(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
