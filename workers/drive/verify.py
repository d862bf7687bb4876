"""After the return: measure, run the checks, judge, and end the attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.domain import downtime
from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, SshSession, Verdict
from orchestrator.domain.checks.registry import collectors_needed, judge_all, overall
from orchestrator.domain.downtime import JumpStamp, Measurement
from orchestrator.domain.errors import HostError
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.facts import parse_facts
from orchestrator.domain.policy import FinaliseMethod
from orchestrator.domain.rollout import Outcome, Phase
from workers.deadline import Deadline
from workers.drive.conclude import accept, finalise
from workers.drive.context import HostDrive, describe
from workers.drive.jump import NO_HOOK
from workers.drive.reach import Session, open_session, pause
from workers.drive.settle import Dark

STARTING = frozenset({"initializing", "starting"})
"""systemctl(1), is-system-running: the boot is not over yet. sshd answers some time before it is."""

BETWEEN_LOOKS = 2.0
"""Seconds between two looks whether the boot is over."""

BETWEEN_SESSIONS = 1.0
"""Seconds between two fresh logins: sshd is not to be hammered while it answers."""


def verify(drive: HostDrive, session: Session, dark: Dark) -> None:
    """Measure and check the host that has come back; ends the attempt as BOOTED or CORRUPTED.

    Raises HostError where the host went away again meanwhile.
    """
    attempt = drive.record.attempts[-1]
    deadline = Deadline.after(drive.spec.playbook.deadlines.verify)
    clock = session.agent.clock(deadline)  # first: its error grows with the distance to time zero
    _confirm(drive, session, attempt, deadline)
    _await_end_of_boot(drive, session, deadline)
    raw = session.agent.facts(deadline)
    measured = _measure(raw, clock, _stamp(drive, session, attempt, deadline), dark)
    drive.write((EventKind.MEASURED, measured))
    collected = collect(drive, session, deadline)
    session.close()
    sessions = _fresh_sessions(drive, session.boot_id, deadline)
    results = _judge(drive, attempt, raw, collected, sessions)
    drive.write((EventKind.CHECKED, {"checks": [result.as_dict() for result in results]}))
    _conclude(drive, results, attempt, session.boot_id)


def collect(drive: HostDrive, session: Session, deadline: Deadline) -> dict[str, Any]:
    """The raw data of every collector that a check of this playbook needs, by its name."""
    needed = collectors_needed(drive.spec.playbook.checks.skip)
    return {name: dict(session.agent.check(name, deadline)) for name in needed}


def _await_end_of_boot(drive: HostDrive, session: Session, deadline: Deadline) -> None:
    """Wait until systemd has started what it starts at boot; at most half of the time that is left.

    Units that are still starting have not failed yet, and drivers may still come. A host without systemd
    tells no state and is not waited for.
    """
    patience = deadline.sooner(deadline.left() / 2)
    while session.agent.check("units", deadline).get("state") in STARTING:
        if patience.expired:
            drive.note("systemd is still starting units; the checks go on without waiting any longer")
            return
        pause(BETWEEN_LOOKS, drive.check_stop)


def _measure(
    raw: Mapping[str, Any], clock: Mapping[str, Any], stamp: JumpStamp, dark: Dark
) -> dict[str, Any]:
    samples = downtime.samples_from_clock(clock, parse_facts(raw))
    figures: dict[str, Measurement] = {
        "hot_phase": downtime.hot_phase(stamp, samples, kexec_proven=True),
        "outage": _outage(dark),
        "time_to_ssh": downtime.time_to_ssh(
            dark.told_at, dark.first_login_at, None, "this process did not see the jump"
        ),
    }
    return {name: {**asdict(figure), "text": downtime.describe(figure)} for name, figure in figures.items()}


def _stamp(drive: HostDrive, session: Session, attempt: AttemptRecord, deadline: Deadline) -> JumpStamp:
    """When the jump was: by appointment, or as the last shutdown hook of an orderly stop wrote it."""
    armed = attempt.armed or {}
    if armed.get("method") != "systemd":
        return downtime.stamp_from_arm(armed)
    for event in drive.tools.journal.events(drive.record.rollout, host=drive.host.name):
        if event.attempt == attempt.number and event.kind is EventKind.NOTE and NO_HOOK in event.data:
            return downtime.stamp_from_arm(armed, why_not=f"no shutdown hook: {event.data[NO_HOOK]}")
    found = session.agent.stamp(attempt.nonce, deadline)
    return downtime.stamp_from_arm(armed, stamped=found.counter, why_not=found.why_not)


def _outage(dark: Dark) -> Measurement:
    if dark.prober is None:
        return downtime.outage(None, None, "", "this process did not see the jump")
    record = dark.prober.result()
    return downtime.outage(record.outage_s, record.resolution_s, record.source, record.not_measured_reason)


def _fresh_sessions(drive: HostDrive, boot_id: str, deadline: Deadline) -> list[SshSession]:
    """Log in anew, one after the other; each must reach the same boot."""
    found = []
    for _ in range(drive.spec.playbook.checks.ssh_sessions):
        pause(BETWEEN_SESSIONS, drive.check_stop)
        try:
            with open_session(drive, deadline) as session:
                found.append(SshSession(boot_id=session.boot_id, error=None))
        except HostError as error:
            found.append(SshSession(boot_id=None, error=describe(error)))
    return [SshSession(boot_id=s.boot_id, error=s.error or _other_boot(s.boot_id, boot_id)) for s in found]


def _other_boot(found: str | None, wanted: str) -> str | None:
    return None if found == wanted else f"another boot answered: {found}"


def _judge(
    drive: HostDrive,
    attempt: AttemptRecord,
    raw: Mapping[str, Any],
    collected: Mapping[str, Any],
    sessions: list[SshSession],
) -> list[CheckResult]:
    staged = _event_data(drive, EventKind.STAGED, attempt.number)
    baseline = baseline_of(drive)
    return judge_all(
        Before(facts=parse_facts(baseline["raw"]), collected=baseline["collected"]),
        After(facts=parse_facts(raw), collected=collected, sessions=tuple(sessions)),
        Expectation(
            nonce=attempt.nonce,
            old_boot_id=attempt.boot_id,
            release=staged.get("release"),
            build_id=staged.get("build_id"),
            version=(staged.get("header") or {}).get("version"),
            # As it was loaded: a repair may have padded it.
            initrd_sha256=(attempt.loaded or {}).get("initrd_sha256") or staged.get("initrd_sha256"),
            initrd_size=staged.get("initrd_size"),
            log_ignore=drive.spec.playbook.checks.log_ignore,
        ),
        skip=drive.spec.playbook.checks.skip,
    )


def baseline_of(drive: HostDrive) -> dict[str, Any]:
    """The host as it was before the first attempt of this rollout: what later boots are compared with."""
    for event in drive.tools.journal.events(drive.record.rollout, host=drive.host.name):
        if event.kind is EventKind.FACTS:
            return event.data
    return {"raw": {}, "collected": {}}


def _event_data(drive: HostDrive, kind: EventKind, attempt: int) -> dict[str, Any]:
    events = drive.tools.journal.events(drive.record.rollout, host=drive.host.name)
    found = [event.data for event in events if event.kind is kind and event.attempt == attempt]
    return found[-1] if found else {}


def _confirm(drive: HostDrive, session: Session, attempt: AttemptRecord, deadline: Deadline) -> None:
    """Tell the boot guard that we are here, before anything takes time: from now on it is us who decide.

    Raises HostError: a guard that was not told will reboot the host, and it is looked at again.
    """
    if drive.spec.playbook.recovery.guard is None:
        return
    claim = drive.claim(attempt, session.boot_id)
    session.agent.claim(claim, deadline)
    session.agent.guard_confirm(claim, deadline)


def _conclude(drive: HostDrive, results: list[CheckResult], attempt: AttemptRecord, boot_id: str) -> None:
    playbook, verdict = drive.spec.playbook, overall(results)
    if verdict is Verdict.FAIL:
        failed = "; ".join(f"{r.name}: {r.evidence}" for r in results if r.verdict is Verdict.FAIL)
        drive.end_attempt(
            Outcome.CORRUPTED,
            Phase.PENDING,
            f"came back wrong: {failed}",
            hint="the evidence of each check is in `rollout show --json`",
        )
        return
    unsure = [r.name for r in results if r.verdict is Verdict.INCONCLUSIVE]
    text = f"inconclusive: {', '.join(unsure)}" if unsure else "every check passed"
    drive.to_phase(Phase.VERIFIED, text)
    if unsure:
        # A human decides first what becomes of this kernel: the old one stays the default.
        stays = "" if playbook.finalise.method is FinaliseMethod.NONE else "; the boot loader's default stays"
        drive.end_attempt(Outcome.BOOTED, Phase.DONE, f"on the target; {text}{stays}")
        return
    why_not = finalise(drive, _event_data(drive, EventKind.STAGED, attempt.number), boot_id)
    accept(drive)
    if why_not:
        drive.end_attempt(
            Outcome.BOOTED,
            Phase.FAILED,
            f"on the target; {text}; but it is not the boot loader's default: {why_not}",
            hint="the host runs the target and is sound; set its default by hand",
        )
        return
    drive.end_attempt(Outcome.BOOTED, Phase.DONE, f"on the target; {text}")
