"""Whether a loaded image may be jumped to: placement, facts and rehearsal -> hazards and a verdict.

Decided by evidence (alignment arithmetic, what memory was seen to hold, the memory map); only errata go by
version. The copied (non-CMA) path aligns, clears and checks, so it has none of the CMA hazards.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.domain.bootimage import BootHeader, ImageKind
from orchestrator.domain.errata import ERRATA, Erratum, match_errata
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.hazards import Audit as Audit
from orchestrator.domain.hazards import AuditVerdict as AuditVerdict
from orchestrator.domain.hazards import Hazard as Hazard
from orchestrator.domain.hazards import HazardKind as HazardKind
from orchestrator.domain.hazards import Strength as Strength
from orchestrator.domain.hazards import Weight as Weight
from orchestrator.domain.ladder import KEXEC_FILE_NO_CMA
from orchestrator.domain.placement import EMPTY_COPY_LIST, Placement, Role, Segment
from orchestrator.domain.rehearsal import Rehearsal
from orchestrator.domain.tails import judge_contents

_MIB = 1 << 20
_PAGE = 4096

LEAK_FROM = _MIB
"""Bytes of CMA gone after an unload that count as a leak: drivers take and give single pages all the time, a
load that failed after it had placed its kernel leaves tens of MiB (facts of Linux 7.2)."""


def audit(
    placement: Placement,
    facts: HostFacts,
    header: BootHeader,
    *,
    rehearsal: Rehearsal | None,
    cma_before: int | None = None,
    cma_baseline: int | None = None,
    errata: Sequence[Erratum] = ERRATA,
    target_release: str | None = None,
    no_cma: bool = False,
) -> Audit:
    """The verdict on one loaded image. Never raises.

    `header`: of the image that is loaded. `rehearsal`: None where none was made. `cma_baseline`: available
    pages of the default area before the session's first load; `cma_before`: the same with nothing loaded
    since (before this load, or after an unload). `no_cma`: the load had KEXEC_FILE_NO_CMA set.
    """
    found: list[Hazard] = [*_leak(facts, cma_before, cma_baseline)]
    found += _errata(placement, facts, errata, target_release)
    possible = _cma_possible(placement, facts, no_cma)
    unknown = "" if placement.known else f"the placement is not known: {placement.why_unknown}"
    if unknown and possible:
        return _verdict(found, Strength.ARITHMETIC, unknown)
    if unknown:
        reason = (
            f"{unknown}; but this load cannot use CMA, and what is copied is aligned, cleared and checked"
        )
        return _verdict(found, Strength.ARITHMETIC, "", reason)
    unknown = _other_image(placement, facts, header) if possible else ""
    found += _misaligned(placement, facts, header)
    found += _reserved(placement, facts)
    found += _stray_dma(placement, facts)
    contents = judge_contents(placement, facts, rehearsal)
    return _verdict([*found, *contents.hazards], contents.strength, unknown or contents.unknown)


def _verdict(found: Sequence[Hazard], strength: Strength, unknown: str, reason: str = "") -> Audit:
    corrupting = [hazard for hazard in found if hazard.weight is Weight.CORRUPTS]
    if corrupting:
        verdict, reason = AuditVerdict.HAZARDOUS, "; ".join(hazard.text for hazard in corrupting)
    elif unknown:
        verdict, reason = AuditVerdict.UNKNOWN, unknown
    else:
        verdict = AuditVerdict.SOUND
    return Audit(verdict=verdict, hazards=tuple(found), strength=strength, reason=reason)


def _cma_possible(placement: Placement, facts: HostFacts, no_cma: bool) -> bool:
    """Whether anything of this load may lie in CMA, as far as is known."""
    if placement.head == EMPTY_COPY_LIST:
        return True  # the kernel's own word, whatever the facts say
    flagged = no_cma or bool((placement.flags or 0) & KEXEC_FILE_NO_CMA)
    return not (flagged or facts.knows_no_cma is False or facts.has_cma_area is False)


def _other_image(placement: Placement, facts: HostFacts, header: BootHeader) -> str:
    """Whether the records are of another image: bzImage64_load gives the kernel PAGE_ALIGN(init_size)."""
    kernel = placement.of(Role.KERNEL)
    if kernel is None:
        return "the kernel log does not tell which segment is the kernel"
    wanted = -(-header.init_size // (facts.page_size or _PAGE)) * (facts.page_size or _PAGE)
    if header.kind is ImageKind.BZIMAGE and kernel.memsz != wanted:
        return (
            f"the kernel log places a kernel of {kernel.memsz} bytes, the image's header asks for {wanted}: "
            "the records are of another load"
        )
    return ""


def _leak(facts: HostFacts, before: int | None, baseline: int | None) -> list[Hazard]:
    gone = 0 if before is None or baseline is None else (baseline - before) * (facts.page_size or _PAGE)
    if gone < LEAK_FROM:
        return []
    return [
        Hazard(
            kind=HazardKind.LEAKED_CMA,
            weight=Weight.RISK,
            text=f"{gone} bytes of CMA are gone though nothing is loaded; only a boot through the firmware "
            "gives them back",
            cause="a load that fails or is killed after its segments were placed never frees its CMA pages",
            kernels="Linux 7.2 (run), 7.3 (source)",
            reference="kernel/kexec_file.c, kexec_file_load and kimage_file_post_load_cleanup, Linux 7.3",
            evidence=f"available_pages of the area: {baseline} before the first load, {before} now",
        )
    ]


def _errata(
    placement: Placement, facts: HostFacts, errata: Sequence[Erratum], target: str | None
) -> list[Hazard]:
    initrd = placement.of(Role.INITRD)
    matched = match_errata(
        errata,
        running=facts.release,
        target=target,
        machine=facts.machine,
        initrd_size=None if initrd is None else initrd.bufsz,
    )
    return [
        Hazard(
            kind=HazardKind.ERRATUM,
            weight=Weight.CORRUPTS if erratum.fatal else Weight.RISK,
            text=f"erratum {erratum.name}: {erratum.hazard}; {erratum.action}",
            cause=erratum.hazard,
            kernels=f"this host runs {facts.release}, the target is {target or 'not known'}",
            reference=erratum.reference,
        )
        for erratum in matched
    ]


def _misaligned(placement: Placement, facts: HostFacts, header: BootHeader) -> list[Hazard]:
    """A kernel off its alignment, where something it needs lies behind it.

    x86: the decompressor goes to the next multiple of kernel_alignment and needs init_size from there on
    (startup_64, arch/x86/boot/compressed/head_64.S). arm64 runs where it lies and says so in its log.
    """
    kernel = placement.of(Role.KERNEL)
    gap = 0 if kernel is None else -kernel.address % header.kernel_alignment
    if kernel is None or not gap or kernel.in_cma is False:
        return []
    common = (
        "dma_alloc_from_contiguous caps the alignment at CONFIG_CMA_ALIGNMENT (1 MiB), the image asks for "
        f"{header.kernel_alignment // _MIB} MiB"
    )
    if header.kind is not ImageKind.BZIMAGE:
        return [_misplaced_arm64(kernel, common)]
    first, last = kernel.end, kernel.end + gap - 1
    hit = [one for one in placement.segments if one is not kernel and _meets(one, first, last)]
    outside = _outside_ram(facts, first, last)
    if not hit and not outside:
        return []
    what = " and ".join([f"the {one.role}" for one in hit] + (["memory that is no RAM"] if outside else []))
    return [
        Hazard(
            kind=HazardKind.MISALIGNED_KERNEL,
            weight=Weight.CORRUPTS,
            text=f"the kernel at 0x{kernel.address:x} is not on its alignment and will overwrite {what} in "
            f"[0x{first:x}, 0x{last:x}]",
            cause=f"{common}; the decompressor rounds its address up and needs init_size from there",
            kernels="Linux 6.17 to 7.3 with CMA (run on 7.2.12, 7.3.4)",
            reference="kernel/dma/contiguous.c dma_alloc_from_contiguous; arch/x86/boot/compressed/head_64.S "
            "startup_64, Linux 7.3",
            first=first,
            last=last,
            segments=(kernel.index, *(one.index for one in hit)),
            evidence=f"mem=0x{kernel.address:x} memsz=0x{kernel.memsz:x}, kernel_alignment "
            f"0x{header.kernel_alignment:x}: {gap} bytes up",
        )
    ]


def _misplaced_arm64(kernel: Segment, common: str) -> Hazard:
    return Hazard(
        kind=HazardKind.MISALIGNED_KERNEL,
        weight=Weight.RISK,
        text=f"the kernel at 0x{kernel.address:x} is not on a 2 MiB boundary, as arm64's boot protocol asks",
        cause=f"{common}; unproven what a kernel without CONFIG_RELOCATABLE makes of it",
        kernels="Linux 6.17 to 7.3 on arm64 (source; not run)",
        reference="Documentation/arch/arm64/booting.rst; arch/arm64/kernel/setup.c setup_arch, Linux 6.17",
        first=kernel.address,
        last=kernel.end - 1,
        segments=(kernel.index,),
    )


def _meets(segment: Segment, first: int, last: int) -> bool:
    return segment.address <= last and first < segment.end


def _outside_ram(facts: HostFacts, first: int, last: int) -> bool:
    """Whether a byte of [first, last] is known to be no System RAM."""
    if facts.iomem_ram is None:
        return False
    for low, high in sorted(facts.iomem_ram):
        if low <= first <= high:
            first = high + 1
    return first <= last


def _reserved(placement: Placement, facts: HostFacts) -> list[Hazard]:
    bad = [one for one in placement.segments if _outside_ram(facts, one.address, one.end - 1)]
    return [
        Hazard(
            kind=HazardKind.RESERVED_OVERLAP,
            weight=Weight.CORRUPTS,
            text=f"the {one.role} at [0x{one.address:x}, 0x{one.end - 1:x}] does not lie in RAM wholly",
            cause="the destination meets a range that the firmware or a driver keeps",
            kernels="any; no kernel is known to place so",
            reference="Documentation/admin-guide/kdump/kdump.rst, /proc/iomem",
            first=one.address,
            last=one.end - 1,
            segments=(one.index,),
            evidence="System RAM of /proc/iomem",
        )
        for one in bad
    ]


def _stray_dma(placement: Placement, facts: HostFacts) -> list[Hazard]:
    able = facts.knows_no_cma is True and facts.has_cma_area is True
    outside = [one for one in placement.segments if one.in_cma is False]
    if not able or not outside:
        return []
    return [
        Hazard(
            kind=HazardKind.STRAY_DMA,
            weight=Weight.RISK,
            text=f"{sum(one.memsz for one in outside)} bytes of the image are copied to memory that the "
            "old kernel's devices may still write to",
            cause="DMA that nobody stopped goes on after the jump; the pages of a CMA image are no device's",
            kernels="any; the host could have used CMA",
            reference="kernel/kexec_file.c, kexec_alloc_contig: why kexec places in CMA, Linux 6.17",
            segments=tuple(one.index for one in outside),
        )
    ]
