"""One attempt up to the jump: bind it, bring the files, load, arm, commit, tell the host to go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.domain import cmdline
from orchestrator.domain.errors import CommandLineTooLong, HostLost, HostRefused
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.ladder import Load
from orchestrator.domain.placement import Placement, parse_placement
from orchestrator.domain.playbook import JumpMethod
from orchestrator.domain.rollout import Outcome, Phase
from workers.agent import ArmAnswer, LoadAnswer
from workers.deadline import Deadline
from workers.drive.context import HostDrive, phase_event
from workers.drive.reach import Session
from workers.drive.target import Target, bring
from workers.outage import OutageProber

NO_INITRAMFS = 0x4
"""KEXEC_FILE_NO_INITRAMFS, include/uapi/linux/kexec.h."""

LEAD_SECONDS = 3.0
"""How far ahead the agent sets the appointment: time for the commit and for go to travel."""

NO_HOOK = "no_shutdown_hook"
"""The key of the note that says why the host could not take our shutdown hook."""

REARMS = 5
"""How often an appointment that passed before go came is set anew."""

STILL_LOADING_FACTOR = 5
"""A load past its deadline is waited for this many deadlines more: killing it leaks CMA until a reboot."""


class AttemptOver(Exception):
    """The attempt ended before the jump; its end is in the journal already."""


def start(drive: HostDrive, session: Session, step: Load) -> AttemptRecord:
    """Bind a new attempt to the boot that answers, and make the host refuse every older fence."""
    attempt = drive.start_attempt(
        {
            "nonce": drive.tools.new_nonce(),
            "boot_id": session.boot_id,
            "path": step.path,
            "flags": step.flags,
            "reason": step.reason,
        }
    )
    deadline = Deadline.after(drive.spec.playbook.deadlines.load)
    session.agent.claim(drive.claim(attempt), deadline)
    return attempt


def run_to_jump(
    drive: HostDrive,
    session: Session,
    facts: HostFacts,
    attempt: AttemptRecord,
    prober: OutageProber,
) -> float:
    """Drive the attempt until the host was told to go; returns the monotonic time of that, seconds.

    The prober starts before the host is armed. Raises AttemptOver where the attempt ended before that,
    HostError where the host has to be looked at.
    """
    deadlines = drive.spec.playbook.deadlines
    drive.check_stop()
    target = bring(drive, session, Deadline.after(deadlines.stage))
    line = _command_line(drive, facts, target, attempt)
    drive.write((EventKind.STAGED, {"cmdline": line, **target.as_dict()}), phase_event(Phase.STAGED))
    drive.check_stop()
    _load(drive, session, facts, target, line, attempt)
    drive.check_stop()
    prober.start()
    return _jump(drive, session, attempt, prober)


def _command_line(drive: HostDrive, facts: HostFacts, target: Target, attempt: AttemptRecord) -> str:
    limit = cmdline.command_line_limit(target.header.cmdline_size)
    try:
        return cmdline.new_command_line(
            facts.cmdline or "", drive.spec.playbook.cmdline, attempt.nonce, (), limit
        )
    except CommandLineTooLong as error:
        raise HostRefused(
            drive.host.name, "preflight", error.message, hint=error.hint, code="cmdline_too_long"
        ) from error


def _load(
    drive: HostDrive, session: Session, facts: HostFacts, target: Target, line: str, attempt: AttemptRecord
) -> None:
    deadlines = drive.spec.playbook.deadlines
    flags = attempt.flags | (0 if target.initrd else NO_INITRAMFS)
    answer = session.agent.load(
        drive.claim(attempt),
        kernel=target.kernel,
        initrd=target.initrd,
        cmdline=line,
        flags=flags,
        expect={"kernel": target.kernel_sha256, "initrd": target.initrd_sha256},
        hold=deadlines.load + deadlines.jump * REARMS + deadlines.facts,
        deadline=Deadline.after(deadlines.load),
    )
    patience = Deadline.after(deadlines.load * STILL_LOADING_FACTOR)
    while answer.state == "loading":
        drive.note("the load is past its deadline and still running; waiting for it", seconds=answer.seconds)
        if patience.expired:
            raise HostLost(
                drive.host.name,
                "load",
                f"kexec_file_load has not come back for {answer.seconds:.0f} s",
                hint="the load must not be killed: it would leak CMA memory; look at the host's console",
                code="still_loading",
            )
        answer = session.agent.load_wait(drive.claim(attempt), patience.sooner(deadlines.load))
    placement = _placement(answer, facts, target)
    loaded = _loaded_event(answer, placement)
    if answer.state != "loaded":
        session.agent.unload(drive.claim(attempt), Deadline.after(deadlines.load))
        drive.write((EventKind.LOADED, loaded))
        drive.end_attempt(
            Outcome.LOAD_REFUSED,
            Phase.PENDING,
            f"kexec_file_load: {answer.errname or answer.errno}: {_said(answer.log)}",
            hint="the kernel's log lines of the load are in the journal (`rollout events`)",
            errno=answer.errno,
        )
        raise AttemptOver
    drive.write((EventKind.LOADED, loaded), phase_event(Phase.LOADED))


def _placement(answer: LoadAnswer, facts: HostFacts, target: Target) -> Placement:
    return parse_placement(
        answer.log,
        facts,
        kernel_alignment=target.header.kernel_alignment,
        before=answer.cma_before,
        after=answer.cma_after,
        log_complete=answer.log_complete,
    )


def _loaded_event(answer: LoadAnswer, placement: Placement) -> dict[str, Any]:
    return {
        "state": answer.state,
        "errno": answer.errno,
        "errname": answer.errname,
        "seconds": answer.seconds,
        "flags": answer.flags,
        "log": list(answer.log),
        "log_complete": answer.log_complete,
        "cma_before": answer.cma_before,
        "cma_after": answer.cma_after,
        "placement": asdict(placement),
    }


def _said(log: Sequence[str]) -> str:
    """The last thing that the kernel logged about the load, without its record prefix."""
    return log[-1].partition(";")[2] or log[-1] if log else "the kernel logged nothing"


def _jump(drive: HostDrive, session: Session, attempt: AttemptRecord, prober: OutageProber) -> float:
    """Arm, commit `jumping`, tell the host to go: once per appointment, and only after the commit."""
    playbook = drive.spec.playbook
    deadline = Deadline.after(playbook.deadlines.jump * REARMS)
    for _ in range(REARMS):
        drive.check_stop()
        armed = session.agent.arm(
            drive.claim(attempt), str(playbook.jump), LEAD_SECONDS, deadline.sooner(playbook.deadlines.jump)
        )
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
