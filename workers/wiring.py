"""Puts together what a drive works with: SSH, the agent's bundle, the prober."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from orchestrator.journal.store import Journal
from workers.agentbundle import bundle
from workers.connection.ssh import SshConnector
from workers.console import console_of
from workers.drive.context import Tools, never
from workers.outage import OutageProber
from workers.power.wiring import power_driver
from workers.probes import answers_within

PROBE_INTERVAL_SECONDS = 0.1
"""The outage's resolution: ten answers a second are no load even for an emulated host."""


def make_tools(journal: Journal, stopping: Callable[[], bool] = never) -> Tools:
    """The tools of this process."""
    return Tools(
        journal=journal,
        connector=SshConnector(),
        bundle=bundle(),
        answers=answers_within,
        power=power_driver,
        console=console_of,
        make_prober=partial(OutageProber, interval_s=PROBE_INTERVAL_SECONDS),
        stopping=stopping,
    )
