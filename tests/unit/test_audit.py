"""Verdicts on real and made placements: hazards with their byte ranges, and none where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.audit import (
    LEAK_FROM,
    Audit,
    AuditVerdict,
    Hazard,
    HazardKind,
    Strength,
    Weight,
    audit,
)
from orchestrator.domain.bootimage import ImageKind
from orchestrator.domain.errata import Erratum, VersionRange
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.placement import Placement, Role
from orchestrator.domain.rehearsal import Rehearsal, parse_rehearsal
from tests.unit.cmaworld import MIB, header
from tests.unit.test_placement import placed, recorded
from tests.unit.test_placement_damage import arm64
from tests.unit.test_rehearsal import INITRD, KERNEL, PARAMETERS, PURGATORY, answer

FACTS = replace(recorded("7.3.4")[0], init_on_alloc=False)
HEADER = header(0x3C39000)
MISALIGNED = placed("7.3.4", "plain")
UP = MIB


def moved(placement: Placement, by: int, *roles: Role) -> Placement:
    """The same image with those segments (all where none is named) so much higher."""
    segments = tuple(
        replace(one, address=one.address + by) if not roles or one.role in roles else one
        for one in placement.segments
    )
    return replace(placement, segments=segments)


ALIGNED = moved(MISALIGNED, UP)


def read(placement: Placement = ALIGNED, *, stored: bool = True, **changes: dict[str, Any]) -> Rehearsal:
    raw = answer(placement, found=stored)
    for name, values in changes.items():
        raw["segments"][{"purgatory": 0, "parameters": 1, "kernel": 2, "initrd": 3}[name]].update(values)
    return parse_rehearsal(raw, placement)


def judged(placement: Placement = ALIGNED, rehearsal: Rehearsal | None = None, **changes: Any) -> Audit:
    facts = changes.pop("facts", FACTS)
    return audit(placement, facts, changes.pop("head", HEADER), rehearsal=rehearsal, **changes)


def kinds(found: Audit) -> list[tuple[HazardKind, Weight]]:
    return [(one.kind, one.weight) for one in found.hazards]


def test_a_sound_image() -> None:
    found = judged(rehearsal=read())
    assert found == Audit(verdict=AuditVerdict.SOUND, strength=Strength.READ_BACK)


@pytest.mark.parametrize(("name", "first"), [("7.3.4", 0x75139000), ("7.2.12", 0x6EF35000)])
def test_the_kernel_runs_into_the_initrd(name: str, first: int) -> None:
    placement = placed(name, "plain")
    kernel = placement.of(Role.KERNEL)
    assert kernel is not None
    found = audit(placement, recorded(name)[0], header(kernel.memsz), rehearsal=read(placement))
    assert found.verdict is AuditVerdict.HAZARDOUS
    (hazard,) = found.of(HazardKind.MISALIGNED_KERNEL)
    assert hazard.weight is Weight.CORRUPTS
    assert (hazard.first, hazard.last) == (first, first + MIB - 1)  # the initrd's first MiB
    assert hazard.segments == (KERNEL, INITRD)
    assert hazard in found.corrupting and f"0x{first:x}" in found.reason


def test_a_misaligned_kernel_with_nothing_behind_it_is_harmless() -> None:
    alone = moved(MISALIGNED, 2 * MIB, Role.INITRD)
    assert judged(alone, read(alone)).verdict is AuditVerdict.SOUND
    touching = moved(MISALIGNED, MIB, Role.INITRD)
    assert judged(touching, read(touching)).verdict is AuditVerdict.SOUND
    by_a_page = moved(MISALIGNED, MIB - 4096, Role.INITRD)
    (hazard,) = judged(by_a_page, read(by_a_page)).corrupting
    assert hazard.kind is HazardKind.MISALIGNED_KERNEL


def test_the_gap_grows_with_the_alignment() -> None:
    placement = moved(MISALIGNED, 8 * MIB, Role.INITRD)
    head = header(0x3C39000, 16 * MIB)  # CONFIG_PHYSICAL_ALIGN=0x1000000
    (hazard,) = judged(placement, read(placement), head=head).corrupting
    kernel = placement.of(Role.KERNEL)
    assert kernel is not None and hazard.first == kernel.end
    assert hazard.last == kernel.end + 11 * MIB - 1  # 0x71500000 -> 0x72000000


def test_a_misaligned_kernel_below_memory_that_is_no_ram() -> None:
    alone = moved(MISALIGNED, -64 * MIB, Role.INITRD)
    kernel = alone.of(Role.KERNEL)
    assert kernel is not None
    facts = replace(FACTS, iomem_ram=((0x100000, kernel.end - 1),))
    (hazard,) = judged(alone, read(alone), facts=facts).corrupting
    assert hazard.kind is HazardKind.MISALIGNED_KERNEL and "no RAM" in hazard.text
    room = replace(FACTS, iomem_ram=((0x100000, kernel.end + MIB - 1),))
    assert judged(alone, read(alone), facts=room).verdict is AuditVerdict.SOUND


@pytest.mark.parametrize("name", ["6.16.12", "6.17.13", "7.2.12-0", "7.2.12", "7.3.4", "7.3.4-40M"])
def test_what_is_copied_has_no_hazard(name: str) -> None:
    load = "plain" if name in ("6.16.12", "7.2.12-0") else "no_cma"
    placement = placed(name, load)
    kernel = placement.of(Role.KERNEL)
    assert kernel is not None
    found = audit(placement, recorded(name)[0], header(kernel.memsz), rehearsal=None)
    assert found.verdict is AuditVerdict.SOUND and not found.corrupting
    able = name in ("7.2.12", "7.3.4", "7.3.4-40M")
    assert kinds(found) == ([(HazardKind.STRAY_DMA, Weight.RISK)] if able else [])


def test_nothing_is_invented_for_a_kernel_that_is_copied() -> None:
    segments = tuple(replace(one, in_cma=False) for one in MISALIGNED.segments)
    copied = replace(MISALIGNED, segments=segments, wholly_in_cma=False, bytes_in_cma=0)
    assert not judged(copied).corrupting


def test_a_stale_tail_with_and_without_a_digest() -> None:
    stale = {"tail_nonzero": 4411392, "first_tail_nonzero": 0xD4C7C0}
    hangs = judged(rehearsal=read(kernel=stale))
    assert hangs.verdict is AuditVerdict.HAZARDOUS
    (hazard,) = hangs.of(HazardKind.STALE_TAIL)
    kernel = ALIGNED.segments[KERNEL]
    assert hazard.segments == (KERNEL,)
    assert (hazard.first, hazard.last) == (kernel.address + 0xD4C7C0, kernel.end - 1)
    assert "loop for ever" in hazard.text
    boots = judged(rehearsal=read(stored=False, kernel=stale))
    assert boots.verdict is AuditVerdict.SOUND
    assert kinds(boots) == [
        (HazardKind.STALE_TAIL, Weight.RISK),
        (HazardKind.NO_DIGEST, Weight.RISK),
    ]
    assert "clears its own .bss" in boots.hazards[0].text


@pytest.mark.parametrize(
    ("name", "index", "fatal"),
    [("purgatory", PURGATORY, False), ("parameters", PARAMETERS, True), ("initrd", INITRD, True)],
)
def test_whose_stale_tail_is_hashed(name: str, index: int, fatal: bool) -> None:
    """Purgatory skips itself: its tail is a stack, and refusing it would refuse a sound image."""
    stale: dict[str, Any] = {name: {"tail_nonzero": 3, "first_tail_nonzero": ALIGNED.segments[index].bufsz}}
    rehearsal = read(**stale)
    found = judged(rehearsal=rehearsal)
    assert found.verdict is (AuditVerdict.HAZARDOUS if fatal else AuditVerdict.SOUND)
    assert found.hazards[0].segments == (index,)
    without = judged(rehearsal=read(stored=False, **stale))
    assert without.verdict is AuditVerdict.SOUND


def test_a_stale_tail_where_the_digest_is_not_known() -> None:
    rehearsal = read(purgatory={"readable": False}, initrd={"tail_nonzero": 3})
    assert rehearsal.digest_stored is None
    found = judged(rehearsal=rehearsal)
    assert found.verdict is AuditVerdict.HAZARDOUS and "not known" in found.reason


@pytest.mark.parametrize("stored", [True, False])
def test_a_body_that_differs(stored: bool) -> None:
    found = judged(rehearsal=read(stored=stored, initrd={"body_differs": 16, "first_difference": 0x1000}))
    (hazard,) = found.corrupting
    assert hazard.kind is HazardKind.BODY_DIFFERS and found.verdict is AuditVerdict.HAZARDOUS
    initrd = ALIGNED.segments[INITRD]
    assert (hazard.first, hazard.last) == (initrd.address + 0x1000, initrd.address + initrd.bufsz - 1)


def test_no_digest_is_recorded() -> None:
    found = judged(rehearsal=read(stored=False))
    assert found.verdict is AuditVerdict.SOUND and found.strength is Strength.READ_BACK
    assert kinds(found) == [(HazardKind.NO_DIGEST, Weight.RISK)]
    assert "the only witnesses" in found.hazards[0].text


@pytest.mark.parametrize("rehearsal", [None, Rehearsal(why_not="/proc/kcore: Operation not permitted")])
def test_without_a_rehearsal_the_boot_log_stands_in(rehearsal: Rehearsal | None) -> None:
    clears = judged(rehearsal=rehearsal, facts=replace(FACTS, init_on_alloc=True))
    assert clears.verdict is AuditVerdict.SOUND and clears.strength is Strength.BOOT_LOG
    assert kinds(clears) == [(HazardKind.UNREADABLE, Weight.RISK)]
    assert "weaker" in clears.hazards[0].text
    for told in (False, None):
        blind = judged(rehearsal=rehearsal, facts=replace(FACTS, init_on_alloc=told))
        assert blind.verdict is AuditVerdict.UNKNOWN and "cannot tell" in blind.reason
        assert blind.strength is Strength.ARITHMETIC


def test_what_could_not_be_read_weighs_only_where_it_matters() -> None:
    lost = {"readable": False, "why_not": "EIO"}
    one = judged(rehearsal=read(parameters=lost))
    assert one.verdict is AuditVerdict.UNKNOWN and "boot parameters" in one.reason
    assert "kernel" not in one.reason
    purgatory = judged(rehearsal=read(stored=False, parameters=lost))  # nothing will hash it
    assert purgatory.verdict is AuditVerdict.SOUND and purgatory.strength is Strength.ARITHMETIC
    assert purgatory.of(HazardKind.UNREADABLE)[0].segments == (PARAMETERS,)


def test_partly_in_cma() -> None:
    part = placed("7.3.4-40M", "plain")
    facts = recorded("7.3.4-40M")[0]
    found = audit(part, replace(facts, init_on_alloc=True), HEADER, rehearsal=None)
    assert found.verdict is AuditVerdict.SOUND and found.strength is Strength.BOOT_LOG
    assert found.of(HazardKind.STRAY_DMA)[0].segments == (KERNEL, INITRD)
    # In CMA or not: who cannot tell cannot call the tails clean either.
    open_ = placed("7.3.4-40M", "plain", before=None, after=None)
    blind = audit(open_, replace(facts, init_on_alloc=False), HEADER, rehearsal=None)
    assert blind.verdict is AuditVerdict.UNKNOWN


def test_memory_that_is_no_ram() -> None:
    initrd = ALIGNED.segments[INITRD]
    for ranges in (
        ((0x100000, initrd.end - 2),),
        ((0x100000, initrd.address - 1),),
        ((0x100000, initrd.address + 5), (initrd.address + 7, 1 << 40)),
        ((initrd.address + 1, 1 << 40), (0x100000, initrd.address - 1)),
    ):
        found = judged(rehearsal=read(), facts=replace(FACTS, iomem_ram=ranges))
        (hazard,) = found.corrupting
        assert hazard.kind is HazardKind.RESERVED_OVERLAP and hazard.segments == (INITRD,)
    seam = ((0x100000, initrd.address), (initrd.address + 1, 1 << 40))
    assert judged(rehearsal=read(), facts=replace(FACTS, iomem_ram=seam)).verdict is AuditVerdict.SOUND
    halves = ((initrd.address + 6, 1 << 40), (0x100000, initrd.address + 5))
    assert judged(rehearsal=read(), facts=replace(FACTS, iomem_ram=halves)).verdict is AuditVerdict.SOUND


def test_a_leak_is_recorded() -> None:
    pages = LEAK_FROM // 4096
    found = judged(rehearsal=read(), cma_before=100000 - pages, cma_baseline=100000)
    assert kinds(found) == [(HazardKind.LEAKED_CMA, Weight.RISK)]
    assert found.verdict is AuditVerdict.SOUND and "firmware" in found.hazards[0].text
    for before, baseline in ((100000 - pages + 1, 100000), (100001, 100000), (None, 1), (1, None)):
        assert not judged(rehearsal=read(), cma_before=before, cma_baseline=baseline).hazards


def erratum(*, fatal: bool) -> Erratum:
    return Erratum(
        name="x",
        hazard="burns",
        action="run",
        reference="here",
        fatal=fatal,
        target=(VersionRange(first="9", before="9.1"),),
    )


def test_errata() -> None:
    fatal = judged(rehearsal=read(), errata=[erratum(fatal=True)], target_release="9.0.3")
    assert fatal.verdict is AuditVerdict.HAZARDOUS and "burns" in fatal.reason and "run" in fatal.reason
    noted = judged(rehearsal=read(), errata=[erratum(fatal=False)], target_release="9.0.3")
    assert kinds(noted) == [(HazardKind.ERRATUM, Weight.RISK)]
    assert not judged(rehearsal=read(), errata=[erratum(fatal=True)], target_release="9.1").hazards
    assert not judged(rehearsal=read(), errata=[erratum(fatal=True)]).hazards


def test_a_placement_that_is_not_known() -> None:
    unknown = Placement(why_unknown="the log has wrapped")
    found = judged(unknown)
    assert found.verdict is AuditVerdict.UNKNOWN and "the log has wrapped" in found.reason
    # Where CMA is out of the question the kernel's own care is enough: such a host is not held back.
    for facts, no_cma in (
        (replace(FACTS, knows_no_cma=False), False),
        (replace(FACTS, cma_areas=None, cma_log_area=None, cma_total_bytes=None), False),
        (FACTS, True),
    ):
        plain = judged(unknown, facts=facts, no_cma=no_cma)
        assert plain.verdict is AuditVerdict.SOUND and "cannot use CMA" in plain.reason
    assert judged(Placement(why_unknown="?"), facts=HostFacts()).verdict is AuditVerdict.UNKNOWN


def test_records_of_another_image() -> None:
    found = judged(rehearsal=read(), head=header(0x3C38000))
    assert found.verdict is AuditVerdict.UNKNOWN and "another load" in found.reason
    assert judged(rehearsal=read(), head=header(0x3C38001)).verdict is AuditVerdict.SOUND  # rounds up
    nobody = replace(ALIGNED, segments=tuple(replace(one, role=Role.OTHER) for one in ALIGNED.segments))
    assert judged(nobody, read()).verdict is AuditVerdict.UNKNOWN


def test_arm64_is_recorded_not_refused() -> None:
    placement = arm64(head="0x4", knows_no_cma=True)
    segments = tuple(replace(one, in_cma=True) for one in placement.segments)
    facts = HostFacts(machine="aarch64", knows_no_cma=True)
    head = header(0x2000, kind=ImageKind.ARM64)
    found = audit(replace(placement, segments=segments), facts, head, rehearsal=None)
    assert found.verdict is AuditVerdict.SOUND and found.strength is Strength.ARITHMETIC
    assert kinds(found) == [
        (HazardKind.MISALIGNED_KERNEL, Weight.RISK),
        (HazardKind.NO_DIGEST, Weight.RISK),
        (HazardKind.UNREADABLE, Weight.RISK),
    ]


def test_as_json() -> None:
    found = audit(MISALIGNED, FACTS, HEADER, rehearsal=None)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["verdict"] == "hazardous" and told["strength"] == "arithmetic"
    assert told["hazards"][0]["kind"] == "misaligned_kernel"
    assert set(told["hazards"][0]) == set(Hazard.__dataclass_fields__)
    assert all(hazard.reference and hazard.cause and hazard.kernels for hazard in found.hazards)


@given(
    st.integers(-64, 64).map(lambda n: n * 4096),
    st.integers(0, 40).map(lambda n: n * MIB // 4),
    st.lists(st.sampled_from([None, 0, 5]), min_size=4, max_size=4),
    st.booleans(),
)
def test_corrupting_exactly_where_something_is_hit(
    kernel_by: int, initrd_by: int, tails: list[int | None], stored: bool
) -> None:
    placement = moved(moved(ALIGNED, kernel_by, Role.KERNEL), 64 * 4096 + initrd_by, Role.INITRD)
    rehearsal = read(placement, stored=stored)
    readings = tuple(
        replace(one, tail_nonzero=tail) for one, tail in zip(rehearsal.readings, tails, strict=True)
    )
    found = judged(placement, replace(rehearsal, readings=readings))
    kernel, initrd = placement.segments[KERNEL], placement.segments[INITRD]
    start = -(-kernel.address // (2 * MIB)) * 2 * MIB
    hit = any(kernel.end <= byte < start + kernel.memsz for byte in (initrd.address, initrd.end - 1)) or any(
        one.address < start + kernel.memsz and kernel.end < one.end for one in placement.segments[:2]
    )
    assert bool(found.of(HazardKind.MISALIGNED_KERNEL)) is (bool(hit) and start != kernel.address)
    hangs = stored and any(tails[1:])
    assert bool(found.of(HazardKind.STALE_TAIL, Weight.CORRUPTS)) is hangs
    blind = stored and None in tails[1:]
    corrupt = bool(found.corrupting)
    expected = AuditVerdict.HAZARDOUS if corrupt else AuditVerdict.UNKNOWN if blind else AuditVerdict.SOUND
    assert found.verdict is expected
