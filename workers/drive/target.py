"""The target as one host will load it: where the files lie on the host, and what the image's header asks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.bootimage import BootHeader, BootImageError, InitrdFile, KernelFile, parse_header
from orchestrator.domain.errors import HostRefused
from orchestrator.domain.events import EventKind
from orchestrator.domain.playbook import HostImage
from workers.deadline import Deadline
from workers.drive.context import HostDrive
from workers.drive.reach import Session


@dataclass(frozen=True)
class Target:
    """Files on the host, verified there, and the header of the kernel image."""

    kernel: str
    kernel_sha256: str
    initrd: str | None
    initrd_sha256: str | None
    release: str | None
    build_id: str | None
    header: BootHeader

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return {**vars(self), "header": self.header.model_dump(mode="json")}


def bring(drive: HostDrive, session: Session, deadline: Deadline) -> Target:
    """Stage what lies on the controller, or find what lies on the host. Raises HostError."""
    on_host = drive.spec.playbook.kernel.on_host
    if on_host is not None:
        return _find(drive, session, on_host, deadline)
    kernel, initrd = drive.spec.images.kernel, drive.spec.images.initrd
    if kernel is None:
        raise HostRefused(drive.host.name, "stage", "the rollout names no image", code="no_image")
    return Target(
        kernel=_stage(drive, session, kernel, "kernel", deadline),
        kernel_sha256=kernel.sha256,
        initrd=_stage(drive, session, initrd, "initrd", deadline) if initrd else None,
        initrd_sha256=initrd.sha256 if initrd else None,
        release=drive.spec.release,
        build_id=kernel.build_id,
        header=kernel.header,
    )


def _stage(
    drive: HostDrive, session: Session, file: KernelFile | InitrdFile, name: str, deadline: Deadline
) -> str:
    """The path on the host of a file that is there now, by its hash."""
    claim = drive.claim(drive.record.attempts[-1])
    staged = session.agent.stage(claim, Path(file.path), file.sha256, file.size, name, deadline)
    told = {
        "text": f"{name} {'was there' if staged.skipped else 'staged'}",
        "sha256": file.sha256,
        "bytes_sent": staged.bytes_sent,
        "resumed_from": staged.resumed_from,
        "seconds": staged.seconds,
    }
    drive.write((EventKind.NOTE, told))
    return staged.path


def _find(drive: HostDrive, session: Session, image: HostImage, deadline: Deadline) -> Target:
    host = drive.host.name
    kernel = _resolve(host, session, image.image, deadline)
    digest = session.agent.digest(kernel, deadline)
    _require_hash(host, kernel, digest.sha256, image.image_sha256)
    try:
        header = parse_header(base64.b64decode(digest.head), digest.size)
    except BootImageError as error:
        raise HostRefused(
            host, "stage", f"{kernel}: {error.message}", hint=error.hint, code="not_an_image"
        ) from error
    initrd = initrd_sha256 = None
    if image.initrd is not None:
        initrd = _resolve(host, session, image.initrd, deadline)
        initrd_sha256 = session.agent.digest(initrd, deadline).sha256
        _require_hash(host, initrd, initrd_sha256, image.initrd_sha256)
    return Target(
        kernel=kernel,
        kernel_sha256=digest.sha256,
        initrd=initrd,
        initrd_sha256=initrd_sha256,
        release=drive.spec.playbook.kernel.release or header.release,
        build_id=None,  # the payload stays on the host, and its stdlib cannot unpack zstd
        header=header,
    )


def _resolve(host: str, session: Session, pattern: str, deadline: Deadline) -> str:
    matches = session.agent.resolve(pattern, deadline)
    if len(matches) != 1:
        found = ", ".join(match.path for match in matches) or "nothing"
        raise HostRefused(
            host,
            "stage",
            f"{pattern} must match one file on the host and matches {found}",
            hint="name the file, or a glob that only it matches",
            code="no_such_image",
        )
    return matches[0].path


def _require_hash(host: str, path: str, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise HostRefused(
            host,
            "stage",
            f"{path} has SHA-256 {found}, the playbook says {wanted}",
            hint="put the right file there, or correct the playbook",
            code="hash_mismatch",
        )
