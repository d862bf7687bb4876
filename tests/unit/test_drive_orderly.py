"""The drive of an orderly jump: systemd takes its time, may be held up, and may not leave at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import LoginRefused
from orchestrator.domain.playbook import JumpMethod
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.store import Journal
from tests.support.fakehost import STEADY, FakeHost
from tests.unit.test_drive import Drives, quick  # noqa: F401  (an autouse fixture)
from workers.agentanswers import AgentStatus, ArmAnswer, Claim, ClaimAnswer, Shutdown, Stamp
from workers.deadline import Deadline
from workers.drive import settle, verify

STOPPING = Shutdown(under_way=True, why="systemd is stopping the system")


@dataclass
class OrderlyHost(FakeHost):
    """One with systemd. `stopping`: how many looks find it on its way down."""

    stopping: int = 0
    note: dict[str, Any] = field(default_factory=dict)
    no_logins: int = 0
    hook: tuple[bool, str] = (True, "/usr/lib/systemd/system-shutdown/kexec-fleet-stamp")
    starting: int = 0
    looks: int = 0

    def connect(self, host: Any, deadline: Deadline) -> FakeHost:
        if self.jumps or self.looks:
            self.looks += 1
            if self.no_logins:
                self.no_logins -= 1
                raise LoginRefused(self.name, "connect", "the system is going down", hint="")
        return super().connect(host, deadline)

    def arm(
        self, claim: Claim, method: str, lead: float, deadline: Deadline, *, watchdog: float | None = None
    ) -> ArmAnswer:
        raw = {"method": method, "counter": "tsc", "appointment": 100, "pairs": []}
        return ArmAnswer(method, 100, "tsc", lead, raw)

    def go(self, claim: Claim, appointment: int, deadline: Deadline) -> dict[str, Any]:
        self.looks = 1
        answer = super().go(claim, appointment, deadline)
        return {**answer, "stamp": self.hook[0], "stamp_detail": self.hook[1]}

    def close(self) -> None:
        """After go the session's end unloads nothing."""

    def status(self, deadline: Deadline) -> AgentStatus:
        return AgentStatus(self.boot_id, "idle", 0, None, False, STEADY, {}, None, {"note": self.note})

    def claim(self, claim: Claim, deadline: Deadline) -> ClaimAnswer:
        answer = super().claim(claim, deadline)
        if self.looks and self.stopping:
            self.stopping -= 1
            return ClaimAnswer(answer.jump, answer.unloaded, STOPPING, None)
        return answer

    def check(self, collector: str, deadline: Deadline) -> dict[str, Any]:
        data = super().check(collector, deadline)
        if collector != "units":
            return data
        state = "starting" if self.boot > 1 and self.starting > 0 else "running"
        self.starting -= self.boot > 1
        return {**data, "init": "systemd", "state": state, "failed": [], "jobs": 0}

    def clock(self, deadline: Deadline) -> dict[str, Any]:
        return {"counter": "tsc", "pairs": []}

    def stamp(self, nonce: str, deadline: Deadline) -> Stamp:
        return Stamp(None, "the host keeps nothing")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


@pytest.fixture
def drives(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Drives]]:
    monkeypatch.setattr(settle, "NOLOGIN_SECONDS", 0.01)
    monkeypatch.setattr(verify, "BETWEEN_LOOKS", 0.01)
    yield lambda host: Drives(journal, host, jump=JumpMethod.SYSTEMD, attempts=1)


def test_a_shutdown_is_waited_for_and_one_that_is_cancelled_never_left(drives: Any) -> None:
    host = OrderlyHost(on_go=FakeHost.stay, stopping=4, note={"why": "systemd is not stopping 60 s later"})
    run = drives(host)
    record = run.run()
    assert run.tried == [("cma", Outcome.NEVER_LEFT)]
    assert "systemd is not stopping 60 s later" in record.attempts[0].message
    assert host.stopping == 0 and len(host.claims) >= 5
    assert (host.jumps, host.loaded) == ([], None)


def test_a_shutdown_that_hangs_past_every_deadline_is_not_called_dead(drives: Any) -> None:
    host = OrderlyHost(on_go=lambda host: None, stopping=10**6)
    run = drives(host)
    record = run.run()
    assert (run.tried, record.phase) == ([("cma", Outcome.SILENT)], Phase.LOST)
    assert "a shutdown is under way: systemd is stopping the system" in record.attempts[0].message


def test_logins_refused_while_it_stops_and_starts_are_no_verdict(drives: Any) -> None:
    """pam_nologin refuses everybody but root meanwhile."""
    host = OrderlyHost(no_logins=2 * settle.REFUSALS)
    run = drives(host)
    run.run()
    assert (run.tried[0][1], host.no_logins) == (Outcome.BOOTED, 0)


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ((True, "/path"), "not measured: the host keeps nothing"),
        ((False, "read-only file system"), "not measured: no shutdown hook: read-only file system"),
    ],
)
def test_without_a_stamp_the_hot_phase_says_why(drives: Any, hook: tuple[bool, str], why: str) -> None:
    record = drives(OrderlyHost(hook=hook)).run()
    hot = (record.attempts[0].measured or {})["hot_phase"]
    assert (hot["value"], hot["why_not"], hot["text"]) == (None, why, why)


def test_units_are_judged_when_the_boot_is_over(drives: Any) -> None:
    host = OrderlyHost(starting=5)
    record = drives(host).run()
    assert host.starting < 0
    assert {c["name"]: c["verdict"] for c in record.attempts[0].checks}["units"] == "pass"


def test_a_boot_that_does_not_end_is_not_waited_for_without_end(drives: Any) -> None:
    record = drives(OrderlyHost(starting=10**6)).run()
    units = next(c for c in record.attempts[0].checks if c["name"] == "units")
    assert (units["verdict"], units["evidence"]) == ("inconclusive", "systemd is still starting units")
