"""The prober: how long the network did not get an answer from a host, seen from this worker.

One asyncio loop in one thread serves all hosts of a process. Each host is asked at a fixed interval on a
fresh connection with its own short deadline; a probe that hangs does not delay the next ones. Where the
inventory names no service, the host's sshd is asked, gently: never before the jump, once a second from then
on, and no more after its first banner, because OpenSSH 9.8 and later lock out an address that connects and
leaves (shared/facts/ssh.md). Nothing is invented: what was not seen is "not measured", with the reason.
"""

from __future__ import annotations

import asyncio
import copy
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

from orchestrator.domain.inventory import Host, ProbeKind
from workers.deadline import Deadline
from workers.outage_fold import Ended, Instant, OutageFold, Outcome, Silence
from workers.probes import Place, Target, ask, look_up, now

SSH_INTERVAL_S = 1.0
DEFAULT_INTERVAL_S = 0.02
# How long a probe waits for its answer. While a host swallows packets, the probes sent meanwhile still end
# the outage to the interval's precision, but that they failed is known this much later.
DEFAULT_TIMEOUT_S = 1.0
# A host that is back has its own work to do: 50 probes a second took half of an emulated guest's CPU, and its
# sshd could not finish a login beside them.
BACK_INTERVAL_S = 1.0
# A host that is long in leaving or coming has work to do as well: an emulated guest that was to stop in order
# under 50 probes a second answered none of them for minutes. So the pace follows the time since the jump.
PACE_SHARE = 0.01
MAX_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageRecord:
    """What the prober saw. Lengths in seconds.

    The true outage lies between `outage_s - resolution_s` and `outage_s`. `flaps` counts how often the
    service went away again after the jump besides the outage itself; `late_ticks` how many probes were sent
    late or not at all.
    """

    source: str
    interval_s: float
    last_success_before: Instant | None
    first_failure: Instant | None
    first_success_after: Instant | None
    outage_s: float | None
    resolution_s: float | None
    probes_sent: int
    answers: int
    flaps: int
    late_ticks: int
    not_measured_reason: str


class ProberLoop:
    """The thread with the event loop. `shared()` is the one of this process."""

    _shared: ClassVar[ProberLoop | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        # Half of what this process may open is for probes; a tick that finds none left is a late one.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.room = 100_000 if most == resource.RLIM_INFINITY else max(16, most // 2)
        self._thread = threading.Thread(target=self.loop.run_forever, name="outage-prober", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> ProberLoop:
        """A child of fork() has no copy of its parent's thread and gets its own loop."""
        with cls._lock:
            if cls._shared is None or cls._shared._pid != os.getpid():
                cls._shared = cls()
            return cls._shared

    def spawn(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)


class OutageProber:
    """Probes one host from `start` to `close`. All methods may be called from any thread."""

    def __init__(
        self,
        host: Host,
        interval_s: float = DEFAULT_INTERVAL_S,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        successes: int = 1,
        loop: ProberLoop | None = None,
    ) -> None:
        self._target = Target.of(host)
        self._ssh = self._target.kind is ProbeKind.SSH
        self._interval = max(interval_s, SSH_INTERVAL_S) if self._ssh else interval_s
        self._timeout = timeout_s
        self._need = successes
        self._loop = loop or ProberLoop.shared()
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._closed = False
        self._round = 0  # counts starts of the ticking; an older round that still ticks ends itself
        self._fold = OutageFold(successes)
        self._pending: deque[_Pending] = deque()  # in the order of sending; its head waits for its outcome
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._mark: Instant | None = None
        self._stays_until = 0.0
        self._banner_seen = False
        self._sent = 0
        self._late = 0
        self._cannot = ""
        if self._ssh and host.proxy_jump and (host.probe is None or host.probe.address is None):
            self._cannot = "the host is behind a jump host, and its inventory entry names no probe"

    # -- from the drive's thread --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to probe; with sshd as the only service nothing is sent before `mark_jump`."""
        if not self._ssh:
            self._begin()

    def mark_jump(self, *, stays_s: float = 0.0) -> None:
        """From now on silence counts. Call it right before go, or right after go was answered.

        `stays_s`: for so long the host surely stays (the lead before the appointment); its sshd is not
        asked before that. For sshd this moment, when the session was last heard, counts as the last answer.
        Calling it again forgets what came after the first call, and asks sshd anew.
        """
        with self._lock:
            self._mark = now()
            self._stays_until = self._mark.monotonic + stays_s
            self._banner_seen = False
            self._answered.clear()
            if self._ssh:
                self._fold = OutageFold(self._need)
                self._fold.heard(self._mark)
                self._pending.clear()
        if self._ssh:
            self._begin()

    @property
    def first_banner_seen(self) -> bool:
        """sshd has answered after the jump, or the service has come back."""
        return self._banner_seen or self._answered.is_set()

    def wait_first_answer(self, deadline: Deadline) -> bool:
        """Wait until the host answers again after the jump: then a login is worth trying. False at the
        deadline.
        """
        return self._answered.wait(deadline.left())

    def close(self) -> None:
        """Stop probing; `result` stays."""
        self._closed = True
        self._loop.loop.call_soon_threadsafe(self._cancel)

    def result(self) -> OutageRecord:
        """What was seen so far; never waits.

        Probes without an outcome yet say nothing: right after a return from a black hole the resolution is
        wider than it will be when their timeout has passed.
        """
        with self._lock:
            fold = copy.deepcopy(self._fold)
            for pending in self._pending:
                if pending.outcome:
                    fold.add(pending.outcome)
            mark = self._mark
        silences = fold.since(mark) if mark else []
        whole = [silence for silence in silences if silence.before]
        outage = max(whole, key=lambda silence: silence.length_s, default=None)
        again = fold.open is not None and outage is not None
        seen = outage or (silences[0] if silences else fold.open)
        return OutageRecord(
            source=self._target.source,
            interval_s=self._interval,
            last_success_before=seen.before if seen else fold.last_answer,
            first_failure=seen.first_failure if seen else None,
            first_success_after=seen.after if seen else None,
            outage_s=outage.length_s if outage else None,
            resolution_s=outage.resolution_s if outage else None,
            probes_sent=self._sent,
            answers=fold.answers,
            flaps=max(0, len(silences) - 1) + sum(s.blips for s in silences) + again,
            late_ticks=self._late,
            not_measured_reason="" if outage else self._why_not(fold, mark, silences),
        )

    def _why_not(self, fold: OutageFold, mark: Instant | None, silences: list[Silence]) -> str:
        if self._cannot:
            return self._cannot
        if mark is None:
            return "the host was not told to jump while it was probed"
        if self._sent == 0:
            return "no probe was sent"
        if silences:
            return f"{self._target.source} never answered before the jump"
        if fold.open:
            waited = now().monotonic - mark.monotonic
            return f"no answer in the {waited:.0f} s since the jump; last: {fold.last_why}"
        if fold.answers == 0:
            return f"this machine could not probe: {fold.last_why or 'no probe has ended'}"
        if self._ssh:
            return "sshd answered before any probe had failed: the host may not have left yet"
        return "no probe failed after the jump"

    # -- in the loop's thread -----------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._cannot and not self._closed:
            self._round += 1
            self._loop.spawn(self._tick(self._round)).add_done_callback(self._ticking_ended)

    def _ticking_ended(self, ticking: Future[None]) -> None:
        """A defect of ours must not pass for a silent host."""
        if not ticking.cancelled() and (error := ticking.exception()):
            self._cannot = f"the prober failed: {error!r}"

    async def _tick(self, number: int) -> None:
        """Send a probe at every multiple of the interval, until closed or, for sshd, until its first
        banner.
        """
        try:
            place = await look_up(self._target)
        except OSError as error:
            self._cannot = f"{self._target.address}: {error.strerror or error}"
            return
        due = time.monotonic()
        if self._ssh:
            due = max(due, self._stays_until) + self._interval
        while not self._closed and number == self._round:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._closed or number != self._round or (self._ssh and self._banner_seen):
                return
            pace = self._pace()
            behind = int((time.monotonic() - due) / pace)
            self._late += behind  # no burst to make up for them: they would all ask at the same moment
            due += (behind + 1) * pace
            if self._in_flight >= MAX_IN_FLIGHT or self._loop.room <= 0:
                self._late += 1
                continue
            self._launch(place, number)

    def _pace(self) -> float:
        """Seconds to the next probe: a hundredth of the time since the jump at most; once the host is back,
        only to see whether it stays."""
        if self._answered.is_set():
            return max(self._interval, BACK_INTERVAL_S)
        since = now().monotonic - self._mark.monotonic if self._mark else 0.0
        return max(self._interval, min(BACK_INTERVAL_S, PACE_SHARE * since))

    def _launch(self, place: Place, number: int) -> None:
        pending = _Pending()
        with self._lock:
            self._pending.append(pending)
        self._sent += 1
        self._in_flight += 1
        self._loop.room -= 1
        task = asyncio.get_running_loop().create_task(self._probe(place, pending, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, place: Place, pending: _Pending, number: int) -> None:
        try:
            outcome = await ask(self._target, place, self._timeout)
        finally:
            self._in_flight -= 1
            self._loop.room += 1
        if number == self._round:
            self._settle(pending, outcome)

    def _settle(self, pending: _Pending, outcome: Outcome) -> None:
        with self._lock:
            pending.outcome = outcome
            while self._pending and (first := self._pending[0].outcome):
                self._fold.add(first)
                self._pending.popleft()
            if self._mark is None:
                return
            after_mark = outcome.how is Ended.ANSWERED and outcome.sent.monotonic > self._mark.monotonic
            if self._ssh and after_mark:
                self._banner_seen = True
                self._answered.set()
            # Older probes may still hang for their whole timeout; an answer in a known silence need not wait.
            silent = self._fold.open
            known = silent is not None and silent.last_failure.monotonic > self._mark.monotonic
            if (known and after_mark and self._need == 1) or self._fold.since(self._mark):
                self._answered.set()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class _Pending:
    """A probe that was sent, and its outcome once there is one."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
