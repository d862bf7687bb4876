"""From files on disk to a rollout that may start: everything that can be refused without touching a host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli.plan import load_all
from orchestrator.domain.plan import choose_hosts
from orchestrator.domain.strategy import waves
from orchestrator.journal.spec import RolloutSpec


@dataclass(frozen=True)
class Prepared:
    """A rollout's spec and its waves of host names."""

    spec: RolloutSpec
    waves: list[list[str]]


def prepare(playbook: Path, inventory: Path, limit: str | None) -> Prepared:
    """Load, validate, select and cut into waves. Raises InputError; no host is touched."""
    loaded = load_all(playbook, inventory)
    chosen = choose_hosts(loaded.playbook, loaded.inventory, limit).hosts
    spec = RolloutSpec(
        playbook=loaded.playbook, inventory=loaded.inventory, images=loaded.images, limit=limit
    )
    return Prepared(spec, waves(chosen, loaded.playbook.waves))
