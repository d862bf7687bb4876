"""What the boot that answers proves of an attempt, written down."""

from __future__ import annotations

from enum import Enum

from orchestrator.domain import cmdline
from orchestrator.domain.errors import HostLost
from orchestrator.domain.events import AttemptRecord
from orchestrator.domain.ladder import LoadPath
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.domain.words import split_words
from workers.console import ConsoleTail
from workers.deadline import Deadline
from workers.drive.context import HostDrive
from workers.drive.evidence import died, gather
from workers.drive.reach import Session


class Finding(Enum):
    """What one look at the host has shown."""

    BACK = "back"  # on the new kernel, with our nonce
    ENDED = "ended"  # the attempt has ended, and that is written
    UNCLEAR = "unclear"  # look again later


def judge(
    drive: HostDrive,
    session: Session,
    attempt: AttemptRecord,
    console: ConsoleTail | None,
    *,
    may_have_jumped: bool,
) -> Finding:
    """Write down what the answering boot proves. Raises HostError where nothing can be said yet."""
    # From the journal: a process before this one may have given the order.
    cycled = bool(drive.record.attempts[-1].power)
    if session.boot_id == attempt.boot_id:
        finding = _judge_same_boot(drive, session, attempt, may_have_jumped)
        if cycled:
            drive.note("a power cycle was ordered, and the same boot answers: another machine's power?")
        return finding
    facts = session.agent.facts(Deadline.after(drive.spec.playbook.deadlines.facts))
    if f"{cmdline.NONCE}={attempt.nonce}" in split_words(str(facts.get("cmdline", ""))):
        if drive.record.phase is not Phase.RETURNED:
            drive.to_phase(Phase.RETURNED)
        return Finding.BACK
    if may_have_jumped:
        _judge_firmware_boot(drive, session, attempt, console, str(facts.get("release", "?")), cycled)
    else:
        drive.end_attempt(
            Outcome.INTERRUPTED,
            Phase.PENDING,
            f"rebooted by someone else before the jump; runs {facts.get('release', '?')}",
        )
    return Finding.ENDED


def _judge_firmware_boot(
    drive: HostDrive,
    session: Session,
    attempt: AttemptRecord,
    console: ConsoleTail | None,
    running: str,
    cycled: bool,
) -> None:
    """It was told to jump, and another boot without our nonce answers: the new kernel is dead."""
    returned = drive.record.phase in (Phase.RETURNED, Phase.VERIFIED)
    diagnosis = gather(drive, attempt, session, console, answered=returned)
    if returned:
        outcome, what = Outcome.CORRUPTED, "came back on the new kernel, and left it again"
    elif cycled:
        outcome, what = Outcome.SILENT, "told to jump, and silent until its power was cycled"
    elif attempt.outcome is Outcome.SILENT:
        outcome, what = Outcome.SILENT, "told to jump, silent past its deadline, and rebooted since"
    else:
        outcome, what = Outcome.FELL_BACK, "told to jump, and came back through its firmware's boot"
    drive.end_attempt(
        outcome,
        Phase.PENDING,
        f"{what}; runs {running}; {died(diagnosis)}{_misaligned(attempt)}",
        hint="its console, pstore and the old kernel's log are in the journal (`rollout events`)",
    )


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
