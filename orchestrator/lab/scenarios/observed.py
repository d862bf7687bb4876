"""What one rollout of a scenario showed, as values: from its JSON, its journal, its console and its fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.facts import parse_facts
from orchestrator.lab.scenarios.spec import InCma


@dataclass(frozen=True)
class ObservedAttempt:
    """One attempt. `record` is its whole JSON."""

    path: str
    outcome: str
    in_cma: InCma
    kernel_misaligned: bool | None
    digest_stored: bool | None
    stage: str | None
    message: str
    record: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For result files; the whole record is in the rollout's JSON."""
        return {key: value for key, value in vars(self).items() if key != "record"}


@dataclass(frozen=True)
class Observed:
    """One rollout over the scenario's host. None: not seen."""

    exit_code: int | None
    phase: str = ""
    reason: str = ""
    can_cma: bool | None = None
    knows_no_cma: bool | None = None
    has_cma_area: bool | None = None
    init_on_alloc: bool | None = None
    leaked: bool | None = None
    runs: str = ""  # target, source, nothing, or a release
    attempts: tuple[ObservedAttempt, ...] = ()
    console: str = ""
    journal: tuple[str, ...] = ()
    fault: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """What fits into a result file."""
        data = {key: value for key, value in vars(self).items() if key not in ("console", "journal")}
        return {**data, "fault": dict(self.fault), "attempts": [a.as_dict() for a in self.attempts]}


def observe_attempt(record: Mapping[str, Any], digest_stored: bool | None) -> ObservedAttempt:
    """An attempt of the rollout's JSON; `digest_stored` comes from the witness."""
    return ObservedAttempt(
        path=str(record.get("path")),
        outcome=str(record.get("outcome")),
        in_cma=_in_cma(record),
        kernel_misaligned=record.get("kernel_misaligned"),
        digest_stored=digest_stored,
        stage=record.get("stage_of_death"),
        message=str(record.get("message") or ""),
        record=record,
    )


def _in_cma(record: Mapping[str, Any]) -> InCma:
    placement = record.get("placement") or {}
    total, inside = placement.get("bytes_total"), placement.get("bytes_in_cma")
    if not total or inside is None:
        return InCma.UNKNOWN
    return InCma.NONE if inside == 0 else InCma.ALL if inside == total else InCma.PART


def host_facts(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts that a case may ask for, from the first FACTS event's raw answer."""
    if raw is None:
        return {"knows_no_cma": None, "has_cma_area": None, "init_on_alloc": None}
    facts = parse_facts(dict(raw))
    return {
        "knows_no_cma": facts.knows_no_cma,
        "has_cma_area": facts.has_cma_area,
        "init_on_alloc": facts.init_on_alloc,
    }


def observe(
    exit_code: int | None,
    summary: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    journal: Sequence[str],
    digests: Mapping[int, bool],
    **rest: Any,
) -> Observed:
    """Everything together. `events` are the journal's as JSON values, `journal` the same as texts; `digests`
    is the witness's word by attempt number; `rest` are fields of Observed."""
    hosts = summary.get("hosts") or [{}]
    host = hosts[0]
    raw = next((event["data"].get("raw") for event in events if event.get("kind") == "facts"), None)
    attempts = tuple(observe_attempt(a, digests.get(a["number"])) for a in host.get("attempts", ()))
    return Observed(
        exit_code=exit_code,
        phase=str(host.get("phase", "")),
        reason=f"{host.get('reason', '')} {host.get('hint', '')}".strip(),
        attempts=attempts,
        journal=tuple(journal),
        **host_facts(raw),
        **rest,
    )
