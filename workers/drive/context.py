"""What a drive works with: journal, spec, the way to hosts, and the lease it writes under."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from orchestrator.domain.errors import HostError
from orchestrator.domain.events import AttemptRecord, EventKind, HostRecord
from orchestrator.domain.inventory import Host
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.leases import Lease
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal
from workers.agent import Claim
from workers.agentbundle import AgentBundle
from workers.connection.base import Connector
from workers.console import ConsoleTail
from workers.outage import OutageProber
from workers.power.base import PowerDriver


def never() -> bool:
    """The default of `Drive.stopping`: nobody asks us to stop."""
    return False


@dataclass(frozen=True)
class Tools:
    """What every drive of one process shares."""

    journal: Journal
    connector: Connector
    bundle: AgentBundle
    make_prober: Callable[[Host], OutageProber]
    answers: Callable[[Host, float], bool | None]
    power: Callable[[Host], PowerDriver | None]
    console: Callable[[Host], ConsoleTail | None]
    stopping: Callable[[], bool] = never
    new_nonce: Callable[[], str] = field(default=lambda: secrets.token_hex(16))


class Stopped(Exception):
    """We were asked to stop; the host is left in a state that a resume can take up."""


class AttemptOver(Exception):
    """The attempt ended before the jump; its end is in the journal already."""


class HostDrive:
    """One host of one rollout, under one lease. All writing about the host goes through here.

    The lease's fence changes with every attempt and with every look at a host after trouble; a
    heartbeat of another thread reads it, hence the lock.
    """

    def __init__(self, tools: Tools, spec: RolloutSpec, record: HostRecord, lease: Lease) -> None:
        self.tools = tools
        self.spec = spec
        self.host: Host = spec.inventory.hosts[record.host]
        self.record = record
        self.broken_contacts = 0
        self._lease = lease
        self._lock = Lock()

    def check_stop(self) -> None:
        """Raise Stopped where this process was asked to stop."""
        if self.tools.stopping():
            raise Stopped

    def renew(self) -> None:
        """Heartbeat; StaleFence where another writer has taken over."""
        with self._lock:
            self.tools.journal.renew(self._lease)

    def release(self) -> None:
        """Give the host back."""
        with self._lock:
            self.tools.journal.release(self._lease)

    def new_fence(self) -> None:
        """Take a higher fence: whatever still acts for us under the old one is now refused by the host."""
        with self._lock:
            self._lease = self.tools.journal.rotate(self._lease)

    def claim(self, attempt: AttemptRecord, boot_id: str | None = None) -> Claim:
        """The claim that goes with a changing request, under the fence we hold now."""
        return Claim(
            journal=self.tools.journal.id,
            rollout=self.record.rollout,
            host=self.host.name,
            attempt=attempt.number,
            nonce=attempt.nonce,
            fence=self._lease.fence,
            boot_id=boot_id or attempt.boot_id,
        )

    def start_attempt(self, data: Mapping[str, Any]) -> AttemptRecord:
        """Bind the next attempt in the journal, under a fence of its own."""
        number = len(self.record.attempts) + 1
        with self._lock:
            self._lease, attempt = self.tools.journal.start_attempt(self._lease, number, data)
        self.record = self.tools.journal.host(self.record.rollout, self.host.name)
        return attempt

    def write(self, *batch: tuple[EventKind, Mapping[str, Any]]) -> None:
        """Append events about the current attempt (or none) in one transaction."""
        number = self.record.attempts[-1].number if self.record.attempts else 0
        with self._lock:
            self.record = self.tools.journal.append_all(self._lease, batch, attempt=number)

    def to_phase(self, phase: Phase, reason: str = "", hint: str = "") -> None:
        """Move the host."""
        self.write(phase_event(phase, reason, hint))

    def end_attempt(
        self,
        outcome: Outcome,
        phase: Phase,
        message: str,
        *,
        hint: str = "",
        errno: int | None = None,
        known: bool = True,
    ) -> None:
        """End the attempt and move the host, in one transaction."""
        ended = {
            "outcome": outcome,
            "message": message,
            "hint": hint,
            "errno": errno,
            "host_state": "known" if known else "unknown",
        }
        self.write((EventKind.ATTEMPT_ENDED, ended), phase_event(phase, message, hint))

    def note(self, text: str, **data: object) -> None:
        """Record something worth knowing that changes no state."""
        self.write((EventKind.NOTE, {"text": text, **data}))


def phase_event(phase: Phase, reason: str = "", hint: str = "") -> tuple[EventKind, dict[str, Any]]:
    """The event that moves a host."""
    return EventKind.PHASE, {"phase": phase, "reason": reason, "hint": hint}


def describe(error: HostError) -> str:
    """An error as one line without the host's name, which every table has already."""
    return f"{error.step}: {error.message}"
