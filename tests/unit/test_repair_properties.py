"""Properties of the planner, against worlds with small images so that many can be tried."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.audit import AuditVerdict, HazardKind, audit
from orchestrator.domain.cmamodel import Area, Span, round_up
from orchestrator.domain.placement import Placement, Role
from orchestrator.domain.repair import Derived, Repair, Spacer
from orchestrator.domain.spacers import TINY_BODY, tiny_spacer
from tests.unit.cmaworld import MIB, PAGE, SETUP, World, header
from tests.unit.test_cmamodel import spans
from tests.unit.test_repair import attempt, plan, until_settled

LIMIT = 4


@st.composite
def worlds(draw: st.DrawFn, *, usual: bool = False) -> World:
    """Nothing hidden: others hold the area's first pages, as drivers do, and the pages are clean.

    `usual`: they leave room below the first MiB, and the kernel is larger than that.
    """
    # Hypothesis' integers are small ones mostly, which make images that nothing can happen to.
    base = draw(st.integers(16, 40)) * MIB
    size = draw(st.sampled_from([6, 8, 10, 12, 16, 20, 24, 32, 40])) * MIB
    pools = (
        draw(st.sampled_from([0, 1, 72, 200] if usual else [0, 1, 72, 200, 236, 250, 300, 520, 600])) * PAGE
    )
    pages = draw(st.sampled_from([512, 700, 1025, 2048] if usual else [1, 50, 256, 512, 700, 1025, 2048]))
    init_size = pages * PAGE + draw(st.sampled_from([0, 1, 100]))
    body = draw(st.integers(TINY_BODY, max(TINY_BODY, init_size - 1)))
    return World(
        area=Area(base=base, size=size, taken=(Span(base, base + pools),) if pools else ()),
        header=header(max(init_size, body), draw(st.sampled_from([2 * MIB, 4 * MIB]))),
        kernel_size=SETUP + body,
        initrd_size=draw(st.sampled_from([0, 1, 700 * PAGE, 3 * MIB + 5, 4 * MIB, 9 * MIB - 1, 12 * MIB])),
        keeps_digest=draw(st.booleans()),
    )


def good(placement: Placement, alignment: int) -> bool:
    kernel = placement.of(Role.KERNEL)
    assert kernel is not None
    return placement.wholly_in_cma is True and kernel.address % alignment == 0


def searched(host: World, signed: bool) -> list[Repair]:
    """Every single spacer of the sizes that the planner says it searches."""
    steps = max(4, 2 * host.header.kernel_alignment // MIB)
    if not signed:
        return [Repair(spacers=(tiny_spacer(host.header, n * MIB),)) for n in range(1, steps + 1)]
    memory = round_up(host.header.init_size, PAGE)
    fillers = [Derived(role="initrd", take=0, size=n * MIB) for n in range(1, steps + 1)]
    found = [Spacer(kernel=None, with_initrd=False, memory=memory)]
    found += [Spacer(kernel=None, with_initrd=True, memory=memory, initrd=one) for one in fillers]
    if host.initrd_size:
        found.append(Spacer(kernel=None, with_initrd=True, memory=memory))
    return [Repair(spacers=(spacer,)) for spacer in found]


@settings(max_examples=150, deadline=None)
@given(worlds(), st.booleans())
def test_a_plan_is_right_and_none_means_none(host: World, signed: bool) -> None:
    first, _ = attempt(host, None)
    step = plan(host, [first], signed=signed)
    alignment = host.header.kernel_alignment
    if isinstance(step, Repair):
        placement, rehearsal = host.execute(step)
        assert good(placement, alignment)
        kernel = placement.of(Role.KERNEL)
        assert kernel is not None and kernel.address == step.expected_kernel_address
        # A signed kernel's tail, and the small page, may lie over what the first load wrote, where there is
        # no room to wash: then it is the audit that says so.
        again = audit(placement, host.facts(), host.header, rehearsal=rehearsal)
        assert (again.verdict is AuditVerdict.SOUND) is host.survives(placement, rehearsal)
        stale = {index for one in again.corrupting for index in one.segments}
        roles = {one.role for one in placement.segments if one.index in stale}
        assert not again.of(HazardKind.MISALIGNED_KERNEL)
        assert roles <= {Role.BOOT_PARAMETERS, *([Role.KERNEL] if signed else [])}
        assert Role.KERNEL not in roles or "washing" not in step.kinds
        return
    if first.audit.verdict is AuditVerdict.SOUND and first.placement.wholly_in_cma:
        return
    assert not any(good(host.execute(repair)[0], alignment) for repair in searched(host, signed))


@st.composite
def hostile_worlds(draw: st.DrawFn) -> World:
    """Pages that somebody holds or has pinned anywhere, and stale bytes anywhere."""
    host = draw(worlds())
    bare = Area(base=host.area.base, size=host.area.size)
    host.area = replace(
        host.area,
        taken=(*host.area.taken, *draw(spans(bare, 2))),
        pinned=draw(spans(bare, 3)),
    )
    host.soil(*draw(st.one_of(spans(bare, 3), st.just((Span(bare.base, bare.end),)))))
    return host


@settings(max_examples=250, deadline=None)
@given(hostile_worlds(), st.booleans(), st.booleans())
def test_the_loop_ends_and_what_it_calls_sound_survives(host: World, signed: bool, told: bool) -> None:
    tries, rehearsal, refused = until_settled(host, signed=signed, told=told)
    assert len(tries) <= LIMIT + 1
    repairs = [one.repair for one in tries if one.repair is not None]
    for number, repair in enumerate(repairs):
        assert not any(repair.same_as(other) for other in repairs[:number])
        assert not (signed and repair.kernel is not None)
        assert not signed or all(spacer.kernel is None for spacer in repair.spacers)
    last = tries[-1]
    survives = host.survives(last.placement, rehearsal)
    if last.audit.verdict is AuditVerdict.SOUND:
        assert refused is None and survives
    else:
        # Not refused without a reason either: what is given up would really have gone wrong.
        assert refused is not None and refused.reason and not survives


@settings(max_examples=100, deadline=None)
@given(worlds(usual=True))
def test_dirty_memory_is_mastered_where_there_is_room(host: World) -> None:
    """All pages stale, nothing hidden, an unsigned image, room for three: two repairs are enough."""
    host.area = replace(host.area, size=3 * host.area.size + 64 * MIB)
    host.soil(Span(host.area.base, host.area.end))
    tries, rehearsal, refused = until_settled(host)
    assert refused is None, refused
    assert len(tries) <= 3
    assert host.survives(tries[-1].placement, rehearsal)
