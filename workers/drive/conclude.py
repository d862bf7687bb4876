"""What follows from a verdict: the boot loader's default, and kernels that a host does not get again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import HostError, HostLost, HostRefused
from orchestrator.domain.events import EventKind
from orchestrator.domain.policy import Finalise, FinaliseMethod
from orchestrator.domain.rollout import Outcome
from orchestrator.journal.rejections import Rejection
from workers.deadline import Deadline
from workers.drive.context import HostDrive, describe
from workers.drive.reach import Session, open_session
from workers.localcommand import run_local

AGAINST_KERNEL = frozenset({Outcome.FELL_BACK, Outcome.SILENT, Outcome.CORRUPTED})
"""Outcomes of an attempt whose kernel ran, or was to run, and did not do well."""


def rejection(drive: HostDrive, *more: str | None) -> Rejection | None:
    """What this host has against the rollout's kernel; `more` are further names of it (its SHA-256)."""
    if drive.spec.playbook.even_if_rejected:
        return None
    image = drive.spec.images.kernel
    names = {drive.spec.build_id, image.sha256 if image else None, *more} - {None}
    return drive.tools.journal.rejection(drive.host.name, [name for name in names if name])


def rejected_text(found: Rejection) -> str:
    """Why the kernel is not offered, and how it is all the same."""
    return (
        f"it rejected this kernel in rollout {found.rollout}: {found.reason}; "
        f"`even_if_rejected: true` offers it again"
    )


def remember_rejection(drive: HostDrive) -> None:
    """The host is given up: where its kernel was to blame, it is not offered here again."""
    if not drive.record.attempts or drive.record.attempts[-1].outcome not in AGAINST_KERNEL:
        return
    last = drive.record.attempts[-1]
    if drive.spec.playbook.recovery.guard is not None and not (last.evidence or {}).get("panic"):
        drive.note("not held against the kernel: our own guard may have rebooted it, nobody saw it panic")
        return
    if names := _names(drive):
        drive.write((EventKind.REJECTED, {"kernels": names, "reason": f"{last.outcome}: {last.message}"}))


def accept(drive: HostDrive) -> None:
    """The host has booted the kernel and every check has passed."""
    if names := _names(drive):
        drive.write((EventKind.ACCEPTED, {"kernels": names}))


OTHER_BOOT = "other_boot"


def finalise(drive: HostDrive, staged: Mapping[str, Any], boot_id: str) -> str:
    """Make the running kernel the boot loader's default.

    Empty where that is done or not wanted, else why it is not. `staged`: the STAGED event of the attempt
    that has booted; `boot_id`: the boot whose checks have passed. Raises HostLost where another boot answers.
    """
    wanted = drive.spec.playbook.finalise
    if wanted.method is FinaliseMethod.NONE:
        return ""
    try:
        if wanted.method is FinaliseMethod.LOCAL:
            with _same_boot(drive, boot_id):
                result = _local(drive, wanted, staged)
        else:
            result = _on_host(drive, wanted, staged, boot_id)
    except HostError as error:
        if error.code == OTHER_BOOT:
            raise
        drive.write((EventKind.FINALISED, {"method": wanted.method, "error": describe(error)}))
        return f"{describe(error)}{f' ({error.hint})' if error.hint else ''}"
    drive.write((EventKind.FINALISED, {"method": wanted.method, **result}))
    return ""


def _same_boot(drive: HostDrive, boot_id: str) -> Session:
    """A session with the boot whose checks have passed. Raises HostLost where another one answers."""
    session = open_session(drive, Deadline.after(drive.spec.playbook.deadlines.finalise))
    if session.boot_id != boot_id:
        session.close()
        raise HostLost(
            drive.host.name,
            "finalise",
            "another boot answers than the one whose checks have passed",
            hint="the new kernel has left again; its console tells why",
            code=OTHER_BOOT,
        )
    return session


def _on_host(
    drive: HostDrive, wanted: Finalise, staged: Mapping[str, Any], boot_id: str
) -> Mapping[str, Any]:
    release = staged.get("release")
    if not release:
        raise HostRefused(
            drive.host.name,
            "finalise",
            "the kernel's release is not known, so its boot entry cannot be found",
            hint="name the release in the playbook: `kernel: {release: ...}`",
            code="no_release",
        )
    deadline = Deadline.after(drive.spec.playbook.deadlines.finalise)
    with _same_boot(drive, boot_id) as session:
        attempt = drive.record.attempts[-1]
        drive.new_fence()  # an earlier session of ours may not have ended there yet
        claim = drive.claim(attempt, session.boot_id)
        session.agent.claim(claim, deadline)
        return session.agent.boot_default_set(
            claim,
            method=str(wanted.method),
            release=str(release),
            kernel=str(staged.get("kernel", "")),
            entry=wanted.entry,
            command=list(wanted.run) or None,
            deadline=deadline,
        )


def _local(drive: HostDrive, wanted: Finalise, staged: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run the playbook's command on this machine; the host and kernel are in its environment."""
    images = drive.spec.images
    environment = {
        "KEXEC_FLEET_HOST": drive.host.name,
        "KEXEC_FLEET_RELEASE": str(staged.get("release") or ""),
        "KEXEC_FLEET_KERNEL": images.kernel.path if images.kernel else "",
        "KEXEC_FLEET_INITRD": images.initrd.path if images.initrd else "",
    }
    deadline = Deadline.after(drive.spec.playbook.deadlines.finalise)
    output = run_local(drive.host.name, "finalise", wanted.run, environment, deadline)
    return {"before": None, "after": output, "detail": "a command on the controller"}


def _names(drive: HostDrive) -> list[str]:
    """The names of the kernel of the last attempt: its build-id where known, and its image's SHA-256."""
    number = drive.record.attempts[-1].number
    events = drive.tools.journal.events(drive.record.rollout, host=drive.host.name)
    staged = [event.data for event in events if event.kind is EventKind.STAGED and event.attempt == number]
    if not staged:
        return []
    return [str(name) for name in (staged[-1].get("build_id"), staged[-1].get("kernel_sha256")) if name]
