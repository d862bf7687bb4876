"""What a fault works with: the VM, a way into the guest, the rollout's journal, and a log of what it did."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import JournalError, LabError
from orchestrator.domain.events import HostRecord
from orchestrator.domain.rollout import TERMINAL, Phase
from orchestrator.journal.store import Journal
from orchestrator.lab import console
from orchestrator.lab.scenarios.guest import Guest
from orchestrator.lab.vm import Vm

POLL_SECONDS = 0.05
DONE_MARK = "kexec-fleet-lab: fault done: "
"""What guest/fault_watch.py writes to the console when it has struck."""


class Interrupted(Exception):
    """The scenario is to stop: the rollout ended, or the user asked."""


@dataclass(frozen=True)
class TargetFiles:
    """The kernel that the rollout moves to, on this machine."""

    image: Path
    initrd: Path


@dataclass
class FaultLog:
    """What the fault did and when, one line each, written through."""

    path: Path

    def write(self, text: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        with self.path.open("a", encoding="utf-8") as out:
            out.write(f"{stamp}Z {text}\n")


@dataclass
class JournalWatch:
    """Reads the rollout's journal while another process writes it."""

    path: Path
    stopping: Callable[[], bool]
    _journal: Journal | None = None

    def record(self) -> HostRecord | None:
        """The one host's record; None before the rollout has made it."""
        try:
            if self._journal is None:
                if not self.path.exists():
                    return None
                self._journal = Journal.open(self.path, create=False)
            rollouts = self._journal.rollouts()
            hosts = self._journal.hosts(rollouts[0].id) if rollouts else []
        except JournalError:
            return None  # it is being made, or is busy: asked again
        return hosts[0] if hosts else None

    def wait_phase(self, *phases: Phase, attempt: int = 0) -> HostRecord:
        """The record once the host stands in one of `phases` (in attempt `attempt`, where given).

        Raises Interrupted when the host has come to its end without, or the scenario stops.
        """
        while True:
            record = self.record()
            number = record.attempts[-1].number if record and record.attempts else 0
            if record is not None and record.phase in phases and attempt in (0, number):
                return record
            if self.stopping() or (record is not None and record.phase in TERMINAL):
                raise Interrupted
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


@dataclass
class FaultContext:
    """One run of one scenario."""

    vm: Vm
    guest: Guest
    journal: JournalWatch
    log: FaultLog
    target: TargetFiles
    stop: threading.Event  # the rollout has ended, or the scenario is to
    remembered: dict[str, Any]  # what one run of a scenario leaves to the next
    findings: dict[str, Any] = field(default_factory=dict)  # what the fault saw; `done`: it has struck

    def done(self, text: str, **told: Any) -> None:
        """The fault has struck. A run whose fault did not is not judged."""
        self.findings |= {"done": True, **told}
        self.log.write(f"done: {text}")

    def wait_console_mark(self) -> str:
        """What the guest's fault program said on the console when it struck. Raises Interrupted."""
        while True:
            text = console.read_all(self.vm.console_path)
            if DONE_MARK in text:
                return text.rpartition(DONE_MARK)[2].splitlines()[0]
            if self.stop.wait(0.5):
                # The console's last lines may still be on their way when the rollout has ended.
                time.sleep(1.0)
                text = console.read_all(self.vm.console_path)
                if DONE_MARK in text:
                    return text.rpartition(DONE_MARK)[2].splitlines()[0]
                raise Interrupted

    def available_pages(self) -> int | None:
        """Pages that the guest's CMA areas can still give (CONFIG_CMA_SYSFS); None where it does not tell."""
        try:
            text = self.guest.run("cat /sys/kernel/mm/cma/*/available_pages 2>/dev/null || true")
        except LabError:
            return None
        numbers = [int(line) for line in text.split() if line.isdigit()]
        return sum(numbers) if numbers else None
