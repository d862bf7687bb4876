"""The controller over a real journal, with drives that only write what a host would have come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.control import controller
from orchestrator.control.controller import Controller, due
from orchestrator.control.dispatch import ThreadDispatcher
from orchestrator.domain.errors import JournalError
from orchestrator.domain.events import AttemptRecord, EventKind, HostRecord, RolloutRecord
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.playbook import FailureBudget, HostImage, Kernel, Playbook, WaveSize
from orchestrator.domain.rollout import Phase, RolloutStatus
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal

NAMES = ["a", "b", "c", "d", "e", "f"]
WAVES = [["a"], ["b", "c"], ["d", "e", "f"]]


def spec(budget: int = 0, at_once: int = 2) -> RolloutSpec:
    hosts = {name: Host(name=name, address="127.0.0.1", port=n) for n, name in enumerate(NAMES, 1)}
    playbook = Playbook(
        name="p",
        kernel=Kernel(on_host=HostImage(image="/boot/vmlinuz")),
        waves=(WaveSize(count=1), WaveSize(percent=50), WaveSize(percent=100)),
        at_once=at_once,
        failure_budget=FailureBudget(count=budget),
    )
    return RolloutSpec(playbook=playbook, inventory=Inventory(hosts=hosts))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


class Fleet:
    """Drives that end each host as told, and remember the order and how many ran at once."""

    def __init__(self, journal: Journal, ends: dict[str, Phase] | None = None) -> None:
        self.journal = journal
        self.ends = ends or {}
        self.started: list[str] = []
        self.most_at_once = 0
        self.before_end: Callable[[str], None] = lambda host: None
        self._now = 0
        self._lock = threading.Lock()

    def drive(self, rollout: str, host: str) -> bool:
        lease = self.journal.acquire(rollout, host)
        if lease is None:
            return False
        with self._lock:
            self.started.append(host)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self.before_end(host)
        record = self.journal.host(rollout, host)
        if record.phase is Phase.PENDING:
            end = self.ends.get(host, Phase.SKIPPED)
            self.journal.append(lease, EventKind.PHASE, {"phase": end, "reason": "told to"})
        with self._lock:
            self._now -= 1
        self.journal.release(lease)
        return True


def run(journal: Journal, fleet: Fleet, plan: RolloutSpec, rollout: str | None = None) -> RolloutRecord:
    rollout = rollout or journal.create_rollout(plan, WAVES).id
    dispatcher = ThreadDispatcher(fleet.drive, plan.playbook.at_once)
    return Controller(journal, dispatcher, stopping=lambda: False).run(rollout)


def test_waves_follow_each_other_and_at_once_is_kept(journal: Journal) -> None:
    fleet = Fleet(journal)
    record = run(journal, fleet, spec())
    assert record.status is RolloutStatus.DONE
    assert [set(fleet.started[:1]), set(fleet.started[1:3]), set(fleet.started[3:])] == [
        set(wave) for wave in WAVES
    ]
    assert fleet.most_at_once <= 2
    kinds = [event.kind for event in journal.events(record.id, host="")]
    assert kinds.count(EventKind.WAVE_STARTED) == kinds.count(EventKind.WAVE_ENDED) == 3


def test_a_failed_canary_stops_the_rest(journal: Journal) -> None:
    fleet = Fleet(journal, {"a": Phase.FAILED})
    record = run(journal, fleet, spec(budget=0))
    assert record.status is RolloutStatus.FAILED
    assert fleet.started == ["a"]
    assert "1 of 6 hosts failed or were lost, the budget is 0; 5 hosts were not started" in record.reason


def test_lost_hosts_count_and_the_budget_is_the_whole_fleets(journal: Journal) -> None:
    ends = {"a": Phase.FAILED, "b": Phase.LOST}
    fleet = Fleet(journal, ends)
    record = run(journal, fleet, spec(budget=1))
    assert record.status is RolloutStatus.FAILED
    assert set(fleet.started) <= {"a", "b", "c"}, "no host of the third wave may start"


def test_failures_within_the_budget_do_not_stop(journal: Journal) -> None:
    fleet = Fleet(journal, {"b": Phase.FAILED})
    record = run(journal, fleet, spec(budget=1))
    assert record.status is RolloutStatus.DONE and "b" in record.reason
    assert set(fleet.started) == set(NAMES)


def test_a_lost_host_is_looked_at_once_by_each_controller(journal: Journal) -> None:
    plan = spec(budget=6)
    fleet = Fleet(journal, {"c": Phase.LOST})
    record = run(journal, fleet, plan)
    assert fleet.started.count("c") == 1
    again = run(journal, fleet, plan, record.id)
    assert fleet.started.count("c") == 2, "a resume looks at it once more, and does not loop"
    assert again.status is RolloutStatus.DONE


def test_abort_starts_nothing_new(journal: Journal) -> None:
    plan = spec()
    rollout = journal.create_rollout(plan, WAVES).id
    fleet = Fleet(journal)
    fleet.before_end = lambda host: journal.request_abort(rollout)
    record = run(journal, fleet, plan, rollout)
    assert record.status is RolloutStatus.ABORTED
    assert fleet.started == ["a"]
    fleet.before_end = lambda host: None
    again = run(journal, fleet, plan, rollout)
    assert again.status is RolloutStatus.ABORTED and fleet.started == ["a"], "no resume takes an abort back"


def test_after_an_abort_a_host_between_attempts_is_left_and_one_in_flight_is_ended() -> None:
    record = RolloutRecord(id="r", name="p", created_at=0, waves=(("a", "b"),), abort_requested=True)
    ended = AttemptRecord(number=1, nonce="n", fence=1, boot_id="b", path="cma", flags=0)
    between = HostRecord(rollout="r", host="a", phase=Phase.PENDING, attempts=(ended,))
    dark = HostRecord(rollout="r", host="b", phase=Phase.DARK, attempts=(ended,))
    assert due(record, [between, dark], spec(), (), ()).hosts == ("b",)


def test_a_second_controller_is_refused(journal: Journal) -> None:
    rollout = journal.create_rollout(spec(), WAVES).id
    assert journal.acquire(rollout, owner="elsewhere:boot:1:1") is not None
    with pytest.raises(JournalError, match="run by another process"):
        run(journal, Fleet(journal), spec(), rollout)


def test_a_drive_that_breaks_ends_the_rollout_with_its_error(journal: Journal) -> None:
    def broken(rollout: str, host: str) -> bool:
        raise RuntimeError("disk on fire")

    rollout = journal.create_rollout(spec(), WAVES).id
    record = Controller(journal, ThreadDispatcher(broken, 2), stopping=lambda: False).run(rollout)
    assert record.status is RolloutStatus.FAILED and "a: RuntimeError: disk on fire" in record.reason


class NoWorkers(ThreadDispatcher):
    """A broker that takes every message, and nobody behind it."""

    def dispatch(self, rollout: str, host: str) -> None:
        pass


def test_a_rollout_without_workers_pauses_and_says_so(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "TAKE_UP_SECONDS", 0.5)
    rollout = journal.create_rollout(spec(), WAVES).id
    record = Controller(journal, NoWorkers(lambda r, h: True, 2), stopping=lambda: False).run(rollout)
    assert record.status is RolloutStatus.PAUSED and "nobody has taken a up" in record.reason
    assert run(journal, Fleet(journal), spec(), rollout).status is RolloutStatus.DONE


def hosts_in(phases: dict[str, Phase]) -> list[HostRecord]:
    return [HostRecord(rollout="r", host=name, phase=phases.get(name, Phase.PENDING)) for name in NAMES]


def test_what_has_begun_comes_first_and_is_finished_over_budget() -> None:
    record = RolloutRecord(id="r", name="p", created_at=0, waves=tuple(tuple(w) for w in WAVES))
    hosts = hosts_in({"a": Phase.DONE, "b": Phase.FAILED, "c": Phase.DARK})
    assert due(record, hosts, spec(budget=0), (), ()).hosts == ("c",)
    assert due(record, hosts, spec(budget=1), (), ()).hosts == ("c",), "the next wave waits for this one"
    moving = hosts_in({"a": Phase.DONE, "c": Phase.LOADED})
    assert due(record, moving, spec(), (), ()).hosts == ("c", "b")
