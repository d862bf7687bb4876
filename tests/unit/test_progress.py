"""What a rollout shows while it runs: a plain line per change where there is no terminal, a table on one."""

from __future__ import annotations

import io

from rich.console import Console

from orchestrator.cli.progress import Progress, final_table, running_table
from orchestrator.domain.events import AttemptRecord, HostRecord, RolloutRecord
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.report.summary import summary, trouble_lines, verdict

RECORD = RolloutRecord(id="r1", name="onto 7.3", created_at=0, waves=(("web1",),))
FELL_BACK = AttemptRecord(
    number=1, nonce="n1", fence=1, boot_id="b", path="cma", flags=8, outcome=Outcome.FELL_BACK, message="why"
)
BOOTED = AttemptRecord(
    number=2,
    nonce="n2",
    fence=2,
    boot_id="b",
    path="no_cma",
    flags=0x18,
    outcome=Outcome.BOOTED,
    loaded={"placement": {"bytes_total": 100, "bytes_in_cma": 0}},
    measured={"hot_phase": {"value": 0.8, "text": "0.80 s ±0.02 s"}, "outage": {"text": "41 s"}},
    checks=({"name": "nonce", "verdict": "pass"}, {"name": "units", "verdict": "inconclusive"}),
)


def host(phase: Phase, *attempts: AttemptRecord, reason: str = "") -> HostRecord:
    return HostRecord(rollout="r1", host="web1", phase=phase, attempts=attempts, reason=reason)


def test_a_line_per_change_and_none_without_one() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=200)) as show:
        show(RECORD, [host(Phase.PENDING)])
        show(RECORD, [host(Phase.PENDING)], {"web1"})
        show(RECORD, [host(Phase.PENDING)], {"web1"})
        show(RECORD, [host(Phase.FAILED, reason="it said no")])
    assert out.getvalue().splitlines() == ["web1: pending", "web1: connecting", "web1: failed: it said no"]


def render(table: object) -> str:
    console = Console(file=io.StringIO(), width=220, record=True)
    console.print(table)
    return console.export_text()


def test_the_tables_tell_path_attempts_figures_and_verdict() -> None:
    done = host(Phase.DONE, FELL_BACK, BOOTED, reason="on the target")
    text = render(final_table(RECORD, [done]))
    for part in ("cma: fell_back → no_cma: booted", "0 of 100", "0.80 s ±0.02 s", "41 s", "inconclusive"):
        assert part in text
    assert "connecting" in render(running_table(RECORD, [host(Phase.PENDING)], {"web1"}))


def test_the_summary_has_the_figures_where_programs_look_for_them() -> None:
    (shown,) = summary(RECORD, [host(Phase.DONE, FELL_BACK, BOOTED)])["hosts"]
    assert shown["hot_phase"]["value"] == 0.8 and shown["verdict"] == "inconclusive"
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["fell_back", "booted"]
    assert verdict(None) is None


def test_trouble_says_which_attempt_why_and_whether_the_state_is_known() -> None:
    silent = FELL_BACK.model_copy(update={"outcome": Outcome.SILENT, "host_state": "unknown"})
    lines = trouble_lines(host(Phase.LOST, silent).model_copy(update={"hint": "look"}))
    assert lines == [
        "web1: attempt 1 (cma) silent: why (the host's state is not known)",
        "web1: hint: look",
    ]
