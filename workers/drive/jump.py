"""The last steps before a host is gone: arm, commit `jumping`, tell the host to go."""

from __future__ import annotations

import time

from orchestrator.domain.errors import HostLost, HostRefused
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.playbook import JumpMethod
from orchestrator.domain.rollout import Outcome, Phase
from workers.agent import ArmAnswer
from workers.deadline import Deadline
from workers.drive.context import AttemptOver, HostDrive, phase_event
from workers.drive.reach import Session
from workers.outage import OutageProber

LEAD_SECONDS = 3.0
"""How far ahead the agent sets the appointment: time for the commit and for go to travel."""

NO_HOOK = "no_shutdown_hook"
"""The key of the note that says why the host could not take our shutdown hook."""

REARMS = 5
"""How often an appointment that passed before go came is set anew."""


def jump(drive: HostDrive, session: Session, attempt: AttemptRecord, prober: OutageProber) -> float:
    """Arm, commit `jumping`, tell the host to go: once per appointment, and only after the commit."""
    playbook = drive.spec.playbook
    deadline = Deadline.after(playbook.deadlines.jump * REARMS)
    _guard(drive, session, attempt)
    for _ in range(REARMS):
        drive.check_stop()
        armed = session.agent.arm(
            drive.claim(attempt),
            str(playbook.jump),
            LEAD_SECONDS,
            deadline.sooner(playbook.deadlines.jump),
            watchdog=playbook.recovery.watchdog,
        )
        _tell_watchdog(drive, armed)
        move = [] if drive.record.phase is Phase.ARMED else [phase_event(Phase.ARMED)]
        drive.write((EventKind.ARMED, dict(armed.raw)), *move)
        leaves_at = time.monotonic() + LEAD_SECONDS
        drive.to_phase(Phase.JUMPING)
        # Before go: where its answer is lost slowly, a short outage would be over before it could be marked.
        prober.mark_jump(stays_s=max(0.0, leaves_at - time.monotonic()))
        told_at = _go(drive, session, attempt, armed)
        if told_at is not None:
            drive.to_phase(Phase.DARK)
            return told_at
        drive.to_phase(Phase.ARMED, "the appointment passed before go arrived")
    session.agent.unload(drive.claim(attempt), Deadline.after(playbook.deadlines.load))
    drive.end_attempt(
        Outcome.CANCELLED,
        Phase.PENDING,
        f"go came too late {REARMS} times",
        hint="this machine or the way to the host is too slow; start fewer hosts at once",
    )
    raise AttemptOver


def _tell_watchdog(drive: HostDrive, armed: ArmAnswer) -> None:
    """A watchdog that was asked for and will not help is said once, before the host goes."""
    told = armed.raw.get("watchdog")
    if drive.spec.playbook.recovery.watchdog is None or not isinstance(told, dict):
        return
    if drive.record.phase is Phase.ARMED:
        return  # an appointment that is set anew: it was said
    if not told.get("armed"):
        drive.note(f"no watchdog: {told.get('detail') or told.get('why')}")
    elif told.get("survives") is False:
        drive.note(f"the watchdog will not survive the jump: {told.get('why')}")


def _guard(drive: HostDrive, session: Session, attempt: AttemptRecord) -> None:
    """Have the new boot reboot by itself when we do not confirm it; where that cannot be, say so, go on."""
    seconds = drive.spec.playbook.recovery.guard
    if seconds is None:
        return
    deadline = Deadline.after(drive.spec.playbook.deadlines.load)
    told = session.agent.guard_install(drive.claim(attempt), seconds, deadline)
    if not told.get("installed"):
        drive.note(f"no boot guard: {told.get('detail')}")


def _go(drive: HostDrive, session: Session, attempt: AttemptRecord, armed: ArmAnswer) -> float | None:
    """Tell go; the monotonic time when it was told, or None where the agent says that it came too late.

    A lost answer counts as told: the host alone knows, and it is looked at afterwards.
    """
    deadlines = drive.spec.playbook.deadlines
    wait = deadlines.stop if drive.spec.playbook.jump is JumpMethod.SYSTEMD else deadlines.jump
    told_at = time.monotonic()
    try:
        answer = session.agent.go(drive.claim(attempt), armed.appointment, Deadline.after(wait))
        if answer.get("stamp") is False:
            why = str(answer.get("stamp_detail"))
            drive.note(f"no hot phase will be measured, there is no shutdown hook: {why}", **{NO_HOOK: why})
    except HostRefused as error:
        if error.code != "too_late":
            raise
        return None
    except HostLost:
        drive.note("the session ended while go was told: what the host did is looked at")
    return told_at
