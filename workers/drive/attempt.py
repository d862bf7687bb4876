"""One attempt up to the jump: bind it, bring the files, place the image, jump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.ladder import Load
from orchestrator.domain.rollout import Outcome, Phase
from workers.deadline import Deadline
from workers.drive.bench import Bench
from workers.drive.conclude import rejected_text, rejection
from workers.drive.context import AttemptOver, HostDrive, phase_event
from workers.drive.jump import REARMS, jump
from workers.drive.place import AuditRefused, LoadRefused, Placed, Placer, load_dict, repair_text
from workers.drive.preload import command_line, require_loadable
from workers.drive.reach import Session
from workers.drive.target import Target, bring
from workers.outage import OutageProber


def start(drive: HostDrive, session: Session, step: Load) -> AttemptRecord:
    """Bind a new attempt to the boot that answers, and make the host refuse every older fence."""
    attempt = drive.start_attempt(
        {
            "nonce": drive.tools.new_nonce(),
            "boot_id": session.boot_id,
            "path": step.path,
            "flags": step.flags,
            "reason": step.reason,
            "level": step.level,
            "risk": step.risk,
        }
    )
    deadline = Deadline.after(drive.spec.playbook.deadlines.load)
    session.agent.claim(drive.claim(attempt), deadline)
    return attempt


def run_to_jump(
    drive: HostDrive,
    session: Session,
    facts: HostFacts,
    step: Load,
    attempt: AttemptRecord,
    prober: OutageProber,
) -> float:
    """Drive the attempt until the host was told to go; returns the monotonic time of that, seconds.

    The prober starts before the host is armed. Raises AttemptOver where the attempt ended before that,
    HostError where the host has to be looked at.
    """
    playbook, spec = drive.spec.playbook, drive.spec
    drive.check_stop()
    bench = Bench(
        host=drive.host.name,
        agent=session.agent,
        claim=lambda: drive.claim(attempt),
        note=drive.note,
        check_stop=drive.check_stop,
    )
    target = bring(
        bench, playbook.kernel, spec.images, spec.release, Deadline.after(playbook.deadlines.stage)
    )
    _skip_rejected(drive, target, attempt)
    require_loadable(drive.host.name, facts, target)
    line = command_line(drive.host.name, facts, playbook.cmdline, target, attempt.level, attempt.nonce)
    drive.write((EventKind.STAGED, {"cmdline": line, **target.as_dict()}), phase_event(Phase.STAGED))
    deadlines = playbook.deadlines
    placer = Placer(
        bench=bench,
        facts=facts,
        target=target,
        line=line,
        step=step,
        cma=playbook.cma,
        deadlines=deadlines,
        hold=deadlines.load + deadlines.audit * 2 + deadlines.jump * REARMS + deadlines.facts,
        record=lambda data: drive.write((EventKind.AUDITED, data)),
    )
    try:
        placed = placer.place()
        drive.write((EventKind.LOADED, _loaded(placed)), phase_event(Phase.LOADED))
        drive.check_stop()
        prober.start()
        placer.rehearse_again(placed, len(drive.record.attempts[-1].audits) + 1)
    except LoadRefused as refused:
        _end_refused_load(drive, refused)
    except AuditRefused as refused:
        drive.end_attempt(Outcome.AUDIT_REFUSED, Phase.PENDING, refused.reason, hint=refused.hint)
        raise AttemptOver from None
    return jump(drive, session, attempt, prober)


def _skip_rejected(drive: HostDrive, target: Target, attempt: AttemptRecord) -> None:
    """An image on the host's disk is known only now. Raises AttemptOver where the host has rejected it."""
    found = rejection(drive, target.build_id, target.kernel_sha256) if attempt.number == 1 else None
    if found is not None:
        drive.end_attempt(Outcome.CANCELLED, Phase.PENDING, rejected_text(found))
        drive.to_phase(Phase.SKIPPED, rejected_text(found))
        raise AttemptOver


def _loaded(placed: Placed) -> Mapping[str, Any]:
    """The LOADED event: the image that is approved, and what was done to get it there."""
    return {
        **load_dict(placed.answer),
        "placement": asdict(placed.placement),
        "audit": placed.audit.as_dict(),
        "repair": repair_text(placed.repair),
        "kernel_sha256": placed.target.kernel_sha256,
        "initrd_sha256": placed.target.initrd_sha256,
    }


def _end_refused_load(drive: HostDrive, refused: LoadRefused) -> None:
    """Raises AttemptOver."""
    answer = refused.answer
    drive.write((EventKind.LOADED, load_dict(answer)))
    drive.end_attempt(
        Outcome.LOAD_REFUSED,
        Phase.PENDING,
        str(refused),
        hint="the kernel's log lines of the load are in the journal (`rollout events`)",
        errno=answer.errno,
    )
    raise AttemptOver
