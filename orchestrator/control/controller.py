"""The controller: reads from the journal what is due, has it driven, keeps waves and failure budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from orchestrator.control.dispatch import Dispatcher
from orchestrator.domain.errors import JournalBusy
from orchestrator.domain.events import EventKind, HostRecord, RolloutRecord
from orchestrator.domain.rollout import SPENT, TERMINAL, Phase, RolloutStatus
from orchestrator.journal.leases import Lease
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal

TICK_SECONDS = 1.0
"""How often the journal is read while nothing else wakes the loop."""

TAKE_UP_SECONDS = 300.0
"""How long a host may wait for somebody to drive it before the rollout pauses and says so."""

NEVER = (0, False)
"""Stands for a host that nobody ever drove: no fence, no driver."""

CONTROLLER_RENEW_TICKS = 10
"""The controller's lease is renewed every that many ticks, far within its life."""


@dataclass(frozen=True)
class Due:
    """What the journal says is to be driven now, and why nothing more is."""

    hosts: tuple[str, ...]  # those under way first, so that a bound on how many never starts a new one early
    wave: int | None  # None: all waves are over
    over_budget: str = ""


def due(
    record: RolloutRecord,
    hosts: Sequence[HostRecord],
    spec: RolloutSpec,
    under_way: Collection[str],
    to_look: Collection[str],
) -> Due:
    """Pure: the hosts to drive now, in the order of the waves.

    `under_way`: hosts that somebody drives at this moment. `to_look`: lost hosts that are to be looked at
    again. A wave begins when all hosts of the waves before it have come to an end. Fresh hosts start only
    while the budget allows one more failure. After a request to abort no attempt begins any more, on whatever
    host, and no resume takes that back; an attempt that has begun comes to its end.
    """
    over = _over_budget(hosts, spec)
    may_start = not over and not record.abort_requested
    by_name = {host.host: host for host in hosts}
    for number, wave in enumerate(record.waves):
        begun, fresh = [], []
        for member in (by_name[name] for name in wave):
            if member.phase is Phase.PENDING and member.host not in under_way:
                if not member.attempts:
                    fresh.append(member.host)
                elif not record.abort_requested:
                    begun.append(member.host)
            elif member.phase is Phase.LOST:
                begun += [member.host] if member.host in {*under_way, *to_look} else []
            elif member.phase not in TERMINAL:
                begun.append(member.host)
        if begun or (fresh and may_start):
            return Due((*begun, *(fresh if may_start else ())), number, over)
        if fresh:
            return Due((), number, over)
    return Due((), None, over)


def _over_budget(hosts: Sequence[HostRecord], spec: RolloutSpec) -> str:
    """Why no new host may start; empty where it may."""
    spent = sum(host.phase in SPENT for host in hosts)
    budget = spec.playbook.failure_budget
    if budget.allows(spent, len(hosts)):
        return ""
    return f"{spent} of {len(hosts)} hosts failed or were lost, the budget is {budget.limit(len(hosts))}"


Observer = Callable[[RolloutRecord, Sequence[HostRecord], Collection[str]], None]
"""Is shown the rollout, its hosts, and those that somebody drives at this moment; must not raise."""


class Controller:
    """Runs one rollout to an end, a pause, or a request to stop."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        *,
        stopping: Callable[[], bool],
        observe: Observer = lambda record, hosts, under_way: None,
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._stopping = stopping
        self._observe = observe

    def run(self, rollout: str) -> RolloutRecord:
        """Take the rollout's lease and go on until nothing is due.

        Raises JournalBusy where another process runs it.
        """
        lease = self._journal.acquire(rollout)
        if lease is None:
            owner = self._journal.holder(rollout)
            raise JournalBusy(
                f"rollout {rollout} is being run by another process ({owner})",
                hint="watch it with `rollout show`, or stop that process first",
            )
        try:
            if self._journal.rollout(rollout).status is not RolloutStatus.RUNNING:
                self._journal.set_status(lease, RolloutStatus.RUNNING, "resumed")
            status, reason = self._loop(lease)
            self._dispatcher.close()
            self._journal.set_status(lease, status, reason)
            record = self._journal.rollout(rollout)
            self._observe(record, self._journal.hosts(rollout), ())
            return record
        finally:
            self._journal.release(lease)

    def _loop(self, lease: Lease) -> tuple[RolloutStatus, str]:
        spec = self._journal.spec(lease.rollout)
        lost = {h.host for h in self._journal.hosts(lease.rollout) if h.phase is Phase.LOST}
        at_start = self._journal.drivers(lease.rollout)
        asked_at: dict[tuple[str, int], float] = {}  # by host and its newest fence: a drive takes a new one
        wave: int | None = None
        ticks = 0
        while True:
            record, hosts = self._journal.rollout(lease.rollout), self._journal.hosts(lease.rollout)
            held = self._journal.drivers(lease.rollout)
            under_way = self._dispatcher.in_flight() | {host for host, (_, live) in held.items() if live}
            self._observe(record, hosts, under_way)
            if failures := self._dispatcher.failures():
                return RolloutStatus.FAILED, "; ".join(failures)
            if self._stopping():
                return RolloutStatus.INTERRUPTED, f"stopped on request; `rollout resume {record.id}` goes on"
            # A look takes a new fence: where there is one, the host has been looked at since we began.
            to_look = {host for host in lost if held.get(host, NEVER)[0] == at_start.get(host, NEVER)[0]}
            now_due = due(record, hosts, spec, under_way, to_look)
            wave = self._note_wave(lease, wave, now_due.wave)
            if not now_due.hosts:
                return _end(record, hosts, now_due)
            for name in now_due.hosts[: spec.playbook.at_once]:
                if name in under_way:
                    continue
                self._dispatcher.dispatch(lease.rollout, name)
                first = asked_at.setdefault((name, held.get(name, NEVER)[0]), time.monotonic())
                if time.monotonic() - first > TAKE_UP_SECONDS:
                    return RolloutStatus.PAUSED, (
                        f"nobody has taken {name} up for {TAKE_UP_SECONDS:.0f} s: another rollout holds it, "
                        f"or no `kexec-fleet worker` runs; then `kexec-fleet rollout resume {record.id}`"
                    )
            self._dispatcher.wait(TICK_SECONDS)
            ticks += 1
            if ticks % CONTROLLER_RENEW_TICKS == 0:
                self._journal.renew(lease)

    def _note_wave(self, lease: Lease, old: int | None, new: int | None) -> int | None:
        if old != new:
            if old is not None:
                self._journal.note_wave(lease, EventKind.WAVE_ENDED, old)
            if new is not None:
                self._journal.note_wave(lease, EventKind.WAVE_STARTED, new)
        return new


def _end(record: RolloutRecord, hosts: Sequence[HostRecord], now_due: Due) -> tuple[RolloutStatus, str]:
    """Why the rollout has nothing more to do."""
    unfinished = sum(host.phase not in TERMINAL | {Phase.LOST} for host in hosts)
    if record.abort_requested and unfinished:
        return RolloutStatus.ABORTED, f"aborted on request; {unfinished} hosts were left as they are"
    if now_due.over_budget:
        rest = f"; {unfinished} hosts were not started" if unfinished else ""
        return RolloutStatus.FAILED, now_due.over_budget + rest
    spent = [host.host for host in hosts if host.phase in SPENT]
    if spent:
        return RolloutStatus.DONE, f"within the failure budget; not on the target: {', '.join(spent)}"
    return RolloutStatus.DONE, "every host is on the target or was skipped"
