"""The ladder: every rule by example, and the promises that hold for any history by property."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.facts import CmaArea, HostFacts
from orchestrator.domain.ladder import (
    BLAMELESS,
    KEXEC_FILE_DEBUG,
    KEXEC_FILE_NO_CMA,
    MAX_UNCOUNTED,
    UNCOUNTED,
    CheckLevel,
    GiveUp,
    Load,
    LoadPath,
    Look,
    PastAttempt,
    Step,
    next_step,
)
from orchestrator.domain.playbook import AfterFailure
from orchestrator.domain.policy import CmaPolicy
from orchestrator.domain.rollout import Outcome

AREA = CmaArea(name="reserved", size=384 << 20, total_pages=98304)
EMPTY_AREA = CmaArea(name="reserved", size=0, total_pages=0)

WITH_CMA = HostFacts(knows_no_cma=True, knows_debug=True, cma_areas=(AREA,))
NO_AREA = HostFacts(knows_no_cma=True, knows_debug=True, meminfo_read=True)
EMPTY = HostFacts(knows_no_cma=True, knows_debug=True, cma_areas=(EMPTY_AREA,))
UNKNOWN_FLAG = HostFacts(knows_no_cma=False, knows_debug=True, meminfo_read=True)
OLD = HostFacts(knows_no_cma=False, knows_debug=False, meminfo_read=True)
PROBE_FAILED = HostFacts(knows_debug=None, cma_areas=(AREA,))
PROBE_FAILED_NO_AREA = HostFacts(meminfo_read=True)
NOTHING_KNOWN = HostFacts()
MAYBE_AREA = HostFacts(knows_no_cma=True, knows_debug=True, meminfo_read=True, cma_total_bytes=1 << 28)

ALL_FACTS = [WITH_CMA, NO_AREA, EMPTY, UNKNOWN_FLAG, OLD, PROBE_FAILED, PROBE_FAILED_NO_AREA]
ALL_FACTS += [MAYBE_AREA, NOTHING_KNOWN]
CMA_FAILURES = [
    Outcome.LOAD_REFUSED,
    Outcome.AUDIT_REFUSED,
    Outcome.JUMP_REFUSED,
    Outcome.FELL_BACK,
    Outcome.SILENT,
    Outcome.CORRUPTED,
]


def step(
    facts: HostFacts,
    policy: CmaPolicy = CmaPolicy.PREFER,
    attempts: Sequence[PastAttempt] = (),
    limit: int = 3,
    after_failure: AfterFailure = AfterFailure.RETRY,
) -> Step:
    return next_step(facts, policy, attempts, limit, after_failure)


def past(path: LoadPath, outcome: Outcome, resolved: bool = False) -> PastAttempt:
    return PastAttempt(path=path, outcome=outcome, resolved=resolved)


@pytest.mark.parametrize(
    ("facts", "policy", "path", "flags"),
    [
        (WITH_CMA, CmaPolicy.PREFER, LoadPath.CMA, KEXEC_FILE_DEBUG),
        (WITH_CMA, CmaPolicy.REQUIRE, LoadPath.CMA, KEXEC_FILE_DEBUG),
        (WITH_CMA, CmaPolicy.NEVER, LoadPath.NO_CMA, KEXEC_FILE_DEBUG | KEXEC_FILE_NO_CMA),
        (NO_AREA, CmaPolicy.PREFER, LoadPath.PLAIN, KEXEC_FILE_DEBUG),
        (NO_AREA, CmaPolicy.NEVER, LoadPath.NO_CMA, KEXEC_FILE_DEBUG | KEXEC_FILE_NO_CMA),
        (EMPTY, CmaPolicy.PREFER, LoadPath.PLAIN, KEXEC_FILE_DEBUG),
        (UNKNOWN_FLAG, CmaPolicy.PREFER, LoadPath.PLAIN, KEXEC_FILE_DEBUG),
        (UNKNOWN_FLAG, CmaPolicy.NEVER, LoadPath.PLAIN, KEXEC_FILE_DEBUG),
        (OLD, CmaPolicy.PREFER, LoadPath.PLAIN, 0),
        (PROBE_FAILED, CmaPolicy.PREFER, LoadPath.CMA, 0),
        (NOTHING_KNOWN, CmaPolicy.PREFER, LoadPath.CMA, 0),
        (PROBE_FAILED_NO_AREA, CmaPolicy.PREFER, LoadPath.PLAIN, 0),
        (PROBE_FAILED, CmaPolicy.NEVER, LoadPath.NO_CMA, KEXEC_FILE_NO_CMA),
        (MAYBE_AREA, CmaPolicy.PREFER, LoadPath.CMA, KEXEC_FILE_DEBUG),
        (MAYBE_AREA, CmaPolicy.REQUIRE, LoadPath.CMA, KEXEC_FILE_DEBUG),
    ],
)
def test_first_attempt(facts: HostFacts, policy: CmaPolicy, path: LoadPath, flags: int) -> None:
    answer = step(facts, policy)
    assert isinstance(answer, Load)
    assert (answer.path, answer.flags) == (path, flags)
    assert answer.reason


@pytest.mark.parametrize("facts", [NO_AREA, EMPTY, UNKNOWN_FLAG, OLD, PROBE_FAILED])
def test_require_fails_where_there_is_no_cma(facts: HostFacts) -> None:
    answer = step(facts, CmaPolicy.REQUIRE)
    assert isinstance(answer, GiveUp)
    assert answer.hint


def test_require_without_an_area_says_how_to_get_one() -> None:
    answer = step(NO_AREA, CmaPolicy.REQUIRE)
    assert isinstance(answer, GiveUp)
    assert "cma=" in answer.hint


@pytest.mark.parametrize("outcome", CMA_FAILURES)
def test_after_a_failure_with_cma_the_retry_forces_no_cma(outcome: Outcome) -> None:
    answer = step(WITH_CMA, attempts=[past(LoadPath.CMA, outcome)])
    assert isinstance(answer, Load)
    assert answer.path is LoadPath.NO_CMA
    assert answer.flags & KEXEC_FILE_NO_CMA
    assert outcome.value in answer.reason


def test_a_lost_attempt_is_looked_at_first_and_blamed_once_resolved() -> None:
    assert isinstance(step(WITH_CMA, attempts=[past(LoadPath.CMA, Outcome.LOST)]), Look)
    later = [past(LoadPath.CMA, Outcome.LOST), past(LoadPath.CMA, Outcome.CANCELLED)]
    assert isinstance(step(WITH_CMA, attempts=later), Look)
    answer = step(WITH_CMA, attempts=[past(LoadPath.CMA, Outcome.LOST, resolved=True)])
    assert isinstance(answer, Load) and answer.path is LoadPath.NO_CMA


@pytest.mark.parametrize("outcome", sorted(BLAMELESS))
def test_what_blames_no_kernel_forces_nothing(outcome: Outcome) -> None:
    answer = step(WITH_CMA, attempts=[past(LoadPath.CMA, outcome)])
    assert isinstance(answer, Load) and answer.path is LoadPath.CMA


def test_a_failure_with_cma_is_remembered_past_a_blameless_one() -> None:
    history = [past(LoadPath.CMA, Outcome.SILENT), past(LoadPath.NO_CMA, Outcome.NEVER_LEFT)]
    answer = step(WITH_CMA, attempts=history)
    assert isinstance(answer, Load) and answer.path is LoadPath.NO_CMA


def test_after_a_failure_with_cma_an_area_that_is_gone_does_not_lift_the_force() -> None:
    # The firmware's boot may come up with another command line, without cma=.
    answer = step(NO_AREA, attempts=[past(LoadPath.CMA, Outcome.FELL_BACK)])
    assert isinstance(answer, Load) and answer.flags & KEXEC_FILE_NO_CMA


def test_a_kernel_without_the_flag_is_retried_without_it() -> None:
    answer = step(OLD, attempts=[past(LoadPath.PLAIN, Outcome.SILENT)])
    assert answer == Load(path=LoadPath.PLAIN, flags=0, reason=answer.reason)


def test_require_gives_up_after_a_failure_with_cma() -> None:
    answer = step(WITH_CMA, CmaPolicy.REQUIRE, [past(LoadPath.CMA, Outcome.CORRUPTED)])
    assert isinstance(answer, GiveUp) and "corrupted" in answer.reason


def test_limit_and_stop() -> None:
    two = [past(LoadPath.CMA, Outcome.SILENT), past(LoadPath.NO_CMA, Outcome.SILENT)]
    assert isinstance(step(WITH_CMA, attempts=two, limit=3), Load)
    assert isinstance(step(WITH_CMA, attempts=two, limit=2), GiveUp)
    assert isinstance(step(WITH_CMA, attempts=two[:1], after_failure=AfterFailure.STOP), GiveUp)
    cancelled = [past(LoadPath.CMA, Outcome.CANCELLED)]
    assert isinstance(step(WITH_CMA, attempts=cancelled, after_failure=AfterFailure.STOP), Load)


@pytest.mark.parametrize("outcome", sorted(UNCOUNTED))
def test_what_is_not_counted_is_bounded_all_the_same(outcome: Outcome) -> None:
    history = [past(LoadPath.CMA, outcome)] * MAX_UNCOUNTED
    assert isinstance(step(WITH_CMA, attempts=history[:-1], limit=1), Load)
    assert isinstance(step(WITH_CMA, attempts=history, limit=1), GiveUp)


def test_booted_is_not_tried_again() -> None:
    assert isinstance(step(WITH_CMA, attempts=[past(LoadPath.CMA, Outcome.BOOTED)]), GiveUp)


outcomes = st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.BOOTED])
histories = st.lists(
    st.builds(PastAttempt, path=st.sampled_from(LoadPath), outcome=outcomes, resolved=st.just(True)),
    max_size=12,
)
worlds = st.tuples(
    st.sampled_from(ALL_FACTS), st.sampled_from(CmaPolicy), st.sampled_from(AfterFailure), st.integers(1, 10)
)


@given(world=worlds, history=histories)
def test_never_cma_after_a_failure_with_cma(
    world: tuple[HostFacts, CmaPolicy, AfterFailure, int], history: list[PastAttempt]
) -> None:
    facts, policy, after_failure, limit = world
    answer = next_step(facts, policy, history, limit, after_failure)
    if any(a.path is LoadPath.CMA and a.outcome not in BLAMELESS for a in history):
        assert not (isinstance(answer, Load) and answer.path is LoadPath.CMA)
        if isinstance(answer, Load) and facts.knows_no_cma is not False:
            assert answer.flags & KEXEC_FILE_NO_CMA


@given(world=worlds, history=histories)
def test_policy_flags_and_paths_agree(
    world: tuple[HostFacts, CmaPolicy, AfterFailure, int], history: list[PastAttempt]
) -> None:
    facts, policy, after_failure, limit = world
    answer = next_step(facts, policy, history, limit, after_failure)
    if not isinstance(answer, Load):
        return
    assert bool(answer.flags & KEXEC_FILE_NO_CMA) == (answer.path is LoadPath.NO_CMA)
    assert bool(answer.flags & KEXEC_FILE_DEBUG) == bool(facts.knows_debug)
    if facts.knows_no_cma is False:
        assert answer.path is LoadPath.PLAIN
    if policy is CmaPolicy.REQUIRE:
        assert answer.path is LoadPath.CMA
    if policy is CmaPolicy.NEVER:
        assert answer.path is not LoadPath.CMA
        assert answer.path is LoadPath.NO_CMA or facts.knows_no_cma is False


@given(world=worlds, replies=st.lists(outcomes.filter(lambda o: o is not Outcome.LOST), min_size=20))
def test_a_host_is_never_loaded_for_ever(
    world: tuple[HostFacts, CmaPolicy, AfterFailure, int], replies: list[Outcome]
) -> None:
    facts, policy, after_failure, limit = world
    history: list[PastAttempt] = []
    for outcome in replies:
        answer = next_step(facts, policy, history, limit, after_failure)
        if not isinstance(answer, Load):
            break
        history.append(past(answer.path, outcome))
    counted = [attempt for attempt in history if attempt.outcome not in UNCOUNTED]
    assert len(counted) <= (1 if after_failure is AfterFailure.STOP else limit)
    assert len(history) - len(counted) <= MAX_UNCOUNTED


def test_a_refused_audit_costs_no_attempt_and_forces_no_cma() -> None:
    answer = step(WITH_CMA, attempts=[past(LoadPath.CMA, Outcome.AUDIT_REFUSED)], limit=1)
    assert isinstance(answer, Load) and answer.path is LoadPath.NO_CMA


@pytest.mark.parametrize("path", [LoadPath.NO_CMA, LoadPath.PLAIN])
def test_an_image_that_is_hazardous_outside_cma_too_is_given_up(path: LoadPath) -> None:
    answer = step(WITH_CMA, attempts=[past(path, Outcome.AUDIT_REFUSED)])
    assert isinstance(answer, GiveUp) and "outside CMA" in answer.reason


def test_every_way_but_the_plain_one_raises_the_checks_and_says_what_is_at_risk() -> None:
    levels = {
        answer.path: answer.level
        for facts, policy in (
            (WITH_CMA, CmaPolicy.PREFER),
            (WITH_CMA, CmaPolicy.NEVER),
            (OLD, CmaPolicy.PREFER),
        )
        if isinstance(answer := step(facts, policy), Load)
    }
    assert levels == {
        LoadPath.CMA: CheckLevel.RAISED,
        LoadPath.NO_CMA: CheckLevel.RAISED,
        LoadPath.PLAIN: CheckLevel.NORMAL,
    }
