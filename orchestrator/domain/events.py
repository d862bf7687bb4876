"""Events, and the state that folds from them: the journal stores both in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from orchestrator.domain.errors import IllegalTransition
from orchestrator.domain.inventory import Value
from orchestrator.domain.rollout import Outcome, Phase, RolloutStatus, require_transition


class EventKind(StrEnum):
    """What an event tells. The first group is about the rollout, the second about one host."""

    ROLLOUT_CREATED = "rollout_created"
    ROLLOUT_STATUS = "rollout_status"  # status, reason
    WAVE_STARTED = "wave_started"  # wave
    WAVE_ENDED = "wave_ended"  # wave
    ABORT_REQUESTED = "abort_requested"

    PHASE = "phase"  # phase, reason
    FACTS = "facts"  # summary (kept in the record), raw facts and collected data: the host before the attempt
    ATTEMPT_STARTED = "attempt_started"  # nonce, fence, boot_id, path, flags, reason, level, risk
    STAGED = "staged"
    AUDITED = "audited"  # one load (of maybe several): placement, rehearsal, hazards, the repair it was
    LOADED = "loaded"  # the load's answer and the placement
    ARMED = "armed"  # the appointment, with all that the counter bridge needs
    MEASURED = "measured"  # hot phase, outage, time to SSH
    CHECKED = "checked"  # the checks' verdicts
    POWER = "power"  # before and after the host's power is cycled: driver, why, result
    EVIDENCE = "evidence"  # stage of death, console tail, pstore, the old kernel's log tail
    FINALISED = "finalised"  # the boot loader's default before and after
    REJECTED = "rejected"  # kernels, reason: what this host does not get again unless forced
    ACCEPTED = "accepted"  # kernels: booted, and every check passed
    ATTEMPT_ENDED = "attempt_ended"  # outcome, message, hint, host_state, errno
    NOTE = "note"


class Event(Value):
    """One line of the journal. `at` is the database's clock, seconds since the epoch."""

    seq: int
    rollout: str
    at: float
    kind: EventKind
    host: str = ""
    attempt: int = 0
    fence: int = 0
    data: dict[str, Any] = Field(default_factory=dict)


class AttemptRecord(Value):
    """One load and at most one jump. Bound, before anything is loaded, to one boot and one fence."""

    number: int
    nonce: str
    fence: int
    boot_id: str
    path: str
    flags: int
    reason: str = ""
    level: str = "normal"  # of the checks: CheckLevel
    risk: str = ""  # what the path exposes the image to
    started_at: float = 0.0
    ended_at: float | None = None
    cmdline: str | None = None
    armed: dict[str, Any] | None = None
    audits: tuple[dict[str, Any], ...] = ()  # one a load, and one more right before the jump
    loaded: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    checks: tuple[dict[str, Any], ...] = ()
    power: tuple[dict[str, Any], ...] = ()
    evidence: dict[str, Any] | None = None
    finalised: dict[str, Any] | None = None
    outcome: Outcome | None = None
    message: str = ""
    hint: str = ""
    host_state: str = "known"
    errno: int | None = None


class HostRecord(Value):
    """One host in one rollout, folded from its events."""

    rollout: str
    host: str
    wave: int = 0
    phase: Phase = Phase.PENDING
    reason: str = ""
    hint: str = ""
    facts: dict[str, Any] | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    updated_at: float = 0.0

    @property
    def open_attempt(self) -> AttemptRecord | None:
        """The attempt that has not ended, if any."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].outcome is None else None


class RolloutRecord(Value):
    """One rollout, folded from its events."""

    id: str
    name: str
    created_at: float
    status: RolloutStatus = RolloutStatus.RUNNING
    reason: str = ""
    waves: tuple[tuple[str, ...], ...] = ()
    abort_requested: bool = False
    updated_at: float = 0.0


def apply_to_rollout(record: RolloutRecord, event: Event) -> RolloutRecord:
    """The record after one event about the rollout."""
    changes: dict[str, Any] = {"updated_at": event.at}
    if event.kind is EventKind.ROLLOUT_STATUS:
        changes |= {"status": RolloutStatus(event.data["status"]), "reason": event.data.get("reason", "")}
    elif event.kind is EventKind.ABORT_REQUESTED:
        changes["abort_requested"] = True
    return record.model_copy(update=changes)


def apply_to_host(record: HostRecord, event: Event) -> HostRecord:
    """The record after one event about the host. Raises IllegalTransition for what may not follow."""
    changes: dict[str, Any] = {"updated_at": event.at}
    data = event.data
    if event.kind is EventKind.PHASE:
        phase = Phase(data["phase"])
        require_transition(record.host, record.phase, phase)
        changes |= {"phase": phase, "reason": data.get("reason", ""), "hint": data.get("hint", "")}
    elif event.kind is EventKind.FACTS:
        changes["facts"] = data.get("summary")
    elif event.kind is EventKind.ATTEMPT_STARTED:
        changes |= _start_attempt(record, event)
    elif event.kind in _ATTEMPT_FIELDS:
        changes["attempts"] = _changed_attempt(record, event, _ATTEMPT_FIELDS[event.kind](data))
    elif event.kind in _ATTEMPT_LISTS and event.attempt:
        if text := data.get("text"):
            changes["reason"] = str(text)  # so that who watches sees what is going on within the phase
        name, leave_out = _ATTEMPT_LISTS[event.kind]
        found = next((a for a in record.attempts if a.number == event.attempt), None)
        known: tuple[dict[str, Any], ...] = getattr(found, name, ())
        added = {key: value for key, value in data.items() if key not in leave_out}
        changes["attempts"] = _changed_attempt(record, event, {name: (*known, added)})
    elif event.kind is EventKind.ATTEMPT_ENDED:
        ended = {
            "outcome": Outcome(data["outcome"]),
            "message": data.get("message", ""),
            "hint": data.get("hint", ""),
            "host_state": data.get("host_state", "known"),
            "errno": data.get("errno"),
            "ended_at": event.at,
        }
        changes["attempts"] = _changed_attempt(record, event, ended)
    return record.model_copy(update=changes)


_ATTEMPT_FIELDS: dict[EventKind, Callable[[dict[str, Any]], dict[str, Any]]] = {
    EventKind.LOADED: lambda data: {"loaded": data},
    EventKind.ARMED: lambda data: {"armed": data},
    EventKind.STAGED: lambda data: {"cmdline": data.get("cmdline")},
    EventKind.MEASURED: lambda data: {"measured": data},
    EventKind.CHECKED: lambda data: {"checks": tuple(data["checks"])},
    EventKind.EVIDENCE: lambda data: {"evidence": data},
    EventKind.FINALISED: lambda data: {"finalised": data},
}

# The event's data is added to that list of the attempt's record, less what only the journal keeps.
_ATTEMPT_LISTS: dict[EventKind, tuple[str, frozenset[str]]] = {
    EventKind.AUDITED: ("audits", frozenset({"load", "rehearsal"})),
    EventKind.POWER: ("power", frozenset()),
}


def _start_attempt(record: HostRecord, event: Event) -> dict[str, Any]:
    if record.open_attempt is not None:
        raise IllegalTransition(
            f"{record.host}: attempt {event.attempt} may not start: {record.open_attempt.number} is open"
        )
    require_transition(record.host, record.phase, Phase.PREFLIGHT)
    attempt = AttemptRecord(number=event.attempt, started_at=event.at, **event.data)
    return {"phase": Phase.PREFLIGHT, "reason": attempt.reason, "attempts": (*record.attempts, attempt)}


def _changed_attempt(
    record: HostRecord, event: Event, changes: Mapping[str, Any]
) -> tuple[AttemptRecord, ...]:
    attempts = list(record.attempts)
    for index, attempt in enumerate(attempts):
        if attempt.number == event.attempt:
            late_return = attempt.outcome in (Outcome.SILENT, Outcome.LOST)
            if event.kind is EventKind.ATTEMPT_ENDED and attempt.outcome is not None and not late_return:
                raise IllegalTransition(f"{record.host}: attempt {attempt.number} has ended already")
            attempts[index] = attempt.model_copy(update=dict(changes))
            return tuple(attempts)
    raise IllegalTransition(f"{record.host}: no attempt {event.attempt}")


def fold_host(record: HostRecord, events: Iterable[Event]) -> HostRecord:
    """The record after all events of that host, in the order of their numbers."""
    for event in events:
        if event.host == record.host:
            record = apply_to_host(record, event)
    return record
