"""One host under a claim while images are brought to it, loaded and looked at.

Rollouts and `host doctor` share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workers.agent import AgentClient, Claim


class Note(Protocol):
    """Takes down something worth knowing that changes no state."""

    def __call__(self, text: str, **data: object) -> None: ...


@dataclass(frozen=True)
class Bench:
    """`claim` gives the claim under the fence held now; `check_stop` raises where we are asked to stop."""

    host: str
    agent: AgentClient
    claim: Callable[[], Claim]
    note: Note
    check_stop: Callable[[], None]
