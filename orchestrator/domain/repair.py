"""How to load an image again so that the audit passes: the tries so far -> the next repair, or why none.

Two means (run on stock 7.2.12, the spacer on 7.3.4 too). The spacer: the kernel places a new image while the
old one still holds its pages, so a small image loaded first shifts the real one onto its alignment. Padding:
zeros appended to a file until its segment has no tail. A third follows from them (from the source, not run):
the pages where a tail will lie are first covered by the zeros of an image that is unloaded again.

Every repair begins with nothing loaded. Of its spacers each replaces the one before, after it was placed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from orchestrator.domain.bootimage import BootHeader, ImageKind
from orchestrator.domain.cmamodel import (
    ALIGNMENT_ORDER,
    MIB,
    PARAMETERS_SIZE,
    PURGATORY_SIZE,
    Area,
    Placed,
    Span,
    Wanted,
    learn,
    place,
    spans_of,
)
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.hazards import Audit, AuditVerdict, HazardKind, Weight
from orchestrator.domain.placement import Placement, Role
from orchestrator.domain.raw import optional_int
from orchestrator.domain.spacers import (
    SMALLEST_PAGE,
    Job,
    arrangements,
    needed_area,
    padding,
    targets,
    washed,
)
from orchestrator.domain.spacers import Derived as Derived
from orchestrator.domain.spacers import Spacer as Spacer

_BEYOND_REPAIR = {
    HazardKind.BODY_DIFFERS: "memory does not hold what was loaded: loading it elsewhere proves nothing",
    HazardKind.RESERVED_OVERLAP: "the image meets memory that is not free RAM",
    HazardKind.ERRATUM: "an erratum forbids it",
}


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What to load, in this order, beginning with nothing loaded; the real image comes last."""

    spacers: tuple[Spacer, ...] = ()
    kernel: Derived | None = None  # padding; None: the real file
    initrd: Derived | None = None
    reason: str = ""
    expected_kernel_address: int | None = None
    kinds: tuple[str, ...] = ()  # of "spacer", "padding", "washing"

    def same_as(self, other: Repair) -> bool:
        """Whether both would load the same files in the same order."""
        return (self.spacers, self.kernel, self.initrd) == (other.spacers, other.kernel, other.initrd)


@dataclass(frozen=True, kw_only=True)
class NoRepair:
    """Why there is nothing to try (again)."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Try:
    """What was loaded, how it lay, and what the audit said. `repair` None: the image as it is.

    `spacers`: where the repair's spacers lay, as far as known; without them they are taken from the model.
    """

    repair: Repair | None
    audit: Audit
    placement: Placement
    spacers: tuple[Placement, ...] = ()


def signed_only(facts: HostFacts) -> bool:
    """Whether this host loads signed kernels only.

    kexec_file_load insists on a signature under lockdown and with CONFIG_KEXEC_SIG_FORCE
    (kimage_validate_signature, kernel/kexec_file.c, Linux 7.2); Secure Boot brings one of the two in
    distributions.
    """
    return (
        facts.lockdown in ("integrity", "confidentiality")
        or facts.secure_boot is True
        or (facts.config or {}).get("CONFIG_KEXEC_SIG_FORCE") == "y"
    )


def plan_repair(
    tries: Sequence[Try],
    facts: HostFacts,
    header: BootHeader,
    kernel_size: int,
    initrd_size: int,
    *,
    signed_only: bool,
    limit: int = 4,
) -> Repair | NoRepair:
    """The next repair after these tries, oldest first; sizes are the real files', bytes, no initrd: 0.

    `limit` bounds the repairs, not counting the first load. Never raises; a repair that was tried is not
    planned again.
    """
    refused = _refused(tries, facts, header, limit)
    if refused is not None:
        return refused
    job = _job(tries, facts, header, kernel_size, initrd_size, signed_only)
    stale = {role for one in tries for role in _stale_roles(one)}
    others = stale - {Role.KERNEL, Role.INITRD, Role.BOOT_PARAMETERS}
    if others:
        return NoRepair(reason=f"no repair is known for a stale tail of: {', '.join(sorted(others))}")
    area = _area(tries, facts, job)
    if area is None:
        return NoRepair(
            reason="the CMA area's place is not known, so nothing can be computed",
            hint="the boot log's line `cma: Reserved ...` tells it",
        )
    tried = [one.repair for one in tries if one.repair is not None]
    feared = stale | _feared(tries[-1], facts)
    for repair in chain(_candidates(area, job, feared), _candidates(area, job, stale)):
        if not any(repair.same_as(other) for other in [Repair(), *tried]):
            return repair
    return _none_left(area, job, facts, len(tried))


def _refused(tries: Sequence[Try], facts: HostFacts, header: BootHeader, limit: int) -> NoRepair | None:
    """Reasons that need no planning."""
    if not tries:
        return NoRepair(reason="nothing was loaded yet")
    last = tries[-1]
    if last.audit.verdict is AuditVerdict.SOUND and last.placement.wholly_in_cma is not False:
        return NoRepair(reason="the last placement is sound")
    if last.audit.verdict is AuditVerdict.UNKNOWN:
        return NoRepair(
            reason=f"nothing can be repaired that is not known: {last.audit.reason}", hint="load without CMA"
        )
    for hazard in last.audit.corrupting:
        if hazard.kind in _BEYOND_REPAIR:
            return NoRepair(reason=f"{_BEYOND_REPAIR[hazard.kind]}: {hazard.text}")
    if header.kind is not ImageKind.BZIMAGE:
        return NoRepair(reason="repairs are known for x86_64 images only", hint="load without CMA")
    if facts.knows_no_cma is False or facts.has_cma_area is False:
        return NoRepair(reason="this host has no CMA area to place in")
    if sum(one.repair is not None for one in tries) >= limit:
        return NoRepair(reason=f"{limit} repairs were tried and none was sound", hint="load without CMA")
    return None


def _stale_roles(one: Try) -> set[Role]:
    """Roles of the segments whose stale tail forbids the jump."""
    stale = one.audit.of(HazardKind.STALE_TAIL, Weight.CORRUPTS)
    indexes = {index for hazard in stale for index in hazard.segments}
    return {segment.role for segment in one.placement.segments if segment.index in indexes}


def _feared(last: Try, facts: HostFacts) -> set[Role]:
    """Tails that the next load may find stale though this one's were clean: over what our own loads wrote.

    A shifted kernel's tail lies where the image before it had its initrd. No matter where pages are cleared
    when they are handed out, or where no digest is stored.
    """
    if facts.init_on_alloc is True or last.audit.of(HazardKind.NO_DIGEST):
        return set()
    return {Role.KERNEL, Role.INITRD}


def _job(
    tries: Sequence[Try],
    facts: HostFacts,
    header: BootHeader,
    kernel_size: int,
    initrd_size: int,
    signed: bool,
) -> Job:
    placement = tries[-1].placement
    purgatory, parameters = placement.of(Role.PURGATORY), placement.of(Role.BOOT_PARAMETERS)
    return Job(
        header=header,
        page_size=facts.page_size or SMALLEST_PAGE,
        kernel_size=kernel_size,
        initrd_size=initrd_size,
        small=(
            PURGATORY_SIZE if purgatory is None else purgatory.memsz,
            PARAMETERS_SIZE if parameters is None else parameters.memsz,
        ),
        signed_only=signed,
    )


def _area(tries: Sequence[Try], facts: HostFacts, job: Job) -> Area | None:
    """The area with what the tries showed to be taken; None: where it lies is not known."""
    area = _bounds(tries, facts, job)
    if area is None:
        return None
    for one in tries:
        held: tuple[Span, ...] = ()
        spacers = () if one.repair is None else one.repair.spacers
        for number, spacer in enumerate(spacers):
            wanted = job.spacer(spacer)
            held = () if spacer.alone else held
            if number < len(one.spacers) and one.spacers[number].known:
                seen = _seen(wanted, one.spacers[number])
                area = learn(area, wanted, seen, held)
                held = tuple(span for span in seen if span is not None)
            else:
                held = spans_of(place(area, wanted, held))
        if one.placement.known:
            area = learn(area, job.image, _seen(job.image, one.placement), held)
    return area


def _bounds(tries: Sequence[Try], facts: HostFacts, job: Job) -> Area | None:
    """The area as the boot log places it; without that, what begins at the first load's lowest segment."""
    known = facts.default_area
    if known is None or known.size is None:
        return None
    base, size = known.base, known.size
    if base is None:
        inside = [segment.address for segment in tries[0].placement.segments if segment.in_cma is True]
        if not inside:
            return None
        free = known.total_pages if known.available_pages is None else known.available_pages
        base, size = min(inside), (free or 0) * job.page_size
    order = optional_int((facts.config or {}).get("CONFIG_CMA_ALIGNMENT"))
    return Area(
        base=base,
        size=size,
        page_size=job.page_size,
        alignment_order=ALIGNMENT_ORDER if order is None else order,
    )


def _seen(wanted: Sequence[Wanted], placement: Placement) -> tuple[Span | None, ...]:
    """Where each wanted segment was seen; None where it is not in CMA for certain."""
    spans = []
    for one in wanted:
        segment = placement.of(one.role)
        inside = segment is not None and segment.in_cma is True and segment.memsz == one.memsz
        spans.append(Span(segment.address, segment.end) if inside and segment is not None else None)
    return tuple(spans)


def _candidates(area: Area, job: Job, stale: set[Role]) -> Iterator[Repair]:
    """Repairs that the model finds sound, cheapest first."""
    kernel, initrd = padding(job, stale)
    wash = {Role.BOOT_PARAMETERS} & stale
    if job.signed_only:
        wash |= {Role.KERNEL} & stale
    for spacers in arrangements(job, bool(wash)):
        held: tuple[Span, ...] = ()
        for spacer in spacers:
            placed = place(area, job.spacer(spacer), () if spacer.alone else held)
            held = spans_of(placed)
        image = place(area, job.image, held)
        address = _aligned_kernel(image, job)
        if address is None or any(one.span is None for one in image):
            continue
        washing: tuple[Spacer, ...] | None = spacers
        if wash:
            washing = washed(area, job, spacers, targets(job, wash, image))
        if washing is not None:
            yield _repair(washing, kernel, initrd, address, sorted(wash))


def _aligned_kernel(placed: Sequence[Placed], job: Job) -> int | None:
    """The kernel's address where it lies in the area and on its alignment."""
    span = next(one.span for one in placed if one.role is Role.KERNEL)
    return None if span is None or span.start % job.header.kernel_alignment else span.start


def _repair(
    spacers: tuple[Spacer, ...],
    kernel: Derived | None,
    initrd: Derived | None,
    address: int,
    wash: list[Role],
) -> Repair:
    kinds = (
        *(("spacer",) if spacers else ()),
        *(("padding",) if kernel or initrd else ()),
        *(("washing",) if wash else ()),
    )
    what = []
    if spacers:
        what.append(f"a spacer of {spacers[-1].memory // MIB} MiB puts the kernel at 0x{address:x}")
    if kernel or initrd:
        padded = " and ".join([one.role for one in (kernel, initrd) if one is not None])
        what.append(f"zeros behind the {padded} leave no tail")
    if wash:
        what.append(f"zeros are loaded first where the tail of the {' and the '.join(wash)} will lie")
    return Repair(
        spacers=spacers,
        kernel=kernel,
        initrd=initrd,
        reason="; ".join(what) or "the image is loaded again",
        expected_kernel_address=address,
        kinds=kinds,
    )


def _none_left(area: Area, job: Job, facts: HostFacts, tried: int) -> NoRepair:
    """Why no candidate is left, and what cma= would do."""
    needed = needed_area(facts, job.header, job.initrd_size, signed_only=job.signed_only)
    hint = f"boot this host with cma={needed // MIB}M on its kernel command line, or load without CMA"
    if needed > area.size:
        image = sum(one.memsz for one in job.image)
        reason = (
            f"the CMA area of {area.size // MIB} MiB is too small for the image's {image} bytes and a spacer"
        )
        return NoRepair(reason=reason, hint=hint)
    if tried:
        return NoRepair(reason=f"{tried} repairs were tried, and nothing else would help", hint=hint)
    reason = "no spacer of the searched sizes gives an aligned kernel with all of the image in CMA"
    return NoRepair(reason=reason, hint=hint)
