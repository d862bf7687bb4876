"""What the rest of `workers` may ask of a host's power control, whatever switches it.

`workers.power.wiring.power_driver` makes the one that the inventory names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from workers.deadline import Deadline

STEP = "power"
"""The step that every PowerFailed names."""


class Power(StrEnum):
    """What power control says of the host."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PowerResult:
    """A power cycle that was accepted. `text` is one line for the journal: who said what, without secrets."""

    kind: str  # the inventory's word: qmp, command
    text: str


@dataclass(frozen=True, slots=True)
class PowerState:
    """Power control answers, and this is what it says. `text` is one line, without secrets."""

    power: Power
    text: str


class PowerDriver(Protocol):
    """Power control of one host. Not thread safe; makes its connection anew for each call."""

    def cycle(self, deadline: Deadline) -> PowerResult:
        """Off and on again, whatever the state. Returns when this was accepted, not when the host is up.

        Raises PowerFailed, and nothing else: the host may or may not have been switched.
        """

    def status(self, deadline: Deadline) -> PowerState:
        """Ask, and change nothing. Raises PowerFailed, and nothing else: power control does not work."""
