"""The files that a repair loads, made on the host from the target's own: padded ones, and spacers."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.domain.repair import Derived, Repair, Spacer
from workers.agentimages import Derived as DerivedFile
from workers.deadline import Deadline
from workers.drive.bench import Bench
from workers.drive.target import Target


def repaired(bench: Bench, target: Target, repair: Repair, deadline: Deadline) -> Target:
    """The target with the padding that the repair wants. Raises HostError."""
    return _with(bench, target, repair.kernel, repair.initrd if target.initrd else None, deadline)


def spacer_files(bench: Bench, target: Target, spacer: Spacer, deadline: Deadline) -> Target:
    """A spacer as something to load. Raises HostError."""
    if not spacer.with_initrd:
        target = replace(target, initrd=None, initrd_sha256=None, initrd_size=0)
    return _with(bench, target, spacer.kernel, spacer.initrd if spacer.with_initrd else None, deadline)


def _with(
    bench: Bench, target: Target, kernel: Derived | None, initrd: Derived | None, deadline: Deadline
) -> Target:
    made = target
    if kernel is not None:
        file = _derive(bench, target.kernel, target.kernel_sha256, kernel, deadline)
        made = replace(made, kernel=file.path, kernel_sha256=file.sha256, kernel_size=file.size)
    if initrd is not None and target.initrd is not None:
        file = _derive(bench, target.initrd, target.initrd_sha256, initrd, deadline)
        made = replace(made, initrd=file.path, initrd_sha256=file.sha256, initrd_size=file.size)
    return made


def _derive(
    bench: Bench, source: str, expect: str | None, wanted: Derived, deadline: Deadline
) -> DerivedFile:
    return bench.agent.derive(
        bench.claim(),
        source=source,
        expect=expect,
        take=wanted.take,
        size=wanted.size,
        patches=wanted.patches,
        name=wanted.role,
        deadline=deadline,
    )
