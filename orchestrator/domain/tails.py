"""What a CMA placement's memory holds: bodies, tails, and whether purgatory will check them -> hazards.

A tail is [bufsz, memsz) of a segment. kimage_load_cma_segment (kernel/kexec_core.c, Linux 6.17 to 7.3) means
to clear it and clears nothing. What a stale tail does, from the source:
- Where a digest is stored it goes over every segment but purgatory, tails included
  (kexec_calculate_store_digests): purgatory finds another sum and loops for ever, without output.
- Where none is stored it does no harm: the x86 decompressor moves itself to the end of init_size and clears
  its own .bss there (arch/x86/boot/compressed/head_64.S), the kernel clears its .bss (clear_bss, head64.c;
  arm64: map_kernel.c), ramdisk_size is the initrd's bufsz, and nothing reads behind the boot parameters.
- Purgatory's own tail is its .bss, which is a stack (arch/x86/purgatory/stack.S), and is never hashed.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.facts import HostFacts
from orchestrator.domain.hazards import Hazard, HazardKind, Strength, Weight
from orchestrator.domain.placement import Placement, Role, Segment
from orchestrator.domain.rehearsal import Rehearsal, SegmentReading

_HAVING_FILES = (Role.KERNEL, Role.INITRD)

_HARMLESS = {
    Role.KERNEL: "the new kernel clears its own .bss",
    Role.INITRD: "the initrd's size is told without its tail",
    Role.PURGATORY: "it is purgatory's stack, which is not hashed",
}


@dataclass(frozen=True)
class Contents:
    """`unknown`: why it cannot be told whether the image will be taken for whole; empty when it can."""

    hazards: tuple[Hazard, ...]
    strength: Strength
    unknown: str


def judge_contents(placement: Placement, facts: HostFacts, rehearsal: Rehearsal | None) -> Contents:
    """Hazards of the segments that lie, or may lie, in CMA; of a placement that is known. Never raises."""
    digest = _digest(placement, facts, rehearsal)
    exposed = [one for one in placement.segments if one.in_cma is not False]
    hazards: list[Hazard] = []
    unread: list[tuple[Segment, str]] = []
    for segment in exposed:
        reading = None if rehearsal is None else rehearsal.of(segment)
        hazards += _body(segment, reading)
        hazards += _tail(segment, reading, digest)
        missing = _missing(segment, reading)
        if missing:
            unread.append((segment, missing))
    if digest is False:
        hazards.append(_no_digest(facts, exposed))
    blind = [one for one, what in unread if "tail" in what and _hashed(one, digest)]
    strength = Strength.READ_BACK if exposed and not unread else Strength.ARITHMETIC
    unknown = ""
    if unread:
        hazards.append(_unreadable(unread, rehearsal, facts))
    if blind and facts.init_on_alloc is True:
        strength = Strength.BOOT_LOG
    elif blind:
        unknown = _cannot_tell(blind, facts)
    return Contents(tuple(hazards), strength, unknown)


def _digest(placement: Placement, facts: HostFacts, rehearsal: Rehearsal | None) -> bool | None:
    """Whether purgatory will check a digest; None: not known, which is taken for yes where it matters."""
    if facts.machine == "aarch64":
        return False
    if rehearsal is not None and rehearsal.digest_stored is not None:
        return rehearsal.digest_stored
    return None if placement.bytes_to_hash is None else placement.bytes_to_hash > 0


def _hashed(segment: Segment, digest: bool | None) -> bool:
    """Whether that segment's tail may decide over the jump."""
    return digest is not False and segment.role is not Role.PURGATORY and segment.memsz > segment.bufsz


def _missing(segment: Segment, reading: SegmentReading | None) -> str:
    """What of the segment was not seen: "body", "tail", both, or nothing."""
    tail = segment.memsz > segment.bufsz and (reading is None or reading.tail_nonzero is None)
    body = segment.role in _HAVING_FILES and (reading is None or not reading.body_compared)
    return " and ".join([name for name, lacking in (("body", body), ("tail", tail)) if lacking])


def _body(segment: Segment, reading: SegmentReading | None) -> list[Hazard]:
    if reading is None or not reading.body_differs:
        return []
    start = segment.address + (reading.first_difference or 0)
    return [
        Hazard(
            kind=HazardKind.BODY_DIFFERS,
            weight=Weight.CORRUPTS,
            text=f"{reading.body_differs} bytes of the {segment.role} in memory differ from its file, the "
            f"first at 0x{start:x}",
            cause="the file was changed after it was loaded, or something wrote into the placed image",
            kernels="any",
            reference="/proc/kcore beside the file",
            first=start,
            last=segment.address + max(segment.bufsz, 1) - 1,
            segments=(segment.index,),
            evidence=f"body_differs={reading.body_differs} first_difference={reading.first_difference}",
        )
    ]


def _tail(segment: Segment, reading: SegmentReading | None, digest: bool | None) -> list[Hazard]:
    if reading is None or not reading.tail_nonzero:
        return []
    fatal = _hashed(segment, digest)
    offset = segment.bufsz if reading.first_tail_nonzero is None else reading.first_tail_nonzero
    if fatal:
        stored = "the digest goes" if digest else "whether a digest is stored is not known; it would go"
        effect = f"{stored} over it, so purgatory would loop for ever without output"
    elif digest is False:
        effect = f"no digest is stored, and {_HARMLESS.get(segment.role, 'nothing reads it')}"
    else:
        effect = _HARMLESS.get(segment.role, "nothing reads it")
    return [
        Hazard(
            kind=HazardKind.STALE_TAIL,
            weight=Weight.CORRUPTS if fatal else Weight.RISK,
            text=f"{reading.tail_nonzero} stale bytes behind the {segment.role}: {effect}",
            cause="kimage_load_cma_segment clears no byte of a segment's tail",
            kernels="Linux 6.17 to 7.3 with CMA (run on 7.2.12); hidden where init_on_alloc is on",
            reference="kernel/kexec_core.c kimage_load_cma_segment; kernel/kexec_file.c "
            "kexec_calculate_store_digests, Linux 7.3",
            first=segment.address + offset,
            last=segment.end - 1,
            segments=(segment.index,),
            evidence=f"tail_nonzero={reading.tail_nonzero} of {segment.memsz - segment.bufsz}",
        )
    ]


def _no_digest(facts: HostFacts, exposed: list[Segment]) -> Hazard:
    if facts.machine == "aarch64":
        cause, kernels = "arm64 has no purgatory", "every arm64 kernel"
        reference = "arch/arm64/kernel/machine_kexec_file.c, Linux 7.3"
    else:
        cause = "the kernel stores no digest where every segment is in CMA, or KHO is on"
        kernels = "Linux 7.3 (source and run)"
        reference = "kernel/kexec_file.c kexec_only_cma_segments, kexec_calculate_store_digests, Linux 7.3"
    return Hazard(
        kind=HazardKind.NO_DIGEST,
        weight=Weight.RISK,
        text="nothing checks the image at the jump: the rehearsal before and the checks after are the only "
        "witnesses",
        cause=cause,
        kernels=kernels,
        reference=reference,
        segments=tuple(one.index for one in exposed),
    )


def _unreadable(unread: list[tuple[Segment, str]], rehearsal: Rehearsal | None, facts: HostFacts) -> Hazard:
    what = ", ".join(f"{missing} of the {one.role}" for one, missing in unread)
    why = "no rehearsal was made" if rehearsal is None else rehearsal.why_not or "the host gave no reason"
    return Hazard(
        kind=HazardKind.UNREADABLE,
        weight=Weight.RISK,
        text=f"not read back: {what}; the verdict is weaker",
        cause=why,
        kernels="hosts without /proc/kcore, or with lockdown=confidentiality",
        reference="fs/proc/kcore.c open_kcore; security/lockdown/lockdown.c LOCKDOWN_KCORE, Linux 7.2",
        segments=tuple(one.index for one, _ in unread),
        evidence=f"lockdown={facts.lockdown}",
    )


def _cannot_tell(blind: list[Segment], facts: HostFacts) -> str:
    what = " and ".join(f"the {one.role}" for one in blind)
    log = "off" if facts.init_on_alloc is False else "not known"
    return (
        f"cannot tell whether the memory behind {what} is clean: it was not read, and init_on_alloc is {log}"
    )
