"""What is settled about a load before the kernel is asked: the command line, and reasons never to try."""

from __future__ import annotations

from orchestrator.domain import cmdline
from orchestrator.domain.errata import ERRATA, match_errata
from orchestrator.domain.errors import CommandLineTooLong, HostRefused
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.ladder import CheckLevel
from orchestrator.domain.playbook import CommandLine
from workers.drive.target import Target

KEEP_INITRD = "retain_initrd"
"""Kernel parameter: the initrd stays in memory, where its bytes can be compared (init/initramfs.c)."""


def command_line(
    host: str, facts: HostFacts, policy: CommandLine, target: Target, level: str, nonce: str
) -> str:
    """The next kernel's command line. Raises HostRefused where it is too long for the image."""
    limit = cmdline.command_line_limit(target.header.cmdline_size)
    ours = [KEEP_INITRD] if target.initrd and level == CheckLevel.RAISED else []
    try:
        return cmdline.new_command_line(facts.cmdline or "", policy, nonce, ours, limit)
    except CommandLineTooLong as error:
        raise HostRefused(
            host, "preflight", error.message, hint=error.hint, code="cmdline_too_long"
        ) from error


def never_load(facts: HostFacts, target: Target) -> str:
    """Why the load itself must not be tried; empty where it may."""
    if facts.machine and facts.machine != target.header.machine:
        return f"the host is {facts.machine}, the image is for {target.header.machine}"
    matched = match_errata(
        ERRATA,
        running=facts.release,
        target=target.release,
        machine=facts.machine,
        initrd_size=target.initrd_size,
    )
    return "; ".join(f"erratum {one.name}: {one.hazard}; {one.action}" for one in matched if one.fatal)


def require_loadable(host: str, facts: HostFacts, target: Target) -> None:
    """Raises HostRefused where the load itself must not be tried."""
    if why := never_load(facts, target):
        raise HostRefused(host, "preflight", why, hint="choose another kernel or initrd", code="never_load")
