"""A host's CMA area for tests: hidden holders and pins, dirty pages, and images that are loaded into it.

Addresses come from the allocator model under orchestrator.domain; test_cmamodel holds that model against the
kernel's own algorithm, page by page.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.domain.bootimage import BootHeader, ImageKind
from orchestrator.domain.cmamodel import Area, Placed, Span, image_segments, place, round_up, spans_of
from orchestrator.domain.facts import CmaArea, HostFacts
from orchestrator.domain.placement import Placement, Role, Segment
from orchestrator.domain.rehearsal import Rehearsal, SegmentReading
from orchestrator.domain.repair import Derived, Repair, Spacer

MIB = 1 << 20
PAGE = 4096
SETUP = 0x5000
OUTSIDE = 0x1000_0000  # copied segments lie here, aligned


def header(init_size: int, alignment: int = 2 * MIB, kind: ImageKind = ImageKind.BZIMAGE) -> BootHeader:
    return BootHeader(
        kind=kind,
        machine="x86_64" if kind is ImageKind.BZIMAGE else "aarch64",
        protocol="2.15",
        setup_size=SETUP if kind is ImageKind.BZIMAGE else 0,
        kernel_alignment=alignment,
        init_size=init_size,
        cmdline_size=2047,
        payload_offset=SETUP,
        payload_length=1,
        version=None,
    )


@dataclass
class File:
    """`data` bytes that are not zero, zeros up to `size`."""

    data: int
    size: int


@dataclass
class World:
    """A host. `area` holds what the planner may not know.

    `dirty`: page number -> the bytes [first, end) of it that hold something else than zeros.
    """

    area: Area
    header: BootHeader
    kernel_size: int
    initrd_size: int
    keeps_digest: bool = True  # also where everything is in CMA (before Linux 7.3)
    dirty: dict[int, tuple[int, int]] = field(default_factory=dict)
    spacers: tuple[Placement, ...] = ()  # of the last repair
    held: tuple[Span, ...] = ()
    loads: int = 0

    def facts(self, *, base_known: bool = True) -> HostFacts:
        total = self.area.size // PAGE
        taken = sum(span.end - span.start for span in self.area.taken) // PAGE
        area = CmaArea(
            name="reserved",
            base=self.area.base if base_known else None,
            size=self.area.size,
            total_pages=total,
            available_pages=total - taken,
        )
        return HostFacts(
            machine="x86_64",
            page_size=PAGE,
            knows_no_cma=True,
            knows_debug=True,
            cma_areas=(area,),
            init_on_alloc=False,
            meminfo_read=True,
        )

    def execute(self, repair: Repair | None) -> tuple[Placement, Rehearsal]:
        """Load the repair's spacers and the real image, as the kernel would."""
        self.held = ()
        plan = Repair() if repair is None else repair
        self.spacers = tuple(self._spacer(spacer) for spacer in plan.spacers)
        kernel = self._file(plan.kernel, self.kernel_size)
        initrd = self._file(plan.initrd, self.initrd_size) if self.initrd_size else None
        return self._load(kernel, self.header.init_size, initrd)

    def soil(self, *spans: Span) -> None:
        """Other people's data, as user pages leave it."""
        for span in spans:
            self.dirty.update(dict.fromkeys(range(span.start // PAGE, span.end // PAGE), (0, PAGE)))

    def _spacer(self, spacer: Spacer) -> Placement:
        if spacer.alone:
            self.held = ()
        initrd = self._file(spacer.initrd, self.initrd_size) if spacer.with_initrd else None
        return self._load(self._file(spacer.kernel, self.kernel_size), spacer.memory, initrd)[0]

    @staticmethod
    def _file(derived: Derived | None, real: int) -> File:
        if derived is None:
            return File(real, real)
        take = real if derived.take is None else derived.take
        assert take <= min(real, derived.size)
        return File(take, derived.size)

    def _load(self, kernel: File, memory: int, initrd: File | None) -> tuple[Placement, Rehearsal]:
        self.loads += 1
        wanted = image_segments(self.header, memory, None if initrd is None else initrd.size)
        placed = place(self.area, wanted, self.held)
        self.held = spans_of(placed)
        files = {
            Role.PURGATORY: File(0x4000, 0x4000),
            Role.BOOT_PARAMETERS: File(0x10E0, 0x10E0),
            Role.KERNEL: File(max(kernel.data - SETUP, 0), kernel.size - SETUP),
            Role.INITRD: initrd or File(0, 0),
        }
        segments, readings = [], []
        for index, (one, want) in enumerate(zip(placed, wanted, strict=True)):
            segment = self._segment(index, one, want.memsz, files[one.role].size)
            segments.append(segment)
            if segment.in_cma:
                tail, first = self._write(segment, files[one.role])
                readings.append(
                    SegmentReading(
                        index=index,
                        readable=True,
                        body_compared=one.role in (Role.KERNEL, Role.INITRD),
                        body_differs=0 if one.role in (Role.KERNEL, Role.INITRD) else None,
                        tail_nonzero=tail,
                        first_tail_nonzero=first,
                    )
                )
        return self._seen(tuple(segments), readings)

    @staticmethod
    def _segment(index: int, one: Placed, memsz: int, bufsz: int) -> Segment:
        assert bufsz <= memsz, (one.role, bufsz, memsz)
        address = OUTSIDE * (index + 1) if one.span is None else one.span.start
        inside = one.span is not None
        return Segment(
            index=index,
            address=address,
            bufsz=bufsz,
            memsz=memsz,
            role=one.role,
            inside_area=inside,
            in_cma=inside,
        )

    def _write(self, segment: Segment, file: File) -> tuple[int, int | None]:
        """Copies the body; what was in the tail stays. -> stale bytes in the tail, offset of the first."""
        stale, first = 0, None
        for offset in range(0, segment.memsz, PAGE):
            page = (segment.address + offset) // PAGE
            low, high = self.dirty.pop(page, (PAGE, PAGE))
            written = min(max(segment.bufsz - offset, 0), PAGE)
            data = min(max(file.data - offset, 0), PAGE)
            low = max(low, written)
            if low < high:
                stale += high - low
                first = offset + low if first is None else first
            if data:
                low, high = 0, max(high if low < high else 0, data)
            if low < high:
                self.dirty[page] = (low, high)
        return stale, first

    def _seen(
        self, segments: tuple[Segment, ...], readings: list[SegmentReading]
    ) -> tuple[Placement, Rehearsal]:
        total = sum(one.memsz for one in segments)
        inside = sum(one.memsz for one in segments if one.in_cma)
        kernel = next(one for one in segments if one.role is Role.KERNEL)
        stored = self.keeps_digest or inside < total
        hashed = sum(one.memsz for one in segments if one.role is not Role.PURGATORY)
        placement = Placement(
            segments=segments,
            head=0x4 if inside == total else 0x1002,
            flags=0x8,
            wholly_in_cma=inside == total,
            bytes_total=total,
            bytes_in_cma=inside,
            bytes_to_copy=total - inside,
            bytes_to_hash=hashed if inside < total else None,
            kernel_misaligned=kernel.address % self.header.kernel_alignment != 0,
            known=True,
        )
        return placement, Rehearsal(readings=tuple(readings), digest_stored=stored, source="kcore")

    def survives(self, placement: Placement, rehearsal: Rehearsal) -> bool:
        """What the jump would really come to, by the two ways in which it is known to go wrong."""
        kernel = next(one for one in placement.segments if one.role is Role.KERNEL)
        gap = round_up(kernel.address, self.header.kernel_alignment) - kernel.address
        overrun = Span(kernel.end, kernel.end + gap)
        others = [Span(one.address, one.end) for one in placement.segments if one is not kernel]
        if gap and any(overrun.meets(other) for other in others):
            return False
        stale = {reading.index for reading in rehearsal.readings if reading.tail_nonzero}
        hashed = {one.index for one in placement.segments if one.role is not Role.PURGATORY}
        return not (rehearsal.digest_stored and stale & hashed)
