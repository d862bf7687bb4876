"""A model of how the kernel places an image's segments in its CMA area, for planning a repair.

Source, Linux 6.17 to 7.3: kexec_alloc_contig and kexec_locate_mem_hole (kernel/kexec_file.c),
dma_alloc_from_contiguous (kernel/dma/contiguous.c), cma_range_alloc (mm/cma.c). Segment by segment: the
lowest free hole of the area's bitmap, aligned as asked but at most to CONFIG_CMA_ALIGNMENT; where pages
cannot be moved out of it the search goes on one alignment further, so a pinned page acts as a taken one; a
hole whose inclusive end touches an earlier segment of the same image is given back and not searched for
again; a segment without a hole goes elsewhere. The image that is loaded keeps its pages until the new one has
been placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.bootimage import BootHeader, ImageKind
from orchestrator.domain.loadrecords import Role

MIB = 1 << 20

ALIGNMENT_ORDER = 8
"""CONFIG_CMA_ALIGNMENT's default, an order of pages (kernel/dma/Kconfig): 1 MiB with pages of 4 KiB."""

PURGATORY_SIZE = 0x5000
PARAMETERS_SIZE = 0x2000
"""Sizes of the two small x86_64 segments where no load has told them: those of Debian's 7.2.12 and 7.3.4."""


@dataclass(frozen=True)
class Span:
    """Physical addresses [start, end)."""

    start: int
    end: int

    def meets(self, other: Span) -> bool:
        """Whether they share a byte."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, kw_only=True)
class Area:
    """The CMA area: its place, what others hold of it (bitmap), and pages that no migration frees."""

    base: int
    size: int
    page_size: int = 4096
    taken: tuple[Span, ...] = ()
    pinned: tuple[Span, ...] = ()
    alignment_order: int = ALIGNMENT_ORDER

    @property
    def end(self) -> int:
        """First address behind the area."""
        return self.base + self.size


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A segment to place; sizes are bytes."""

    role: Role
    memsz: int
    alignment: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where the model puts a segment; `span` None: not in the area."""

    role: Role
    span: Span | None


def round_up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def image_segments(
    header: BootHeader,
    init_size: int,
    initrd_size: int | None,
    *,
    page_size: int = 4096,
    purgatory: int = PURGATORY_SIZE,
    parameters: int = PARAMETERS_SIZE,
) -> tuple[Wanted, ...]:
    """What a load asks for, in the kernel's order. `initrd_size` None: loaded without one.

    x86_64: bzImage64_load; arm64: image_load and load_other_segments, without the device tree, whose size the
    image does not tell.
    """
    initrd = () if initrd_size is None else (_wanted(Role.INITRD, initrd_size, page_size, page_size),)
    kernel = _wanted(Role.KERNEL, init_size, header.kernel_alignment, page_size)
    if header.kind is not ImageKind.BZIMAGE:
        return (kernel, *initrd)
    return (
        _wanted(Role.PURGATORY, purgatory, page_size, page_size),
        _wanted(Role.BOOT_PARAMETERS, parameters, page_size, page_size),
        kernel,
        *initrd,
    )


def _wanted(role: Role, size: int, alignment: int, page_size: int) -> Wanted:
    memsz = max(round_up(size, page_size), page_size)
    return Wanted(role=role, memsz=memsz, alignment=max(alignment, page_size))


def place(area: Area, wanted: Iterable[Wanted], held: Sequence[Span] = ()) -> tuple[Placed, ...]:
    """Where an image's segments go while `held` (the image loaded so far) keeps its pages."""
    own: list[Span] = []
    placed = []
    for segment in wanted:
        span = _first_fit(area, segment, [*area.taken, *held, *own])
        # kimage_is_destination_range is given the hole's first address behind as its last one.
        if span is not None and any(span.meets(Span(one.start - 1, one.end)) for one in own):
            span = None
        if span is not None:
            own.append(span)
        placed.append(Placed(role=segment.role, span=span))
    return tuple(placed)


def spans_of(placed: Iterable[Placed]) -> tuple[Span, ...]:
    """What of the area an image holds."""
    return tuple(one.span for one in placed if one.span is not None)


def _first_fit(area: Area, segment: Wanted, busy: Sequence[Span]) -> Span | None:
    """The lowest hole. A span in the way stays in the way of every higher start below its end."""
    alignment = min(segment.alignment, area.page_size << area.alignment_order)
    start = round_up(area.base, alignment)
    while start + segment.memsz <= area.end:
        span = Span(start, start + segment.memsz)
        blocks = [one.end for one in (*busy, *area.pinned) if span.meets(one)]
        if not blocks:
            return span
        start = round_up(max(blocks), alignment)
    return None


def _without(span: Span, hole: Span) -> tuple[Span, ...]:
    """What is left of a span beside the hole."""
    if not span.meets(hole):
        return (span,)
    parts = (Span(span.start, hole.start), Span(hole.end, span.end))
    return tuple(part for part in parts if part.start < part.end)


def learn(area: Area, wanted: Sequence[Wanted], seen: Sequence[Span | None], held: Sequence[Span]) -> Area:
    """The area as it must be for a load to have gone where it was seen to go; `seen` None: not in the area.

    Where the model would have put a segment lower, what it passed over was taken: the whole hole counts as
    taken from then on. What the model held for taken where the segment lies is so no more.
    """
    own: list[Span] = []
    for segment, span in zip(wanted, seen, strict=True):
        if span is None:
            continue
        area = replace(area, taken=tuple(rest for one in area.taken for rest in _without(one, span)))
        while True:
            busy = [*area.taken, *held, *own]
            lower = _first_fit(area, segment, busy)
            if lower is None or lower.start >= span.start:
                break
            end = min([span.start, *(one.start for one in busy if one.start >= lower.end)])
            area = replace(area, taken=(*area.taken, Span(lower.start, end)))
        own.append(span)
    return area
