"""Rollouts through the real command line over a real lab, and what they left in journal and consoles."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.events import EventKind, HostRecord
from orchestrator.domain.rollout import Phase
from orchestrator.journal.store import Journal
from orchestrator.lab import console
from orchestrator.lab.fleet import LabFleet

PATIENCE = 900.0
"""Seconds: the deadline of any wait on a busy machine without KVM."""

PLAYBOOK = """\
name: {name}
hosts: all
kernel: {{on_controller: {{image: "${{lab_target_image}}", initrd: "${{lab_target_initrd}}"}}}}
cma: {cma}
attempts: 3
waves: [100%]
even_if_current: true
failure_budget: 0
deadlines: {{connect: 3m, facts: 3m, stage: 10m, load: 10m, jump: 2m, return: 10m, verify: 10m}}
"""

_BOOTED = re.compile(r"Kernel command line: .*\bkexec_fleet\.nonce=([0-9a-f]+)")


@dataclass
class Rollouts:
    """One journal and one lab; every command is a process of its own."""

    fleet: LabFleet
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def journal_path(self) -> Path:
        return self.folder / "journal.sqlite"

    @cached_property
    def journal(self) -> Journal:
        return Journal.open(self.journal_path)

    def playbook(self, name: str, cma: str = "never") -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(PLAYBOOK.format(name=name, cma=cma))
        return path

    def start(self, *words: str, code: str = "", env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `kexec-fleet WORDS`; `code` runs first in its process."""
        program = f"import sys; {code or 'pass'}\nfrom orchestrator.cli.app import main\nmain()"
        log = (self.folder / f"process-{len(self.processes)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "KEXEC_FLEET_JOURNAL": str(self.journal_path), **(env or {})},
        )
        self.processes.append(process)
        return process

    def run_words(self, playbook: Path, *hosts: str) -> list[str]:
        words = ["rollout", "run", str(playbook), "-i", str(self.fleet.inventory_path), "--json"]
        return [*words, "--limit", " | ".join(hosts)] if hosts else words

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a command that prints JSON."""
        out, _ = process.communicate(timeout=PATIENCE)
        assert out, f"exit {process.returncode}: {self.log_of(process)}"
        value = json.loads(out)
        assert isinstance(value, dict)
        return {**value, "exit_code": process.returncode}

    def log_of(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"process-{self.processes.index(process)}.log").read_text()[-4000:]

    def resume(self) -> dict[str, Any]:
        return self.finish(self.start("rollout", "resume", "last", "--json"))

    def host(self, name: str) -> HostRecord | None:
        """The host's record in the newest rollout."""
        rollouts = self.journal.rollouts()
        if not rollouts:
            return None
        return next((host for host in self.journal.hosts(rollouts[0].id) if host.host == name), None)

    def wait_phase(self, name: str, *phases: Phase, rollout_above: int = 0) -> HostRecord:
        """Wait until the host stands in one of these phases, in a rollout newer than the first so many."""
        found: list[HostRecord] = []

        def there() -> bool:
            if not self.journal_path.exists() or len(self.journal.rollouts()) <= rollout_above:
                return False
            record = self.host(name)
            if record is not None and record.phase in phases:
                found.append(record)
            return bool(found)

        wait_until(f"{name} in {phases}", there, interval=0.02)
        return found[0]

    def count(self) -> int:
        return len(self.journal.rollouts()) if self.journal_path.exists() else 0

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)

    def boots(self, name: str) -> Counter[str]:
        """How often each nonce was booted with, counted on the host's console."""
        return Counter(_BOOTED.findall(console.read_all(self.fleet.vm(name).console_path)))

    def assert_no_nonce_booted_twice(self) -> None:
        """Promise 2: whatever crashed, no attempt jumped twice; and every boot was an attempt of ours."""
        known = {
            event.data["nonce"]: event.host
            for rollout in self.journal.rollouts()
            for event in self.journal.events(rollout.id)
            if event.kind is EventKind.ATTEMPT_STARTED
        }
        for vm in self.fleet.vms():
            boots = self.boots(vm.host)
            assert all(count == 1 for count in boots.values()), f"{vm.host}: {boots}"
            assert all(known.get(nonce) == vm.host for nonce in boots), f"{vm.host}: a nonce that is not ours"

    def on_host(self, name: str, command: str) -> str:
        """A command on the host, by the lab's own ssh."""
        done = subprocess.run(
            self.fleet.ssh_command(name, [command]), capture_output=True, text=True, timeout=180, check=False
        )
        return done.stdout


def wait_until(what: str, condition: Callable[[], bool], interval: float = 0.5) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}")
        time.sleep(interval)


def outcomes(summary: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """(path, outcome) of each attempt of a host."""
    host = next(host for host in summary["hosts"] if host["host"] == name)
    return [(attempt["path"], attempt["outcome"]) for attempt in host["attempts"]]


def phase_of(summary: dict[str, Any], name: str) -> str:
    return str(next(host["phase"] for host in summary["hosts"] if host["host"] == name))
