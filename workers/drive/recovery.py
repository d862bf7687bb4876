"""Bringing back a host that has gone silent, by its power: never one that answers."""

from __future__ import annotations

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.events import AttemptRecord, EventKind
from orchestrator.domain.rollout import MAY_HAVE_JUMPED, Phase
from workers.deadline import Deadline
from workers.drive.context import HostDrive

LISTEN_SECONDS = 15.0
"""How long a silent host is listened for before its power is cycled: it may have come up a moment ago."""

WITNESSES = 3
"""Other hosts that are asked before a power cycle, whether our own network works."""

MOST_CYCLES = 2
"""Power cycles of one attempt, over all resumes. A host that stays silent after that needs a human."""


def answers(drive: HostDrive) -> bool | None:
    """Whether the host answers on the network, though no login succeeds; None: that cannot be told."""
    return drive.tools.answers(drive.host, LISTEN_SECONDS)


def power_cycle(drive: HostDrive, attempt: AttemptRecord, *, answers: bool | None) -> str:
    """Power-cycle the silent host; empty where the order was taken, else why it was not given or failed.

    `answers`: what the function of that name has just said. What is about to happen is journaled before it
    happens.
    """
    if not drive.spec.playbook.recovery.power:
        return "the playbook forbids power cycles (`recovery: {power: false}`)"
    driver = drive.tools.power(drive.host)
    if driver is None:
        return "the inventory names no power control for it"
    cycles = sum(told.get("state") == "ordered" for told in drive.record.attempts[-1].power)
    if cycles >= MOST_CYCLES:
        return f"its power was cycled {cycles} times already"
    if answers:
        drive.note("no power cycle: the host answers on the network, though no login succeeds")
        return "the host answers on the network, and such a host's power is never cycled"
    if answers is None and drive.host.proxy_jump is None:
        return "whether it answers cannot be told from here: no route, no name, or too many open files"
    witness = _witness(drive)
    if witness is None:
        return "no other host answers either: our own network may be down"
    ordered = {"state": "ordered", "why": f"silent after attempt {attempt.number}", "witness": witness}
    drive.write((EventKind.POWER, ordered))
    try:
        result = driver.cycle(Deadline.after(drive.spec.playbook.deadlines.power))
    except PowerFailed as error:
        told = {"state": "failed", "message": error.message, "hint": error.hint}
        drive.write((EventKind.POWER, told))
        return f"its power control failed: {error.message}{f' ({error.hint})' if error.hint else ''}"
    drive.write((EventKind.POWER, {"state": "accepted", "kind": result.kind, "text": result.text}))
    return ""


def _witness(drive: HostDrive) -> str | None:
    """Who shows that our own network works: a host's name, or why there is nobody to ask; None: nobody does.

    Those of the rollout that have told us their facts come first; one that failed without ever telling any
    was never there. Where the whole rollout is on its way, other hosts of the inventory are asked.
    """
    hosts = {host.host: host for host in drive.tools.journal.hosts(drive.record.rollout)}
    others = [
        host
        for host in hosts.values()
        if host.host != drive.host.name
        and host.phase not in MAY_HAVE_JUMPED
        and (host.facts is not None or host.phase is not Phase.FAILED)
    ]
    others.sort(key=lambda host: host.facts is None)
    names = [host.host for host in others] + [
        name for name in drive.spec.inventory.hosts if name not in hosts
    ]
    direct = [drive.spec.inventory.hosts[name] for name in names]
    asked = [host for host in direct if host.proxy_jump is None][:WITNESSES]
    for host in asked:
        if drive.tools.answers(host, LISTEN_SECONDS):
            return host.name
    # A whole wave that is silent at once may be our own network's fault as well as the kernel's.
    dark = any(host.phase in MAY_HAVE_JUMPED for host in hosts.values() if host.host != drive.host.name)
    return None if asked or dark else "nobody: there is no other host to ask"
