"""Deadlines: one monotonic point in time, made at the top and handed down to every wait below it.

A function that waits takes a `Deadline`, never a number of seconds, so that nested waits share one budget
and a retry inside a step cannot stretch the step (the idea is labgrid's).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A point on CLOCK_MONOTONIC, in seconds. Compares by time: `min(a, b)` is the sooner one."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now; zero or less gives one that has expired already."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left, never negative, so that it can be handed to any wait."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def sooner(self, seconds: float) -> Deadline:
        """A deadline at most `seconds` from now that is never later than this one."""
        return min(self, Deadline.after(seconds))


class Cut:
    """Whether the deadline of a `cut_at` block passed and its cut was made."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def cut_at(deadline: Deadline, cut: Callable[[], None]) -> Iterator[Cut]:
    """Call `cut` from another thread when `deadline` passes while the block still runs.

    For calls into libraries that wait without a bound: `cut` closes what they wait on, so that they raise.
    The caller asks `.made` to tell that from a real failure. A timer thread costs about 0.1 ms.
    """
    state = Cut()

    def expire() -> None:
        state.made = True
        cut()

    timer = threading.Timer(deadline.left(), expire)
    timer.daemon = True
    timer.start()
    try:
        yield state
    finally:
        timer.cancel()
