"""The allocator model against the kernel's algorithm written out page by page, and against measured loads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.bootimage import ImageKind
from orchestrator.domain.cmamodel import Area, Span, Wanted, image_segments, learn, place, round_up, spans_of
from orchestrator.domain.placement import Role
from tests.unit.cmaworld import MIB, PAGE, header
from tests.unit.test_placement import placed, recorded


class Kernel:
    """mm/cma.c and kernel/kexec_file.c of Linux 7.2, one bit a page, with nothing made quicker."""

    def __init__(self, area: Area, held: Sequence[Span]) -> None:
        self.base = area.base // PAGE
        self.bits = [False] * (area.size // PAGE)
        for span in (*area.taken, *held):
            self._mark(span)
        self.pinned = {page for span in area.pinned for page in range(span.start // PAGE, span.end // PAGE)}
        self.segments: list[tuple[int, int]] = []

    def _mark(self, span: Span) -> None:
        for page in range(span.start // PAGE - self.base, span.end // PAGE - self.base):
            if 0 <= page < len(self.bits):
                self.bits[page] = True

    def _next_zero_area(self, start: int, count: int, mask: int) -> int | None:
        """bitmap_find_next_zero_area_off with cma_bitmap_aligned_offset as the offset."""
        offset = self.base & mask
        while True:
            while start < len(self.bits) and self.bits[start]:
                start += 1
            start = ((start + offset + mask) & ~mask) - offset
            end = start + count
            if end > len(self.bits):
                return None
            taken = [page for page in range(start, end) if self.bits[page]]
            if not taken:
                return start
            start = taken[0] + 1

    def alloc_contig(self, want: Wanted) -> int | None:
        """kexec_alloc_contig: the address, None where it is to be placed elsewhere."""
        count = want.memsz // PAGE
        order = min(max(want.alignment // PAGE - 1, 0).bit_length(), 8)
        mask = (1 << order) - 1
        start = 0
        while True:
            found = self._next_zero_area(start, count, mask)
            if found is None:
                return None
            if not any(page in self.pinned for page in range(self.base + found, self.base + found + count)):
                break
            start = found + mask + 1
        memory = (self.base + found) * PAGE
        first, last = memory, memory + want.memsz
        for mem, memsz in self.segments:
            if last >= mem and first <= mem + memsz - 1:
                return None
        self._mark(Span(memory, memory + want.memsz))
        self.segments.append((memory, want.memsz))
        return memory


@st.composite
def spans(draw: st.DrawFn, area: Area, most: int) -> tuple[Span, ...]:
    pages = area.size // PAGE
    found = []
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, pages - 1))
        length = draw(st.one_of(st.integers(1, 8), st.integers(1, 400)))
        found.append(
            Span(area.base + start * PAGE, min(area.base + (start + length) * PAGE, area.end)),
        )
    return tuple(found)


@st.composite
def areas(draw: st.DrawFn) -> Area:
    base = draw(st.integers(256, 2048)) * PAGE * draw(st.sampled_from([1, 256]))
    bare = Area(base=base, size=draw(st.integers(64, 3000)) * PAGE)
    return Area(base=base, size=bare.size, taken=draw(spans(bare, 3)), pinned=draw(spans(bare, 2)))


wanteds = st.lists(
    st.builds(
        Wanted,
        role=st.just(Role.OTHER),
        memsz=st.one_of(st.integers(1, 12), st.integers(1, 1200)).map(lambda pages: pages * PAGE),
        alignment=st.sampled_from([PAGE, 4 * PAGE, MIB, 2 * MIB, 16 * MIB]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data(), areas(), wanteds)
def test_places_as_the_kernel_does(data: st.DataObject, area: Area, wanted: list[Wanted]) -> None:
    held = data.draw(spans(area, 2))
    kernel = Kernel(area, held)
    expected = [kernel.alloc_contig(want) for want in wanted]
    found = [None if one.span is None else one.span.start for one in place(area, wanted, held)]
    assert found == expected


def test_a_hole_that_touches_an_earlier_segment_is_refused() -> None:
    # The first pages are taken, so the small segment lies right behind a hole that the second one would fill.
    area = Area(base=16 * MIB, size=4 * MIB, taken=(Span(16 * MIB, 16 * MIB + PAGE),))
    hole = Wanted(role=Role.OTHER, memsz=MIB, alignment=MIB)
    first = place(area, [hole, Wanted(role=Role.OTHER, memsz=MIB - PAGE, alignment=PAGE)])
    assert first[0].span == Span(17 * MIB, 18 * MIB)
    assert first[1].span is None  # [16 MiB + 4 KiB, 17 MiB) fits, and ends where the first begins
    one_less = place(area, [hole, Wanted(role=Role.OTHER, memsz=MIB - 2 * PAGE, alignment=PAGE)])
    assert one_less[1].span == Span(16 * MIB + PAGE, 17 * MIB - PAGE)


def test_a_pinned_page_moves_the_kernel_on_by_a_mebibyte() -> None:
    want = [Wanted(role=Role.KERNEL, memsz=2 * MIB, alignment=2 * MIB)]
    free = Area(base=16 * MIB, size=8 * MIB)
    assert spans_of(place(free, want)) == (Span(16 * MIB, 18 * MIB),)
    pinned = Area(base=16 * MIB, size=8 * MIB, pinned=(Span(16 * MIB + PAGE, 16 * MIB + 2 * PAGE),))
    assert spans_of(place(pinned, want)) == (Span(17 * MIB, 19 * MIB),)


@pytest.mark.parametrize("name", ["7.2.12", "7.3.4"])
def test_recorded_loads(name: str) -> None:
    facts, _ = recorded(name)
    load = placed(name, "plain")
    kernel, initrd = load.of(Role.KERNEL), load.of(Role.INITRD)
    area = facts.default_area
    assert kernel is not None and initrd is not None and area is not None
    assert area.base is not None and area.size is not None and area.available_pages is not None
    # The DMA atomic pools sit at the area's start (facts/kernel.md).
    pools = (area.total_pages or 0) - area.available_pages
    model = Area(base=area.base, size=area.size, taken=(Span(area.base, area.base + pools * PAGE),))
    wanted = image_segments(header(kernel.memsz), kernel.memsz, initrd.bufsz)
    found = [one.span for one in place(model, wanted)]
    assert found == [Span(segment.address, segment.end) for segment in load.segments]


def test_the_measured_load_of_7_3_4_in_384_mib() -> None:
    base, purgatory = 0x60C00000, 0x60C48000
    area = Area(base=base, size=384 * MIB, taken=(Span(base, purgatory),))
    wanted = image_segments(header(0x3C39000), 0x3C39000, 0x64BBC00)
    assert [one.span.start for one in place(area, wanted) if one.span] == [
        purgatory,
        0x60C4D000,
        0x60D00000,
        0x64939000,
    ]
    # The record has the kernel a mebibyte higher: something held a page of the one before.
    seen = [
        Span(purgatory, 0x60C4D000),
        Span(0x60C4D000, 0x60C4F000),
        Span(0x60E00000, 0x64A39000),
        Span(0x64A39000, 0x64A39000 + 0x64BC000),
    ]
    learned = learn(Area(base=base, size=384 * MIB), wanted, seen, ())
    assert [one.span for one in place(learned, wanted)] == seen


@settings(max_examples=200, deadline=None)
@given(st.data(), areas(), wanteds)
def test_what_was_learned_explains_what_was_seen(
    data: st.DataObject, area: Area, wanted: list[Wanted]
) -> None:
    held = data.draw(spans(area, 2))
    seen = [one.span for one in place(area, wanted, held)]
    learned = learn(Area(base=area.base, size=area.size), wanted, seen, held)
    again = [one.span for one in place(learned, wanted, held)]
    for before, after in zip(seen, again, strict=True):
        assert before is None or after == before or None in seen


def test_what_a_larger_segment_passed_over_may_hold_a_smaller_one() -> None:
    area = Area(base=MIB, size=4 * MIB, pinned=(Span(MIB + PAGE, MIB + 2 * PAGE),))
    wanted = [Wanted(role=Role.OTHER, memsz=size * PAGE, alignment=PAGE) for size in (2, 1)]
    seen = [one.span for one in place(area, wanted)]
    assert seen == [Span(MIB + 2 * PAGE, MIB + 4 * PAGE), Span(MIB, MIB + PAGE)]
    learned = learn(Area(base=MIB, size=4 * MIB), wanted, seen, ())
    assert [one.span for one in place(learned, wanted)] == seen


def test_roles_in_order() -> None:
    x86 = image_segments(header(3 * MIB + 1), 3 * MIB + 1, None)
    assert [(one.role, one.memsz) for one in x86] == [
        (Role.PURGATORY, 0x5000),
        (Role.BOOT_PARAMETERS, 0x2000),
        (Role.KERNEL, 3 * MIB + PAGE),
    ]
    arm = image_segments(header(3 * MIB, kind=ImageKind.ARM64), 3 * MIB, 1)
    assert [one.role for one in arm] == [Role.KERNEL, Role.INITRD]
    assert round_up(PAGE, PAGE) == PAGE and round_up(PAGE + 1, PAGE) == 2 * PAGE
