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


def answers(drive: HostDrive) -> bool:
    """Whether the host answers on the network, though no login succeeds."""
    return drive.tools.answers(drive.host, LISTEN_SECONDS)


def power_cycle(drive: HostDrive, attempt: AttemptRecord, *, answers: bool) -> str:
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
    if not _network_works(drive):
        return "no other host of this rollout answers either: our own network may be down"
    drive.write((EventKind.POWER, {"state": "ordered", "why": f"silent after attempt {attempt.number}"}))
    try:
        result = driver.cycle(Deadline.after(drive.spec.playbook.deadlines.power))
    except PowerFailed as error:
        told = {"state": "failed", "message": error.message, "hint": error.hint}
        drive.write((EventKind.POWER, told))
        return f"its power control failed: {error.message}{f' ({error.hint})' if error.hint else ''}"
    drive.write((EventKind.POWER, {"state": "accepted", "kind": result.kind, "text": result.text}))
    return ""


def _network_works(drive: HostDrive) -> bool:
    """Whether some host that nobody has told to jump answers; True where there is none to ask.

    Those that have told us their facts come first; one that failed without ever telling any was never there.
    """
    hosts = drive.tools.journal.hosts(drive.record.rollout)
    others = [
        host
        for host in hosts
        if host.host != drive.host.name
        and host.phase not in MAY_HAVE_JUMPED
        and (host.facts is not None or host.phase is not Phase.FAILED)
    ]
    others.sort(key=lambda host: host.facts is None)
    asked = [drive.spec.inventory.hosts[host.host] for host in others[:WITNESSES]]
    return not asked or any(drive.tools.answers(host, LISTEN_SECONDS) for host in asked)
