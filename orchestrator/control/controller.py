"""The controller: reads from the journal what is due, has it driven, keeps waves and failure budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.control.dispatch import Dispatcher
from orchestrator.domain.errors import JournalError
from orchestrator.domain.events import EventKind, HostRecord, RolloutRecord
from orchestrator.domain.rollout import SPENT, TERMINAL, Phase, RolloutStatus
from orchestrator.journal.leases import Lease
from orchestrator.journal.store import Journal, RolloutSpec

TICK_SECONDS = 1.0
"""How often the journal is read while nothing else wakes the loop."""

CONTROLLER_RENEW_TICKS = 10
"""The controller's lease is renewed every that many ticks, far within its life."""


@dataclass(frozen=True)
class Due:
    """What the journal says is to be driven now, and why nothing more is."""

    hosts: tuple[str, ...]
    wave: int | None  # None: all waves are over
    over_budget: str = ""


def due(record: RolloutRecord, hosts: Sequence[HostRecord], spec: RolloutSpec, looked_at: set[str]) -> Due:
    """Pure: the hosts to drive now, in the order of the waves.

    `looked_at`: lost hosts that this controller has had looked at again already. A wave begins when all
    hosts of the waves before it have come to an end, and only while the budget allows a failure more.
    """
    spent = sum(host.phase in SPENT for host in hosts)
    budget = spec.playbook.failure_budget
    over = ""
    if not budget.allows(spent, len(hosts)):
        over = f"{spent} of {len(hosts)} hosts failed or were lost, the budget is {budget.limit(len(hosts))}"
    by_name = {host.host: host for host in hosts}
    for number, wave in enumerate(record.waves):
        members = [by_name[name] for name in wave]
        again = [m for m in members if m.phase is Phase.LOST and m.host not in looked_at]
        started = [m for m in members if m.phase not in TERMINAL | {Phase.LOST} and m.attempts]
        fresh = [m for m in members if m.phase is Phase.PENDING and not m.attempts]
        moving = [m for m in members if m.phase not in TERMINAL | {Phase.LOST}]
        stop = bool(over) or record.abort_requested
        if again or started or (moving and not stop):
            wanted = again + started + ([] if stop else fresh)
            in_preflight = [m for m in moving if m not in wanted and not (stop and m in fresh)]
            return Due(tuple(m.host for m in wanted + in_preflight), number, over)
        if stop and moving:
            return Due((), number, over)
    return Due((), None, over)


class Controller:
    """Runs one rollout to an end, a pause, or a request to stop."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        *,
        stopping: Callable[[], bool],
        observe: Callable[[RolloutRecord, Sequence[HostRecord]], None] = lambda record, hosts: None,
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._stopping = stopping
        self._observe = observe

    def run(self, rollout: str) -> RolloutRecord:
        """Take the rollout's lease and go on until nothing is due. Raises JournalError where another runs it."""
        lease = self._journal.acquire(rollout)
        if lease is None:
            owner = self._journal.holder(rollout)
            raise JournalError(
                f"rollout {rollout} is being run by another process ({owner})",
                hint="watch it with `rollout show`, or stop that process first",
            )
        try:
            if self._journal.rollout(rollout).status is not RolloutStatus.RUNNING:
                self._journal.set_status(lease, RolloutStatus.RUNNING, "resumed")
            status, reason = self._loop(lease)
            self._dispatcher.close()
            self._journal.set_status(lease, status, reason)
            self._show(rollout)
            return self._journal.rollout(rollout)
        finally:
            self._journal.release(lease)

    def _loop(self, lease: Lease) -> tuple[RolloutStatus, str]:
        spec = self._journal.spec(lease.rollout)
        looked_at: set[str] = set()
        wave: int | None = None
        ticks = 0
        while True:
            record, hosts = self._show(lease.rollout)
            if failures := self._dispatcher.failures():
                return RolloutStatus.FAILED, "; ".join(failures)
            if self._stopping():
                return RolloutStatus.INTERRUPTED, "stopped on request; `rollout resume` goes on"
            now_due = due(record, hosts, spec, looked_at)
            wave = self._note_wave(lease, wave, now_due.wave)
            if not now_due.hosts:
                return _end(record, hosts, now_due)
            self._dispatch(lease.rollout, now_due, hosts, spec, looked_at)
            self._dispatcher.wait(TICK_SECONDS)
            ticks += 1
            if ticks % CONTROLLER_RENEW_TICKS == 0:
                self._journal.renew(lease)

    def _dispatch(
        self,
        rollout: str,
        now_due: Due,
        hosts: Sequence[HostRecord],
        spec: RolloutSpec,
        looked_at: set[str],
    ) -> None:
        phases = {host.host: host.phase for host in hosts}
        for name in now_due.hosts[: spec.playbook.at_once]:
            if phases[name] is Phase.LOST and name not in self._dispatcher.in_flight():
                looked_at.add(name)
            self._dispatcher.dispatch(rollout, name)

    def _note_wave(self, lease: Lease, old: int | None, new: int | None) -> int | None:
        if old != new:
            if old is not None:
                self._journal.note_wave(lease, EventKind.WAVE_ENDED, old)
            if new is not None:
                self._journal.note_wave(lease, EventKind.WAVE_STARTED, new)
        return new

    def _show(self, rollout: str) -> tuple[RolloutRecord, list[HostRecord]]:
        record, hosts = self._journal.rollout(rollout), self._journal.hosts(rollout)
        self._observe(record, hosts)
        return record, hosts


def _end(record: RolloutRecord, hosts: Sequence[HostRecord], now_due: Due) -> tuple[RolloutStatus, str]:
    """Why the rollout has nothing more to do."""
    unfinished = sum(host.phase not in TERMINAL | {Phase.LOST} for host in hosts)
    if record.abort_requested and unfinished:
        return RolloutStatus.ABORTED, f"aborted on request; {unfinished} hosts were not started"
    if now_due.over_budget:
        rest = f"; {unfinished} hosts were not started" if unfinished else ""
        return RolloutStatus.FAILED, now_due.over_budget + rest
    spent = [host.host for host in hosts if host.phase in SPENT]
    if spent:
        return RolloutStatus.DONE, f"within the failure budget; not on the target: {', '.join(spent)}"
    return RolloutStatus.DONE, "every host is on the target or was skipped"
