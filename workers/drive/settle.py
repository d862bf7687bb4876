"""Looking at a host whose attempt has gone beyond our sight, until we know what became of it.

The same look serves the ordinary wait after a jump, a session that broke, and a resume after a crash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostRefused,
    LoginRefused,
)
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.playbook import JumpMethod
from orchestrator.domain.rollout import MAY_HAVE_JUMPED, Outcome, Phase
from workers.console import ConsoleTail
from workers.deadline import Deadline
from workers.drive import recovery
from workers.drive.context import HostDrive, describe
from workers.drive.evidence import gather
from workers.drive.judge import Finding, judge
from workers.drive.jump import LEAD_SECONDS
from workers.drive.reach import Session, open_session, pause
from workers.outage import OutageProber

TRY_SECONDS = 60.0
"""The longest that one login may take while the host is dark: a black hole must not eat the deadline, and
a host that has just come up is slow. One that is cut off half-way costs a penalty at its sshd."""

BETWEEN_SECONDS = 5.0
"""Pause between logins. Far below what sshd penalises."""

BLIND_SECONDS = 30.0
"""How long the prober's word is waited for before a login is tried all the same: a host that never left
answers the prober all the time."""

REFUSALS = 3
"""Logins that the host itself refuses before we stop: more would only earn us sshd's penalties."""


NOLOGIN_SECONDS = 20.0
"""Pause after a refused login while a host stops or starts in order: pam_nologin(8) refuses everybody but
root then, and sshd takes it for a failed login (OpenSSH 9.8: 5 s of penalty each, refused from 15 s on)."""


TOLD = MAY_HAVE_JUMPED - {Phase.LOST}
"""Phases in which go may have been told for the attempt that is open."""


def was_told(drive: HostDrive, attempt: AttemptRecord) -> bool:
    """Whether go may have been told for the last attempt, and its host has not been seen since.

    A host that we only lost sight of before that is nobody's to switch off, and neither is one that answered
    and refused us (LOST).
    """
    if drive.record.phase is not Phase.LOST or attempt.outcome is not None:
        return drive.record.phase in TOLD or attempt.outcome is Outcome.SILENT
    # The drive broke off by a fault of its own, and only the phase before that tells.
    events = drive.tools.journal.events(drive.record.rollout, host=drive.host.name)
    moved = [e for e in events if e.kind is EventKind.PHASE and e.attempt == attempt.number]
    phases = [phase for event in moved if (phase := Phase(event.data["phase"])) is not Phase.LOST]
    return bool(phases) and phases[-1] in TOLD


@dataclass
class Dark:
    """What this process knows of the jump: nothing after a resume."""

    told_at: float | None = None  # monotonic seconds
    prober: OutageProber | None = None
    first_login_at: float | None = None  # monotonic seconds
    console: ConsoleTail | None = None  # marked before the jump


def settle(drive: HostDrive, dark: Dark) -> Session | None:
    """Find out what became of the attempt and write it down; power-cycle the host where it stays silent.

    Returns an open session where the host is back with our nonce (phase RETURNED; the caller verifies and
    closes), None where the attempt has ended. Raises Stopped where we are asked to stop meanwhile.
    """
    drive.new_fence()
    look = Look(drive, dark)
    session = look.watch(Deadline.after(_patience(drive, look.may_have_jumped)))
    if session is not None or look.ended:
        return session
    why_not = look.power_cycle()
    if not why_not:
        session = look.watch(Deadline.after(drive.spec.playbook.deadlines.boot))
        if session is not None or look.ended:
            return session
        why_not = look.after_cycle
    look.give_up(why_not)
    return None


class Look:
    """One look at a host, until it answers or the time is over."""

    def __init__(self, drive: HostDrive, dark: Dark) -> None:
        self.drive = drive
        self.dark = dark
        self.attempt = drive.record.attempts[-1]
        self.may_have_jumped = drive.record.phase in MAY_HAVE_JUMPED
        self.told = was_told(drive, self.attempt)
        self.refusals: list[HostError] = []
        self.last: HostError | None = None
        self.answered = False  # when it was last looked at: one that is stopping answers for a while
        self.ended = False

    def watch(self, deadline: Deadline) -> Session | None:
        """Try to log in until the deadline. The session of a host that is back; else see `ended`."""
        drive = self.drive
        while not deadline.expired and len(self.refusals) < REFUSALS:
            drive.check_stop()
            _wait_for_answer(drive, self.dark, deadline)
            try:
                self.answered = False
                session = open_session(
                    drive, deadline, connect_seconds=TRY_SECONDS, connected=self._logged_in
                )
            except (HostKeyRefused, LoginRefused, HostRefused) as error:
                self.last, self.answered = error, True
                if _orderly(drive) and isinstance(error, LoginRefused):
                    pause(NOLOGIN_SECONDS, drive.check_stop)
                    continue
                self.refusals.append(error)
                pause(BETWEEN_SECONDS, drive.check_stop)
                continue
            except HostError as error:
                self.last = error
                pause(1.0, drive.check_stop)
                continue
            if self._judged(session) is Finding.BACK:
                return session
            if self.ended:
                return None
            pause(BETWEEN_SECONDS, drive.check_stop)
        return None

    def _logged_in(self) -> None:
        self.answered = True

    def _judged(self, session: Session) -> Finding:
        """What the session's boot proves; closes it unless the host is back."""
        login_at = time.monotonic()
        self.answered = True
        finding = Finding.UNCLEAR
        try:
            finding = judge(
                self.drive,
                session,
                self.attempt,
                self.dark.console,
                may_have_jumped=self.may_have_jumped,
            )
        except HostError as error:
            self.last = error
        finally:
            if finding is not Finding.BACK:
                session.close()
        if finding is Finding.BACK:
            self.dark.first_login_at = self.dark.first_login_at or login_at
        self.ended = finding is Finding.ENDED
        return finding

    def power_cycle(self) -> str:
        """Cycle the power of a host that was told to jump and has been silent since.

        Empty where that was ordered, else why not.
        """
        if not self.told:
            return "it was not told to jump"
        if self.answered or self.refusals:
            return "it answers, and such a host's power is never cycled"
        answers = recovery.answers(self.drive)
        gather(self.drive, self.attempt, None, self.dark.console, answered=answers)
        return recovery.power_cycle(self.drive, self.attempt, answers=answers)

    @property
    def after_cycle(self) -> str:
        """Why a power cycle did not help."""
        if self.answered:
            return "its power was cycled, and it answers since, but tells nothing"
        return "it stays silent after its power was cycled"

    def give_up(self, why_not_cycled: str) -> None:
        """End the attempt, or leave it ended, without having learned what became of the host."""
        detail = f"; last: {describe(self.last)}" if self.last else ""
        if self.refusals:
            outcome, text = Outcome.LOST, f"the host answers, but refuses us{detail}"
        elif self.told:
            outcome, text = Outcome.SILENT, f"no return before the deadline; {why_not_cycled}{detail}"
        else:
            outcome, text = Outcome.LOST, f"no contact since the session ended{detail}"
        hint = self.last.hint if self.last and self.last.hint else ""
        hint = hint or "look at its console; `rollout resume` looks at the host again"
        if self.attempt.outcome is None:
            self.drive.end_attempt(outcome, Phase.LOST, text, hint=hint, known=False)
        else:
            self.drive.note(f"looked at again: {text}")


def _patience(drive: HostDrive, may_have_jumped: bool) -> float:
    deadlines = drive.spec.playbook.deadlines
    if not may_have_jumped:
        return deadlines.connect
    return deadlines.return_ + LEAD_SECONDS + (deadlines.stop if _orderly(drive) else 0.0)


def _orderly(drive: HostDrive) -> bool:
    return drive.spec.playbook.jump is JumpMethod.SYSTEMD


def _wait_for_answer(drive: HostDrive, dark: Dark, deadline: Deadline) -> None:
    """Let the prober tell when a login is worth trying; without one (a resume) try at once."""
    if dark.prober is None:
        return
    until = deadline.sooner(BLIND_SECONDS)
    while not until.expired:
        drive.check_stop()
        if dark.prober.wait_first_answer(until.sooner(0.5)):
            return
