"""The transition table: what may follow what, and that its picture is the README's."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.errors import IllegalTransition
from orchestrator.domain.rollout import TERMINAL, TRANSITIONS, Phase, draw, require_transition

ROOT = Path(__file__).parents[2]


def test_every_phase_has_a_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {Phase.PENDING}
    while more := {new for old in reached for new in TRANSITIONS[old]} - reached:
        reached |= more
    assert reached == set(Phase)


def test_an_illegal_transition_raises() -> None:
    with pytest.raises(IllegalTransition, match="web1: no transition from pending to done"):
        require_transition("web1", Phase.PENDING, Phase.DONE)


def test_nothing_leaves_a_terminal_phase() -> None:
    assert all(not TRANSITIONS[phase] for phase in TERMINAL)


def test_a_jump_is_never_reached_but_through_armed() -> None:
    assert [old for old in Phase if Phase.JUMPING in TRANSITIONS[old]] == [Phase.ARMED]


def test_every_phase_may_end_in_failed() -> None:
    assert all(Phase.FAILED in TRANSITIONS[phase] for phase in set(Phase) - TERMINAL)


def test_the_readme_draws_this_table() -> None:
    assert draw() in (ROOT / "README.md").read_text()
