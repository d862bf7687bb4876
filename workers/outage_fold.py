"""From single probes to one outage: a fold over the probes' outcomes in the order in which they were sent.

Pure: no clock, no socket. What is known of each probe is when it was sent, when it ended and how. A probe
that got no answer says that the host was silent when it was sent; an answer says that the host was there
when it arrived. So the outage is the silence between two answers, and the true length lies between that and
`resolution_s` less:

    answer        probes without an answer              answer
      |  . . .  x   x   x   x   x   x   x   x  . . .       |
      |<-- a -->|                           |<-- b -->|          resolution = a + b
      |<------------------ outage ------------------->|

Late or left out probes widen a and b by themselves. Probes may overlap, so outcomes are given in the order
of sending, which is not the order of their ends. A request may be lost on its way when the host goes, so
the round trip of the last answer is part of a.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on two clocks: CLOCK_MONOTONIC in seconds, and seconds since 1970."""

    monotonic: float
    unix: float

    @property
    def wall(self) -> datetime:
        return datetime.fromtimestamp(self.unix, UTC)


class Ended(StrEnum):
    """How a probe ended. VOID says nothing of the host: this machine could not send, or looked too late."""

    ANSWERED = "answered"
    FAILED = "failed"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One probe."""

    sent: Instant
    done: Instant
    how: Ended
    why: str = ""


@dataclass(slots=True)
class Silence:
    """Probes without an answer between two answers; `after` None while it lasts.

    `blips` counts answers that came in between and were too few to end it. `round_trip_s` is the last
    answer's.
    """

    before: Instant | None
    first_failure: Instant
    last_failure: Instant
    round_trip_s: float = 0.0
    after: Instant | None = None
    blips: int = 0

    @property
    def length_s(self) -> float:
        """Seconds from answer to answer; 0 where one of them is missing."""
        return self.after.monotonic - self.before.monotonic if self.before and self.after else 0.0

    @property
    def resolution_s(self) -> float:
        """How much shorter the true outage may be, in seconds."""
        if self.before is None or self.after is None:
            return 0.0
        begin = self.first_failure.monotonic + self.round_trip_s - self.before.monotonic
        end = self.after.monotonic - self.last_failure.monotonic
        return max(0.0, begin) + max(0.0, end)


class OutageFold:
    """Collects silences. `need` answers in a row, by sending, end one."""

    def __init__(self, need: int = 1) -> None:
        self._need = need
        self.last_answer: Instant | None = None
        self.open: Silence | None = None
        self.closed: list[Silence] = []
        self.answers = 0
        self.failures = 0
        self._round_trip_s = 0.0
        self.last_why = ""  # of the last probe that failed or was void
        self._run: list[Instant] = []

    def heard(self, at: Instant) -> None:
        """The host gave a sign of life by another way."""
        if self.last_answer is None or at.monotonic > self.last_answer.monotonic:
            self.last_answer = at

    def add(self, outcome: Outcome) -> None:
        """Take the next outcome in the order of sending."""
        if outcome.how is Ended.ANSWERED:
            self.answers += 1
            self._answered(outcome.done)
            self._round_trip_s = outcome.done.monotonic - outcome.sent.monotonic
        else:
            self.last_why = outcome.why
            if outcome.how is Ended.FAILED:
                self.failures += 1
                self._failed(outcome.sent)

    def _answered(self, at: Instant) -> None:
        if self.open is None:
            # A probe that was sent later may be answered earlier: the first one may have hung in a queue.
            if self.closed and (end := self.closed[-1].after) and at.monotonic < end.monotonic:
                self.closed[-1].after = at
            self.heard(at)
            return
        self._run.append(at)
        if len(self._run) >= self._need:
            self.open.after = min(self._run, key=lambda instant: instant.monotonic)
            self.closed.append(self.open)
            self.open = None
            for answer in self._run:
                self.heard(answer)
            self._run.clear()

    def _failed(self, sent: Instant) -> None:
        if self.open is None:
            self.open = Silence(self.last_answer, sent, sent, self._round_trip_s)
            return
        if self._run:
            self.open.blips += 1
            self._run.clear()
        self.open.last_failure = sent

    def since(self, mark: Instant) -> list[Silence]:
        """The silences that were over and lasted after `mark`: one that began before it is among them."""
        return [silence for silence in self.closed if silence.last_failure.monotonic > mark.monotonic]
