"""Looking at a host whose attempt has gone beyond our sight, until we know what became of it.

The same look serves the ordinary wait after a jump, a session that broke, and a resume after a crash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from orchestrator.domain import cmdline
from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostLost,
    HostRefused,
    LoginRefused,
)
from orchestrator.domain.events import AttemptRecord
from orchestrator.domain.ladder import LoadPath
from orchestrator.domain.playbook import JumpMethod
from orchestrator.domain.rollout import MAY_HAVE_JUMPED, Outcome, Phase
from orchestrator.domain.words import split_words
from workers.deadline import Deadline
from workers.drive.attempt import LEAD_SECONDS
from workers.drive.context import HostDrive, describe
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


@dataclass
class Dark:
    """What this process knows of the jump: nothing after a resume."""

    told_at: float | None = None  # monotonic seconds
    prober: OutageProber | None = None
    first_login_at: float | None = None  # monotonic seconds


class Finding(Enum):
    """What one look at the host has shown."""

    BACK = "back"  # on the new kernel, with our nonce
    ENDED = "ended"  # the attempt has ended, and that is written
    UNCLEAR = "unclear"  # look again later


def settle(drive: HostDrive, dark: Dark) -> Session | None:
    """Find out what became of the attempt and write it down.

    Returns an open session where the host is back with our nonce (phase RETURNED; the caller verifies and
    closes), None where the attempt has ended. Raises Stopped where we are asked to stop meanwhile.
    """
    attempt = drive.record.attempts[-1]
    drive.new_fence()
    may_have_jumped = drive.record.phase in MAY_HAVE_JUMPED
    deadline = Deadline.after(_patience(drive, may_have_jumped))
    refusals: list[HostError] = []
    last: HostError | None = None
    while not deadline.expired and len(refusals) < REFUSALS:
        drive.check_stop()
        _wait_for_answer(drive, dark, deadline)
        try:
            session = open_session(drive, deadline, connect_seconds=TRY_SECONDS)
        except (HostKeyRefused, LoginRefused, HostRefused) as error:
            last = error
            if _orderly(drive) and isinstance(error, LoginRefused):
                pause(NOLOGIN_SECONDS, drive.check_stop)
                continue
            refusals.append(error)
            pause(BETWEEN_SECONDS, drive.check_stop)
            continue
        except HostError as error:
            last = error
            pause(1.0, drive.check_stop)
            continue
        login_at = time.monotonic()
        finding = Finding.UNCLEAR
        try:
            finding = _judge(drive, session, attempt, may_have_jumped)
        except HostError as error:
            last = error
        finally:
            if finding is not Finding.BACK:
                session.close()
        if finding is Finding.BACK:
            dark.first_login_at = dark.first_login_at or login_at
            return session
        if finding is Finding.ENDED:
            return None
        pause(BETWEEN_SECONDS, drive.check_stop)
    _give_up(drive, attempt, may_have_jumped, refusals, last)
    return None


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


def _judge(drive: HostDrive, session: Session, attempt: AttemptRecord, may_have_jumped: bool) -> Finding:
    """Write down what the answering boot proves."""
    if session.boot_id == attempt.boot_id:
        return _judge_same_boot(drive, session, attempt, may_have_jumped)
    facts = session.agent.facts(Deadline.after(drive.spec.playbook.deadlines.facts))
    if f"{cmdline.NONCE}={attempt.nonce}" in split_words(str(facts.get("cmdline", ""))):
        if drive.record.phase is not Phase.RETURNED:
            drive.to_phase(Phase.RETURNED)
        return Finding.BACK
    running = facts.get("release", "?")
    if drive.record.phase is Phase.RETURNED:
        drive.end_attempt(
            Outcome.CORRUPTED,
            Phase.PENDING,
            f"came back on the new kernel, and left it again by itself; runs {running}",
            hint="the new kernel died while it was verified; its console tells where",
        )
    elif may_have_jumped:
        drive.end_attempt(
            Outcome.FELL_BACK,
            Phase.PENDING,
            f"told to jump, and came back through its firmware's boot with {running}{_misaligned(attempt)}",
            hint="the new kernel died early; its console tells where",
        )
    else:
        drive.end_attempt(
            Outcome.INTERRUPTED,
            Phase.PENDING,
            f"rebooted by someone else before the jump; runs {running}",
        )
    return Finding.ENDED


def _misaligned(attempt: AttemptRecord) -> str:
    """What the load's own records say against a kernel placed in CMA; empty where they say nothing.

    CMA aligns to 1 MiB at most (CONFIG_CMA_ALIGNMENT) where a bzImage asks for 2: the decompressor rounds its
    address up and overwrites what lies behind the kernel (arch/x86/boot/compressed/head_64.S, Linux 7.2).
    """
    placement = (attempt.loaded or {}).get("placement") or {}
    kernel = next((s for s in placement.get("segments", ()) if s.get("role") == "kernel"), None)
    if attempt.path != LoadPath.CMA or kernel is None or placement.get("kernel_misaligned") is None:
        return ""
    where = f"0x{kernel['address']:x}"
    if not placement["kernel_misaligned"]:
        return f"; its kernel lay aligned at {where}, so that alignment is not the cause"
    return f"; its kernel lay misaligned in CMA at {where}, which overwrites the initrd behind it"


def _judge_same_boot(
    drive: HostDrive, session: Session, attempt: AttemptRecord, may_have_jumped: bool
) -> Finding:
    """The boot we left answers: only the agent, asked with a higher fence, may call the jump dead.

    Raises HostError where it does not: `busy`, or a shutdown is under way.
    """
    deadlines = drive.spec.playbook.deadlines
    status = session.agent.status(Deadline.after(deadlines.facts))
    answer = session.agent.claim(drive.claim(attempt), Deadline.after(deadlines.load))
    if answer.shutdown_under_way:
        raise HostLost(
            drive.host.name,
            "look",
            f"the boot that it was to leave answers, and a shutdown is under way: {answer.shutdown.why}",
            hint="look at its console: a unit may refuse to stop",
            code="stopping",
        )
    refused = status.jump_errno
    if refused is not None:
        drive.end_attempt(
            Outcome.JUMP_REFUSED,
            Phase.PENDING,
            f"reboot(2) came back with errno {refused}",
            errno=refused,
        )
    elif may_have_jumped:
        why = (status.raw.get("note") or {}).get("why")
        drive.end_attempt(
            Outcome.NEVER_LEFT,
            Phase.PENDING,
            f"still the same boot, and the agent says that the jump is dead{f': {why}' if why else ''}",
        )
    else:
        drive.end_attempt(
            Outcome.CANCELLED, Phase.PENDING, "the session ended before the jump; nothing is loaded"
        )
    return Finding.ENDED


def _give_up(
    drive: HostDrive,
    attempt: AttemptRecord,
    may_have_jumped: bool,
    refusals: list[HostError],
    last: HostError | None,
) -> None:
    detail = f"; last: {describe(last)}" if last else ""
    if refusals:
        outcome, text = Outcome.LOST, f"the host answers, but refuses us{detail}"
    elif may_have_jumped:
        outcome, text = Outcome.SILENT, f"no return before the deadline{detail}"
    else:
        outcome, text = Outcome.LOST, f"no contact since the session ended{detail}"
    hint = (
        last.hint if last and last.hint else "look at its console; `rollout resume` looks at the host again"
    )
    if attempt.outcome is None:
        drive.end_attempt(outcome, Phase.LOST, text, hint=hint, known=False)
    else:
        drive.note(f"looked at again: {text}")
