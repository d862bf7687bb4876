"""The means of a repair: files derived from the real ones, spacers to hold pages, zeros to wash them.

Run on stock 7.2.12 and, the tiny spacer, 7.3.4: see docs of `repair`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.bootimage import BootHeader
from orchestrator.domain.cmamodel import MIB, Area, Placed, Span, Wanted, image_segments, place, round_up
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.placement import Role

SMALLEST_PAGE = 4096
"""Where the facts do not tell the page size."""

TINY_BODY = 4096
"""Bytes of a tiny spacer behind its setup part: enough for bzImage64_load, never run."""

_INIT_SIZE_AT = 0x260  # Documentation/arch/x86/boot.rst, u32
_WASH_PAGES = (8, 16, 32, 64, 128, 240, 512, 1024, 4096)
"""Sizes tried for the zeros that wash a small page; 240 fill the rest of the area's first MiB."""


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A file made on the host: `take` bytes of the real one (None: all), zeros up to `size`, then patches."""

    role: str  # "kernel" or "initrd"
    take: int | None
    size: int
    patches: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spacer:
    """An image that is loaded only to hold pages. `memory`: bytes that its kernel segment takes.

    `kernel` None: the real file whole. `with_initrd` False: loaded without an initrd (NO_INITRAMFS); True:
    with `initrd`, or the real one whole where that is None. `alone`: unload what is loaded before it.
    """

    kernel: Derived | None
    with_initrd: bool
    memory: int
    initrd: Derived | None = None
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the planning goes from."""

    header: BootHeader
    page_size: int
    kernel_size: int
    initrd_size: int
    small: tuple[int, int]  # memsz of purgatory and of the boot parameters
    signed_only: bool

    def wanted(self, init_size: int, initrd_size: int | None) -> tuple[Wanted, ...]:
        purgatory, parameters = self.small
        return image_segments(
            self.header,
            init_size,
            initrd_size,
            page_size=self.page_size,
            purgatory=purgatory,
            parameters=parameters,
        )

    @property
    def image(self) -> tuple[Wanted, ...]:
        return self.wanted(self.header.init_size, self.initrd_size or None)

    def spacer(self, spacer: Spacer) -> tuple[Wanted, ...]:
        size = None
        if spacer.with_initrd:
            size = self.initrd_size if spacer.initrd is None else spacer.initrd.size
        return self.wanted(spacer.memory, size or None)


def padding(job: Job, stale: set[Role]) -> tuple[Derived | None, Derived | None]:
    """Files without tails for those roles; not the kernel's where its signature must hold."""
    kernel = initrd = None
    if Role.KERNEL in stale and not job.signed_only:
        size = job.header.setup_size + round_up(job.header.init_size, job.page_size)
        kernel = Derived(role="kernel", take=None, size=size) if size > job.kernel_size else None
    if Role.INITRD in stale:
        size = round_up(job.initrd_size, job.page_size)
        initrd = Derived(role="initrd", take=None, size=size) if size > job.initrd_size else None
    return kernel, initrd


def arrangements(job: Job, wash: bool) -> Iterator[tuple[Spacer, ...]]:
    """Spacers to try in the model, cheapest first; `wash` needs one, else the pages are the washer's."""
    if not wash:
        yield ()
    steps = max(4, 2 * job.header.kernel_alignment // MIB)
    if not job.signed_only:
        for mebibytes in range(1, steps + 1):
            yield (tiny_spacer(job.header, mebibytes * MIB),)
        return
    memory = round_up(job.header.init_size, job.page_size)
    yield (Spacer(kernel=None, with_initrd=False, memory=memory),)
    for mebibytes in range(1, steps + 1):
        filler = Derived(role="initrd", take=0, size=mebibytes * MIB)
        yield (Spacer(kernel=None, with_initrd=True, memory=memory, initrd=filler),)
    if job.initrd_size:
        yield (Spacer(kernel=None, with_initrd=True, memory=memory),)


def tiny_spacer(header: BootHeader, memory: int) -> Spacer:
    """A spacer of the real image's head whose kernel segment takes `memory` bytes (init_size patched)."""
    size = header.setup_size + TINY_BODY
    patch = (_INIT_SIZE_AT, struct.pack("<I", memory))
    kernel = Derived(role="kernel", take=size, size=size, patches=(patch,))
    return Spacer(kernel=kernel, with_initrd=False, memory=memory)


def targets(job: Job, wash: set[Role], image: Sequence[Placed]) -> tuple[Span, ...]:
    """The pages of the placed image that must hold zeros before it is loaded: the tails of those roles."""
    bodies = {Role.KERNEL: job.kernel_size - job.header.setup_size}
    found = []
    for one in image:
        if one.role in wash and one.span is not None:
            body = max(bodies.get(one.role, 0), 0) // job.page_size * job.page_size
            found.append(Span(one.span.start + body, one.span.end))
    return tuple(span for span in found if span.start < span.end)


def washed(
    area: Area, job: Job, spacers: tuple[Spacer, ...], wanted: Sequence[Span]
) -> tuple[Spacer, ...] | None:
    """The spacers with loads before them whose initrds of zeros cover what is wanted; None: there are none.

    Each washer is unloaded again, and what it wrote stays: pages are cleared when they are handed out, if at
    all (post_alloc_hook, mm/page_alloc.c, Linux 7.2), never when they come back.
    """
    washers: list[Spacer] = []
    for target in wanted:
        washer = _washer(area, job, target)
        if washer is None:
            return None
        if washer not in washers:
            washers.append(washer)
    alone = [replace(washer, alone=number > 0) for number, washer in enumerate(washers)]
    return (*alone, *(replace(spacer, alone=number == 0) for number, spacer in enumerate(spacers)))


def _washer(area: Area, job: Job, target: Span) -> Spacer | None:
    """The smallest load whose zeros cover `target`.

    All washers have their other segments, which are placed first, at the same places: none soils what the
    zeros of another one can cover.
    """
    base = tiny_spacer(job.header, MIB)
    if job.signed_only:
        base = Spacer(kernel=None, with_initrd=False, memory=round_up(job.header.init_size, job.page_size))
    rest = range(16 * MIB, area.size, 16 * MIB)
    for size in (*(pages * job.page_size for pages in _WASH_PAGES), *rest):
        washer = replace(base, with_initrd=True, initrd=Derived(role="initrd", take=0, size=size))
        placed = place(area, job.spacer(washer))
        zeros = next(one.span for one in placed if one.role is Role.INITRD)
        if zeros is not None and zeros.start <= target.start and target.end <= zeros.end:
            return washer
    return None


def needed_area(facts: HostFacts, header: BootHeader, initrd_size: int, *, signed_only: bool) -> int:
    """Bytes of CMA that hold this image and its spacer, in whole 16 MiB: what `cma=` should say.

    Counted: what others hold now, the small segments and the first boundary (1 MiB), kernel and initrd, and
    the spacer (one kernel_alignment, or the image's kernel again where only signed images load).
    """
    page_size = facts.page_size or SMALLEST_PAGE
    kernel = round_up(header.init_size, page_size)
    spacer = header.kernel_alignment + (kernel if signed_only else 0)
    area = facts.default_area
    others = MIB
    if area is not None and area.total_pages is not None and area.available_pages is not None:
        others = max((area.total_pages - area.available_pages) * page_size, 0)
    return round_up(others + MIB + kernel + round_up(initrd_size, page_size) + spacer, 16 * MIB)
