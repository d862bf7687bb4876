"""Repairs: planned from what a first load showed, executed in a world that the planner does not see."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from orchestrator.domain.audit import Audit, AuditVerdict, Hazard, HazardKind, Strength, Weight, audit
from orchestrator.domain.bootimage import ImageKind
from orchestrator.domain.cmamodel import Area, Span, round_up
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.placement import Placement, Role
from orchestrator.domain.rehearsal import Rehearsal
from orchestrator.domain.repair import Derived, NoRepair, Repair, Try, plan_repair, signed_only
from orchestrator.domain.spacers import TINY_BODY, needed_area
from tests.unit.cmaworld import MIB, PAGE, SETUP, World, header
from tests.unit.test_placement import placed, recorded

KERNEL_7_3_4 = 0x3C39000
FILE_7_3_4 = SETUP + 0xD4C7C0
INITRD = 0x64BBC00
POOLS = 0x48000


def world(
    size: int,
    *,
    base: int = 0x60C00000,
    init_size: int = KERNEL_7_3_4,
    initrd_size: int = INITRD,
    keeps_digest: bool = True,
    dirty: bool = False,
    pools: int = POOLS,
) -> World:
    area = Area(base=base, size=size, taken=(Span(base, base + pools),))
    host = World(
        area=area,
        header=header(init_size),
        kernel_size=FILE_7_3_4,
        initrd_size=initrd_size,
        keeps_digest=keeps_digest,
    )
    host.soil(*([Span(base, base + size)] if dirty else []))
    return host


def attempt(
    host: World, repair: Repair | None, *, base_known: bool = True, told: bool = True
) -> tuple[Try, Rehearsal]:
    """`told`: the spacers' placements are known too."""
    placement, rehearsal = host.execute(repair)
    found = audit(placement, host.facts(base_known=base_known), host.header, rehearsal=rehearsal)
    spacers = host.spacers if told else ()
    return Try(repair=repair, audit=found, placement=placement, spacers=spacers), rehearsal


def plan(
    host: World, tries: list[Try], *, signed: bool = False, base_known: bool = True
) -> Repair | NoRepair:
    return plan_repair(
        tries,
        host.facts(base_known=base_known),
        host.header,
        host.kernel_size,
        host.initrd_size,
        signed_only=signed,
    )


def until_settled(
    host: World, *, signed: bool = False, told: bool = True
) -> tuple[list[Try], Rehearsal, NoRepair | None]:
    """Load, audit, plan, load again, ...: as the worker does it."""
    repair: Repair | None = None
    tries: list[Try] = []
    while True:
        one, rehearsal = attempt(host, repair, told=told)
        tries.append(one)
        if one.audit.verdict is AuditVerdict.SOUND:
            return tries, rehearsal, None
        step = plan(host, tries, signed=signed)
        if isinstance(step, NoRepair):
            return tries, rehearsal, step
        repair = step


@pytest.mark.parametrize(("name", "base"), [("7.3.4", 0x71400000), ("7.2.12", 0x6B200000)])
def test_a_recorded_load_is_put_right_by_a_spacer_of_one_mebibyte(name: str, base: int) -> None:
    """As run: the tiny spacer took base + 1 MiB, the real kernel landed on base + 2 MiB (facts/kernel.md)."""
    facts = replace(recorded(name)[0], init_on_alloc=True)  # as these hosts' boot logs say
    first = placed(name, "plain")
    kernel = first.of(Role.KERNEL)
    assert kernel is not None and kernel.address == base + MIB
    head = header(kernel.memsz)
    found = audit(first, facts, head, rehearsal=None)
    assert found.verdict is AuditVerdict.HAZARDOUS
    tries = [Try(repair=None, audit=found, placement=first)]
    repair = plan_repair(tries, facts, head, kernel.bufsz + SETUP, 0x1C9C380, signed_only=False)
    assert isinstance(repair, Repair)
    assert repair.expected_kernel_address == base + 2 * MIB
    assert repair.kinds == ("spacer",) and repair.kernel is None and repair.initrd is None
    (spacer,) = repair.spacers
    assert spacer.memory == MIB and not spacer.with_initrd and not spacer.alone
    size = SETUP + TINY_BODY
    patch = (0x260, struct.pack("<I", MIB))
    assert spacer.kernel == Derived(role="kernel", take=size, size=size, patches=(patch,))


def test_the_load_of_7_3_4_in_384_mib_is_sound_where_it_lies() -> None:
    """An aligned placement is not repaired: kernel at 0x60e00000, which is a multiple of 2 MiB."""
    host = world(384 * MIB)
    host.area = replace(host.area, pinned=(Span(0x60D00000, 0x60D01000),))
    one, _ = attempt(host, None)
    spots = [(segment.address, segment.memsz) for segment in one.placement.segments]
    assert spots == [
        (0x60C48000, 0x5000),
        (0x60C4D000, 0x2000),
        (0x60E00000, 0x3C39000),
        (0x64A39000, 0x64BC000),
    ]
    assert one.audit.verdict is AuditVerdict.SOUND
    assert isinstance(plan(host, [one]), NoRepair)


def test_cma_little_larger_than_the_image_is_enough() -> None:
    facts = HostFacts(page_size=PAGE)
    needed = needed_area(facts, header(KERNEL_7_3_4), INITRD, signed_only=False)
    assert needed == 176 * MIB  # 161 MiB of segments
    host = world(needed)
    tries, rehearsal, refused = until_settled(host)
    assert refused is None and len(tries) == 2
    assert tries[1].placement.wholly_in_cma and host.survives(tries[1].placement, rehearsal)
    both = needed_area(facts, header(KERNEL_7_3_4), INITRD, signed_only=True)
    assert both == 240 * MIB
    tries, _, refused = until_settled(world(both), signed=True)
    assert refused is None and tries[-1].placement.wholly_in_cma


def test_signed_hosts_get_the_real_image_for_a_spacer() -> None:
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    repair = plan(host, [one], signed=True)
    assert isinstance(repair, Repair)
    assert [spacer.kernel for spacer in repair.spacers] == [None, None]
    assert repair.kinds == ("spacer", "padding", "washing")
    assert repair.kernel is None
    again, _ = attempt(host, repair)
    kernel = again.placement.of(Role.KERNEL)
    assert kernel is not None and kernel.address == repair.expected_kernel_address
    assert again.audit.verdict is AuditVerdict.SOUND


def test_signed_hosts_whose_area_holds_no_second_image() -> None:
    host = world(192 * MIB)
    one, _ = attempt(host, None)
    refused = plan(host, [one], signed=True)
    assert isinstance(refused, NoRepair)
    assert "192 MiB is too small" in refused.reason and "cma=240M" in refused.hint
    assert isinstance(plan(host, [one]), Repair)


def test_an_area_too_small_for_the_image() -> None:
    host = world(112 * MIB)
    tries, _, refused = until_settled(host)
    assert tries[0].placement.wholly_in_cma is False
    assert refused is None  # what fell outside is copied and aligned: no hazard
    refusal = plan(host, tries)
    assert isinstance(refusal, NoRepair)
    assert "112 MiB is too small" in refusal.reason and "cma=176M" in refusal.hint


def test_stale_tails_are_padded_and_the_small_page_is_washed() -> None:
    host = world(192 * MIB, dirty=True)
    tries, rehearsal, refused = until_settled(host)
    assert refused is None
    assert tries[0].audit.of(HazardKind.STALE_TAIL, Weight.CORRUPTS)
    last = tries[-1]
    assert last.repair is not None and last.repair.kinds == ("spacer", "padding", "washing")
    assert last.repair.kernel == Derived(role="kernel", take=None, size=SETUP + KERNEL_7_3_4)
    assert last.repair.initrd == Derived(role="initrd", take=None, size=round_up(INITRD, PAGE))
    washer, spacer = last.repair.spacers
    assert washer.initrd is not None and washer.initrd.take == 0 and not washer.alone
    assert spacer.alone
    assert host.survives(last.placement, rehearsal)
    kernel = last.placement.of(Role.KERNEL)
    assert kernel is not None and kernel.bufsz == kernel.memsz
    assert host.loads == 4 and len(tries) == 2


def test_padding_alone_where_the_kernel_is_aligned_already() -> None:
    host = world(192 * MIB)
    host.area = replace(host.area, base=host.area.base + MIB, taken=(Span(0x60D00000, 0x60D48000),))
    host.soil(Span(0x63000000, 0x64000000))  # the kernel's .bss, and only that
    tries, _, refused = until_settled(host)
    assert refused is None and len(tries) == 2
    assert tries[1].repair is not None and tries[1].repair.kinds == ("padding",)
    assert not tries[1].repair.spacers


def test_stale_tails_are_left_alone_where_nothing_hashes_them() -> None:
    host = world(192 * MIB, dirty=True, keeps_digest=False)
    tries, rehearsal, refused = until_settled(host)
    assert refused is None
    assert tries[-1].repair is not None and tries[-1].repair.kinds == ("spacer",)
    assert tries[-1].audit.of(HazardKind.STALE_TAIL, Weight.RISK)
    assert tries[-1].audit.of(HazardKind.NO_DIGEST)
    assert host.survives(tries[-1].placement, rehearsal)


def test_signed_hosts_wash_what_they_cannot_pad() -> None:
    host = world(384 * MIB, dirty=True)
    tries, rehearsal, refused = until_settled(host, signed=True)
    assert refused is None and len(tries) == 2
    repair = tries[1].repair
    assert repair is not None and repair.kernel is None
    assert all(spacer.kernel is None for spacer in repair.spacers)
    assert [spacer.alone for spacer in repair.spacers] == [False, True, True]
    assert host.survives(tries[1].placement, rehearsal)


def test_the_area_s_place_may_be_missing_from_the_log() -> None:
    host = world(192 * MIB)
    one, _ = attempt(host, None, base_known=False)
    repair = plan(host, [one], base_known=False)
    assert isinstance(repair, Repair)
    again, _ = attempt(host, repair)
    kernel = again.placement.of(Role.KERNEL)
    assert kernel is not None and kernel.address == repair.expected_kernel_address
    assert again.audit.verdict is AuditVerdict.SOUND


def test_what_was_tried_is_not_planned_again_and_tries_are_bounded() -> None:
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    tries = [one]
    while isinstance(repair := plan(host, tries), Repair):
        assert not any(other.repair is not None and other.repair.same_as(repair) for other in tries)
        # The load goes exactly where the first one went, whatever was loaded before it.
        tries.append(Try(repair=repair, audit=one.audit, placement=one.placement))
    assert len(tries) == 5
    assert "4 repairs were tried" in repair.reason
    for limit in (0, 1, 2):
        refused = plan_repair(
            tries[: limit + 1],
            host.facts(),
            host.header,
            host.kernel_size,
            host.initrd_size,
            signed_only=False,
            limit=limit,
        )
        assert isinstance(refused, NoRepair) and f"{limit} repairs" in refused.reason


def test_the_spacer_s_own_place_teaches_too() -> None:
    """A page that nobody told of makes the spacer itself jump on; seeing that, the next plan fits."""
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    host.area = replace(host.area, pinned=(Span(0x60D00000, 0x60D01000),))  # pinned after the first load
    repair = plan(host, [one])
    assert isinstance(repair, Repair)
    two, _ = attempt(host, repair)
    assert two.audit.verdict is AuditVerdict.HAZARDOUS
    again = plan(host, [one, two])
    assert isinstance(again, Repair) and not again.same_as(repair)
    three, _ = attempt(host, again)
    assert three.audit.verdict is AuditVerdict.SOUND


def test_spacers_that_nobody_saw_are_taken_from_the_model() -> None:
    """The page was soiled again before the image came: the next repair must start from a true picture.

    20 pages are free below the first MiB, no more than the washer, the spacer and the image need there.
    """
    host = world(256 * MIB, dirty=True, pools=MIB - 20 * PAGE)
    one, _ = attempt(host, None)
    repair = plan(host, [one])
    assert isinstance(repair, Repair) and len(repair.spacers) == 2
    two, _ = attempt(host, repair, told=False)
    again = plan(host, [one, replace(two, audit=one.audit)])
    assert isinstance(again, Repair) and not again.same_as(repair)
    three, _ = attempt(host, again)
    kernel = three.placement.of(Role.KERNEL)
    assert kernel is not None and kernel.address == again.expected_kernel_address
    assert three.audit.verdict is AuditVerdict.SOUND
    assert again.spacers[-1].memory == 3 * MIB  # the cheapest that is left


def hazard(kind: HazardKind, *segments: int) -> Audit:
    found = Hazard(
        kind=kind,
        weight=Weight.CORRUPTS,
        text="x",
        cause="x",
        kernels="x",
        reference="x",
        segments=segments,
    )
    return Audit(verdict=AuditVerdict.HAZARDOUS, hazards=(found,), strength=Strength.READ_BACK, reason="x")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (HazardKind.BODY_DIFFERS, "does not hold what was loaded"),
        (HazardKind.RESERVED_OVERLAP, "not free RAM"),
        (HazardKind.ERRATUM, "erratum"),
    ],
)
def test_what_no_other_place_would_cure(kind: HazardKind, words: str) -> None:
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    refused = plan(host, [replace(one, audit=hazard(kind, 2))])
    assert isinstance(refused, NoRepair) and words in refused.reason


def test_a_stale_segment_of_another_kind() -> None:
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    segments = (*one.placement.segments[:3], replace(one.placement.segments[3], role=Role.OTHER))
    odd = replace(one.placement, segments=segments)
    refused = plan(host, [replace(one, placement=odd, audit=hazard(HazardKind.STALE_TAIL, 3))])
    assert isinstance(refused, NoRepair) and "stale tail of: other" in refused.reason


def test_nothing_is_planned_from_nothing() -> None:
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    assert isinstance(plan(host, []), NoRepair)
    blind = Audit(verdict=AuditVerdict.UNKNOWN, reason="the log has wrapped")
    unknown = plan(host, [Try(repair=None, audit=blind, placement=Placement())])
    assert isinstance(unknown, NoRepair) and "the log has wrapped" in unknown.reason
    arm = plan_repair(
        [one],
        host.facts(),
        header(KERNEL_7_3_4, kind=ImageKind.ARM64),
        host.kernel_size,
        host.initrd_size,
        signed_only=False,
    )
    assert isinstance(arm, NoRepair) and "x86_64" in arm.reason
    plain = replace(host.facts(), knows_no_cma=False)
    none = plan_repair([one], plain, host.header, host.kernel_size, host.initrd_size, signed_only=False)
    assert isinstance(none, NoRepair) and "no CMA area" in none.reason


def test_an_alignment_that_the_allocator_honours_needs_no_spacer() -> None:
    """CONFIG_CMA_ALIGNMENT=9 is 2 MiB: the model goes by the host's own config."""
    host = world(256 * MIB)
    one, _ = attempt(host, None)
    facts = replace(host.facts(), config={"CONFIG_CMA_ALIGNMENT": "9"})
    assert isinstance(
        plan_repair([one], facts, host.header, host.kernel_size, host.initrd_size, signed_only=False), Repair
    )
    host = world(256 * MIB)
    host.area = replace(host.area, alignment_order=9)
    two, _ = attempt(host, None)
    assert two.audit.verdict is AuditVerdict.SOUND


@pytest.mark.parametrize(
    ("facts", "signed"),
    [
        (HostFacts(), False),
        (HostFacts(lockdown="none", secure_boot=False), False),
        (HostFacts(lockdown="integrity"), True),
        (HostFacts(lockdown="confidentiality"), True),
        (HostFacts(secure_boot=True), True),
        (HostFacts(config={"CONFIG_KEXEC_SIG": "y"}), False),
        (HostFacts(config={"CONFIG_KEXEC_SIG_FORCE": "y"}), True),
        (HostFacts(config={"CONFIG_KEXEC_SIG_FORCE": "n"}), False),
    ],
)
def test_which_hosts_load_signed_kernels_only(facts: HostFacts, signed: bool) -> None:
    assert signed_only(facts) is signed
