"""The target as one host will load it: where the files lie on the host, and what the image's header asks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.bootimage import (
    BootHeader,
    BootImageError,
    Images,
    InitrdFile,
    KernelFile,
    parse_header,
)
from orchestrator.domain.errors import HostRefused
from orchestrator.domain.playbook import HostImage, Kernel
from workers.deadline import Deadline
from workers.drive.bench import Bench


@dataclass(frozen=True)
class Target:
    """Files on the host, verified there, and the header of the kernel image."""

    kernel: str
    kernel_sha256: str
    kernel_size: int  # bytes
    initrd: str | None
    initrd_sha256: str | None
    initrd_size: int  # bytes; 0 without one
    release: str | None
    build_id: str | None
    header: BootHeader

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return {**vars(self), "header": self.header.model_dump(mode="json")}


def bring(bench: Bench, kernel: Kernel, images: Images, release: str | None, deadline: Deadline) -> Target:
    """Stage what lies on the controller, or find what lies on the host. Raises HostError."""
    if kernel.on_host is not None:
        return _find(bench, kernel, kernel.on_host, deadline)
    image, initrd = images.kernel, images.initrd
    if image is None:
        raise HostRefused(bench.host, "stage", "the rollout names no image", code="no_image")
    return Target(
        kernel=_stage(bench, image, "kernel", deadline),
        kernel_sha256=image.sha256,
        kernel_size=image.size,
        initrd=_stage(bench, initrd, "initrd", deadline) if initrd else None,
        initrd_sha256=initrd.sha256 if initrd else None,
        initrd_size=initrd.size if initrd else 0,
        release=release,
        build_id=image.build_id,
        header=image.header,
    )


def _stage(bench: Bench, file: KernelFile | InitrdFile, name: str, deadline: Deadline) -> str:
    """The path on the host of a file that is there now, by its hash."""
    staged = bench.agent.stage(bench.claim(), Path(file.path), file.sha256, file.size, name, deadline)
    bench.note(
        f"{name} {'was there' if staged.skipped else 'staged'}",
        sha256=file.sha256,
        bytes_sent=staged.bytes_sent,
        resumed_from=staged.resumed_from,
        seconds=staged.seconds,
    )
    return staged.path


def _find(bench: Bench, wanted: Kernel, image: HostImage, deadline: Deadline) -> Target:
    host, agent = bench.host, bench.agent
    kernel = _resolve(bench, image.image, deadline)
    digest = agent.digest(kernel, deadline)
    _require_hash(host, kernel, digest.sha256, image.image_sha256)
    try:
        header = parse_header(base64.b64decode(digest.head), digest.size)
    except BootImageError as error:
        raise HostRefused(
            host, "stage", f"{kernel}: {error.message}", hint=error.hint, code="not_an_image"
        ) from error
    initrd = initrd_sha256 = None
    initrd_size = 0
    if image.initrd is not None:
        initrd = _resolve(bench, image.initrd, deadline)
        found = agent.digest(initrd, deadline)
        initrd_sha256, initrd_size = found.sha256, found.size
        _require_hash(host, initrd, initrd_sha256, image.initrd_sha256)
    return Target(
        kernel=kernel,
        kernel_sha256=digest.sha256,
        kernel_size=digest.size,
        initrd=initrd,
        initrd_sha256=initrd_sha256,
        initrd_size=initrd_size,
        release=wanted.release or header.release,
        build_id=None,  # the payload stays on the host, and its stdlib cannot unpack zstd
        header=header,
    )


def _resolve(bench: Bench, pattern: str, deadline: Deadline) -> str:
    matches = bench.agent.resolve(pattern, deadline)
    if len(matches) != 1:
        found = ", ".join(match.path for match in matches) or "nothing"
        raise HostRefused(
            bench.host,
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
