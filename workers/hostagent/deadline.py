"""A point on the monotonic clock that a request must be answered by."""

import contextlib
import signal
import time
from typing import Any, Iterator

from workers.hostagent.errors import AgentError

# A request without a deadline gets this one; nothing may ask for more. Seconds.
DEFAULT_SECONDS = 60.0
MAX_SECONDS = 3600.0


class Deadline(object):
    """`seconds` from now; `left()` never goes below 0."""

    def __init__(self, seconds: float) -> None:
        self.seconds = min(max(seconds, 0.0), MAX_SECONDS)
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        return self.left() <= 0.0

    def error(self, what: str) -> AgentError:
        return AgentError(
            "deadline",
            "{} was not done within {:g} s".format(what, self.seconds),
            "give the step a longer deadline, or look at why the host is slow",
            detail={"deadline_s": self.seconds},
        )

    def check(self, what: str) -> None:
        """Raises AgentError `deadline` when the time is over."""
        if self.passed():
            raise self.error(what)


@contextlib.contextmanager
def interrupting(deadline: Deadline, what: str) -> Iterator[None]:
    """Cuts the body off at the deadline with AgentError `deadline`, wherever it is.

    For requests that only read: an exception may come between any two of their instructions, so nothing that
    changes the host may run under it. Main thread only (signal.setitimer).
    """

    def expired(_signum: int, _frame: Any) -> None:
        raise deadline.error(what)

    deadline.check(what)
    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(deadline.left(), 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
