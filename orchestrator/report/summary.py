"""A rollout as plain values: what `--json` prints, and what the table at the end is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.domain.events import AttemptRecord, HostRecord, RolloutRecord
from orchestrator.domain.rollout import SPENT, Outcome, Phase

FIGURES = ("hot_phase", "outage", "time_to_ssh")
"""The measurements of an attempt that came back."""


def summary(record: RolloutRecord, hosts: Sequence[HostRecord]) -> dict[str, Any]:
    """The rollout with all its hosts; times are seconds since the epoch, sizes bytes."""
    return {
        "rollout": record.id,
        "name": record.name,
        "status": str(record.status),
        "reason": record.reason,
        "created_at": record.created_at,
        "waves": [list(wave) for wave in record.waves],
        "counts": dict(Counter(str(host.phase) for host in hosts)),
        "hosts": [host_summary(host) for host in hosts],
    }


def host_summary(host: HostRecord) -> dict[str, Any]:
    """One host: where it stands, its attempts, and the figures of the attempt that brought it back."""
    booted = booted_attempt(host)
    measured = (booted.measured if booted else None) or {}
    return {
        "host": host.host,
        "wave": host.wave,
        "phase": str(host.phase),
        "reason": host.reason,
        "hint": host.hint,
        "facts": host.facts,
        "path": booted.path if booted else None,
        "verdict": verdict(booted),
        **{name: measured.get(name) for name in FIGURES},
        "attempts": [attempt_summary(attempt) for attempt in host.attempts],
    }


def attempt_summary(attempt: AttemptRecord) -> dict[str, Any]:
    """One attempt with its path, flags, errno, bytes in CMA and outcome."""
    loaded = attempt.loaded or {}
    placement = loaded.get("placement") or {}
    return {
        "number": attempt.number,
        "nonce": attempt.nonce,
        "fence": attempt.fence,
        "path": attempt.path,
        "flags": attempt.flags,
        "reason": attempt.reason,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "load_seconds": loaded.get("seconds"),
        "errno": attempt.errno,
        "bytes_total": placement.get("bytes_total"),
        "bytes_in_cma": placement.get("bytes_in_cma"),
        "bytes_to_copy": placement.get("bytes_to_copy"),
        "bytes_to_hash": placement.get("bytes_to_hash"),
        "kernel_misaligned": placement.get("kernel_misaligned"),
        "repair": loaded.get("repair"),
        "audits": [_audit_summary(audit) for audit in attempt.audits],
        "check_level": attempt.level,
        "risk": attempt.risk,
        "power": list(attempt.power),
        "evidence": attempt.evidence,
        "stage_of_death": (attempt.evidence or {}).get("stage"),
        "finalised": attempt.finalised,
        "placement": placement or None,
        "outcome": str(attempt.outcome) if attempt.outcome else None,
        "message": attempt.message,
        "hint": attempt.hint,
        "host_state": attempt.host_state,
        "measured": attempt.measured,
        "checks": list(attempt.checks),
    }


def _audit_summary(audited: Mapping[str, Any]) -> dict[str, Any]:
    """One load of an attempt as it was judged; its placement stays in the journal."""
    placement = audited.get("placement") or {}
    kept = ("bytes_total", "bytes_in_cma", "bytes_to_copy", "bytes_to_hash", "kernel_misaligned")
    return {
        "number": audited.get("number"),
        "when": audited.get("when"),
        "repair": audited.get("repair"),
        **{name: placement.get(name) for name in kept},
        **(audited.get("audit") or {}),
    }


def booted_attempt(host: HostRecord) -> AttemptRecord | None:
    """The last attempt that came back with its nonce, whether or not its checks passed."""
    back = [a for a in host.attempts if a.outcome in (Outcome.BOOTED, Outcome.CORRUPTED) or a.measured]
    return back[-1] if back else None


def verdict(attempt: AttemptRecord | None) -> str | None:
    """fail where a check failed, else inconclusive where one was, else pass; None without checks."""
    if attempt is None or not attempt.checks:
        return None
    verdicts = {str(check.get("verdict")) for check in attempt.checks}
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")


def ladder_text(host: HostRecord) -> str:
    """What was tried, in order: "cma: fell_back → no_cma: booted", "cma, repaired (spacer): booted"."""
    return " → ".join(f"{a.path}{_repaired(a)}: {a.outcome or '…'}" for a in host.attempts) or "–"


def _repaired(attempt: AttemptRecord) -> str:
    """How the image that was jumped to had been repaired; empty where it had not been."""
    repair = (attempt.loaded or {}).get("repair")
    if not repair:
        return ""
    spacers = repair.get("spacers", 0)
    how = ["spacer" if spacers == 1 else f"{spacers} spacers"] if spacers else []
    how += ["padding"] if repair.get("padded") else []
    return f", repaired ({' and '.join(how)})"


def figure_text(measured: Mapping[str, Any] | None, name: str) -> str:
    """One figure for people, or why it is not there."""
    figure = (measured or {}).get(name)
    return str(figure.get("text", "")) if isinstance(figure, Mapping) else ""


def risk_lines(host: HostRecord) -> list[str]:
    """What the image that was booted was exposed to: nothing went wrong, and yet it is to be known."""
    booted = booted_attempt(host)
    hazards = ((booted.loaded or {}).get("audit") or {}).get("hazards") or () if booted else ()
    return [f"{host.host}: risk taken: {hazard['text']}" for hazard in hazards if hazard["weight"] == "risk"]


def trouble_lines(host: HostRecord) -> list[str]:
    """What went wrong on a host, attempt by attempt, whether its state is known, and what to do next."""
    lines = []
    for attempt in host.attempts:
        if attempt.outcome in (None, Outcome.BOOTED):
            continue
        unknown = " (the host's state is not known)" if attempt.host_state == "unknown" else ""
        lines.append(
            f"{host.host}: attempt {attempt.number} ({attempt.path}) {attempt.outcome}: "
            f"{attempt.message}{unknown}"
        )
    if host.phase in SPENT and not host.attempts:
        lines.append(f"{host.host}: {host.phase}: {host.reason}")
    if host.hint:
        lines.append(f"{host.host}: hint: {host.hint}")
    return lines


def inconclusive_hosts(hosts: Sequence[HostRecord]) -> list[str]:
    """Hosts on the target of which at least one check could not tell."""
    return [
        host.host
        for host in hosts
        if host.phase is Phase.DONE and verdict(booted_attempt(host)) == "inconclusive"
    ]
