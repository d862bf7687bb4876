"""What the lab tests say when they fail, and that they fail at once: their own tools, without a VM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.rollout import Phase
from tests.support.rollouts import CONSOLE_LINES, Rollouts


@pytest.fixture
def rollouts(tmp_path: Path) -> Rollouts:
    """One whose hosts have a console and nothing else."""
    console = tmp_path / "console.log"
    console.write_text("".join(f"line {number}.\n" for number in range(100)))
    fleet = SimpleNamespace(vm=lambda name: SimpleNamespace(console_path=console))
    return Rollouts(fleet, tmp_path)  # type: ignore[arg-type]


def attempt(number: int, path: str, outcome: str, message: str, stage: str | None = None) -> dict[str, Any]:
    return {
        "number": number,
        "path": path,
        "outcome": outcome,
        "message": message,
        "stage_of_death": stage,
    }


RESULT = {
    "exit_code": 1,
    "rollout": "abc",
    "status": "failed",
    "reason": "the failure budget is spent",
    "hosts": [
        {
            "host": "cma1",
            "phase": "lost",
            "reason": "x" * 2000 + " the end",
            "attempts": [
                attempt(1, "cma", "fell_back", "told to jump", "initramfs"),
                attempt(2, "no_cma", "silent", "no return"),
            ],
        },
        {
            "host": "old1",
            "phase": "done",
            "reason": "",
            "attempts": [attempt(1, "plain", "booted", "on the target")],
        },
    ],
}


def test_a_rollout_that_failed_tells_its_whole_story(rollouts: Rollouts) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        rollouts.assert_exit(RESULT)
    text = str(caught.value)
    assert text.startswith("exit 1, not 0\nrollout abc: failed: the failure budget is spent\ncma1: lost: xxx")
    assert "x the end\n" in text, "nothing is cut short"
    assert "attempt 1 cma: fell_back [initramfs]: told to jump" in text
    assert "attempt 2 no_cma: silent: no return" in text
    assert "old1: done" in text and "attempt 1 plain: booted: on the target" in text
    assert text.count("line ") == CONSOLE_LINES and "| line 99." in text, "of the lost host alone"
    rollouts.assert_exit(RESULT, 1)


def test_a_rollout_that_was_refused_tells_why(rollouts: Rollouts) -> None:
    refused = {"exit_code": 2, "errors": [{"message": "no such playbook", "hint": "write one"}]}
    with pytest.raises(pytest.fail.Exception, match="no such playbook"):
        rollouts.assert_exit(refused)


def test_nobody_waits_for_a_phase_once_the_process_has_ended(rollouts: Rollouts) -> None:
    process = rollouts.start("rollout", "run", "no-such-playbook.yaml", "-i", "no-such-inventory.yaml")
    with pytest.raises(pytest.fail.Exception) as caught:
        rollouts.wait_phase(process, "old1", Phase.LOADED, Phase.ARMED)
    text = str(caught.value)
    assert "old1 was never seen loaded or armed: exit 2" in text and "no-such-" in text
    process.communicate(timeout=60)
