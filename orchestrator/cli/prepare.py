"""From files on disk to a rollout that may start: everything that can be refused without touching a host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.plan import check_command_line, choose_hosts
from orchestrator.domain.strategy import waves
from orchestrator.journal.spec import RolloutSpec
from orchestrator.loading.images import inspect_images
from orchestrator.loading.inventory import load_inventory
from orchestrator.loading.playbook import load_playbook


@dataclass(frozen=True)
class Prepared:
    """A rollout's spec and its waves of host names."""

    spec: RolloutSpec
    waves: list[list[str]]


def prepare(playbook: Path, inventory: Path, limit: str | None) -> Prepared:
    """Load, validate, select and cut into waves. Raises InputError; no host is touched."""
    hosts = load_inventory(inventory)
    plays = load_playbook(playbook, hosts)
    images = inspect_images(plays)
    check_command_line(plays, images)
    chosen = choose_hosts(plays, hosts, limit).hosts
    spec = RolloutSpec(playbook=plays, inventory=hosts, images=images, limit=limit)
    return Prepared(spec, waves(chosen, plays.waves))
