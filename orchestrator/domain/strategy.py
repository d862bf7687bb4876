"""How a fleet is cut into waves. (The failure budget's arithmetic is `FailureBudget.allows`.)"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.domain.playbook import WaveSize


def waves(hosts: Sequence[str], sizes: Sequence[WaveSize]) -> list[list[str]]:
    """`hosts` in their order, cut where each cumulative size ends; a percentage rounds up, no wave is empty.

    A size that adds no host to those before it makes no wave; hosts beyond the last size are in none
    (a playbook says so with `partial: true`).
    """
    cut: list[list[str]] = []
    done = 0
    for size in sizes:
        end = min(_hosts_done(size, len(hosts)), len(hosts))
        if end > done:
            cut.append(list(hosts[done:end]))
            done = end
    return cut


def _hosts_done(size: WaveSize, fleet: int) -> int:
    """How many of `fleet` hosts are done when a wave of this size ends."""
    if size.count is not None:
        return size.count
    # The subtraction keeps 64.4 % of 250 at 161, where binary fractions say a little more.
    return math.ceil(fleet * (size.percent or 0) / 100 - 1e-9)
