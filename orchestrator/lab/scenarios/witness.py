"""Watches what each load leaves in the guest's RAM, beside the rollout and independent of what it reports."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from orchestrator.domain.errors import LabError
from orchestrator.domain.rollout import Phase
from orchestrator.lab.scenarios import ram
from orchestrator.lab.scenarios.context import POLL_SECONDS, FaultContext

LOADED = (Phase.LOADED, Phase.ARMED, Phase.JUMPING)


@dataclass
class DigestWitness:
    """By attempt: whether purgatory is told to check the image. Absent: it could not be seen."""

    seen: dict[int, bool] = field(default_factory=dict)

    def watch(self, context: FaultContext) -> None:
        """Until the rollout ends. A load is looked at again while it is there: a repair loads anew."""
        while not context.stop.is_set():
            record = context.journal.record()
            if record is not None and record.attempts and record.phase in LOADED:
                attempt = record.attempts[-1]
                placement = (attempt.loaded or {}).get("placement") or {}
                try:
                    with ram.opened(context.vm) as memory:
                        found = ram.digest_stored(memory, placement.get("segments") or ())
                except LabError:
                    found = None
                if found is not None and self.seen.get(attempt.number) is not found:
                    self.seen[attempt.number] = found
                    context.log.write(f"attempt {attempt.number}: purgatory checks the image: {found}")
            time.sleep(POLL_SECONDS)
