"""How lab code tells its caller what it is doing: it never prints, the CLI does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class ProgressKind(StrEnum):
    STEP = "step"  # something that takes a while has begun
    DONE = "done"  # it is finished
    NOTICE = "notice"  # something the user should know but need not act on


@dataclass(frozen=True)
class ProgressEvent:
    kind: ProgressKind
    text: str
    host: str = ""  # empty: about the lab as a whole


Progress = Callable[[ProgressEvent], None]


def silent(_event: ProgressEvent) -> None:
    """For callers that do not care."""


def step(progress: Progress, text: str, host: str = "") -> None:
    progress(ProgressEvent(ProgressKind.STEP, text, host))


def done(progress: Progress, text: str, host: str = "") -> None:
    progress(ProgressEvent(ProgressKind.DONE, text, host))


def notice(progress: Progress, text: str, host: str = "") -> None:
    progress(ProgressEvent(ProgressKind.NOTICE, text, host))
