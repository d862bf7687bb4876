"""What killed an attempt: console, pstore and the old kernel's last log lines, kept with the attempt."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.deathstage import Diagnosis, diagnose
from orchestrator.domain.errors import HostError
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.raw import optional_text, texts_of
from workers.console import ConsoleTail
from workers.deadline import Deadline
from workers.drive.context import HostDrive, describe
from workers.drive.reach import Session

LOG_LINES = 60
"""Last lines of the old kernel's log that go into the journal; the whole tail stays on the host's disk."""


def gather(
    drive: HostDrive,
    attempt: AttemptRecord,
    session: Session | None,
    console: ConsoleTail | None,
    *,
    answered: bool | None,
) -> Diagnosis:
    """Collect what there is, write it down, and say in which stage the attempt died.

    `session`: a boot of the host that answers now (not the one that died), None where none does. `answered`:
    whether the new kernel answered on the network, None where that is not known. `console`: marked before
    the jump, None where another process saw that. Never raises HostError.
    """
    console = console or drive.tools.console(drive.host)
    text = console.since_mark(attempt.nonce) if console is not None else None
    found = _from_host(drive, attempt, session)
    since = _armed_at(attempt)
    kept = [dict(one) for one in found.get("pstore") or () if since is None or one.get("mtime", 0) >= since]
    records = [optional_text(record.get("text")) or "" for record in kept]
    diagnosis = diagnose(text, records, answered_network=answered, nonce=attempt.nonce)
    log = texts_of(found.get("log")) or ()
    drive.write(
        (
            EventKind.EVIDENCE,
            {
                "stage": diagnosis.stage,
                "reason": diagnosis.reason,
                "panic": diagnosis.panic,
                "console": list(diagnosis.tail),
                "console_known": text is not None,
                "pstore": kept,
                "old_log": list(log[-LOG_LINES:]),
                "why_not": found.get("why_not") or "",
            },
        )
    )
    return diagnosis


def _armed_at(attempt: AttemptRecord) -> float | None:
    """The host's own time when it was armed, seconds: a pstore record from before is of another death."""
    realtime = (attempt.armed or {}).get("realtime_ns")
    return realtime / 1e9 - 2.0 if isinstance(realtime, int) else None


def _from_host(drive: HostDrive, attempt: AttemptRecord, session: Session | None) -> dict[str, Any]:
    """pstore and the log tail that the agent wrote to the host's disk before the jump."""
    if session is None:
        return {"why_not": "no boot of the host answers: its disk and pstore cannot be read"}
    try:
        deadline = Deadline.after(drive.spec.playbook.deadlines.facts)
        return dict(session.agent.evidence(attempt.nonce, deadline))
    except HostError as error:
        return {"why_not": describe(error)}


def died(diagnosis: Diagnosis) -> str:
    """The stage of death as the end of a sentence."""
    return f"died in the stage {diagnosis.stage}: {diagnosis.reason}"
