"""What a fault is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.lab.scenarios.context import FaultContext, TargetFiles


class Fault:
    """The base does nothing. `during` runs in a thread of its own beside the rollout and may wait there."""

    def image(self, target: TargetFiles, _folder: Path) -> TargetFiles:
        """The target that the rollout gets; variants are made in the folder."""
        return target

    def words(self) -> Sequence[str]:
        """Words for the new kernel's command line."""
        return ()

    def before(self, context: FaultContext) -> None:
        """On the running guest, before the rollout."""

    def during(self, context: FaultContext) -> None:
        """Beside the rollout. Raises Interrupted where its moment did not come."""

    def after(self, context: FaultContext) -> None:
        """Takes back what would be in the way of the scenario's next run."""
