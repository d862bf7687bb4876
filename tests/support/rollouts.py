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
from collections.abc import Callable, Mapping
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
from orchestrator.lab.waiting import wait_until_up

PATIENCE = 900.0
"""Seconds: the deadline of any wait on a busy machine without KVM."""

ROLLOUT_SECONDS = 2 * PATIENCE
"""The deadline of a whole rollout: a host that stays silent is waited for before its power is cycled."""

PLAYBOOK = """\
name: {name}
hosts: all
kernel: {{on_controller: {{image: "${{lab_target_image}}", initrd: "${{lab_target_initrd}}"}}}}
cma: {cma}
attempts: 3
waves: [100%]
even_if_current: true
failure_budget: 0
deadlines: {{connect: 5m, facts: 3m, stage: 10m, load: 10m, jump: 2m, return: 10m, verify: 10m}}
"""

CONSOLE_LINES = 15
"""How much of a console a failed test shows for a host that is not done."""

ANSWER_SECONDS = 20.0
"""How long a guest may take to tell its boot_id on a busy machine before it is taken for silent."""

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
        try:
            out, _ = process.communicate(timeout=ROLLOUT_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end in {ROLLOUT_SECONDS:g} s: {self.log_of(process)}")
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

    def wait_phase(
        self, process: subprocess.Popen[str], name: str, *phases: Phase, rollout_above: int = 0
    ) -> HostRecord:
        """Wait until the host stands in one of these phases, in a rollout newer than the first so many.

        Fails at once where the process that drives the rollout has ended: no phase comes any more.
        """
        found: list[HostRecord] = []
        wanted = " or ".join(phases)

        def there() -> bool:
            ended = process.poll() is not None  # asked first: what it wrote last is seen below
            record = self.host(name) if self.count() > rollout_above else None
            if record is not None and record.phase in phases:
                found.append(record)
            if ended and not found:
                where = f"{name} is {record.phase}: {record.reason}" if record else f"{name} has no record"
                pytest.fail(
                    f"{name} was never seen {wanted}: exit {process.returncode}, {where}\n"
                    f"{self.log_of(process)}"
                )
            return bool(found)

        wait_until(f"{name} {wanted}", there, interval=0.02)
        return found[0]

    def count(self) -> int:
        return len(self.journal.rollouts()) if self.journal_path.exists() else 0

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)

    def kill_all(self) -> None:
        """End every command that still runs: what a failed test has left must not drive a host any more."""
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def bring_back(self) -> None:
        """Power-cycle the hosts that do not answer, so that a failed test does not fail those after it."""
        silent = [vm for vm in self.fleet.vms() if vm.ask_service(ANSWER_SECONDS) is None]
        for vm in silent:
            print(f"{vm.host}: does not answer; bringing it back")
            if vm.running:
                vm.power_cycle()
            else:
                vm.start()
        wait_until_up(silent, self.fleet.paths, PATIENCE)

    def power_cycle(self, name: str) -> None:
        """Press the host's reset button, and wait until another boot of it answers and lets us in."""
        vm = self.fleet.vm(name)
        before = vm.ask_service(ANSWER_SECONDS)
        vm.power_cycle()
        wait_until(f"{name} back from its reset", lambda: vm.ask_service() not in (None, before))
        wait_until_up([vm], self.fleet.paths, PATIENCE)

    def assert_exit(self, result: Mapping[str, Any], wanted: int = 0) -> None:
        """The rollout ended with that exit code; else the test fails with the rollout's story."""
        if result["exit_code"] != wanted:
            pytest.fail(f"exit {result['exit_code']}, not {wanted}\n{self.story(result)}", pytrace=False)

    def story(self, result: Mapping[str, Any]) -> str:
        """What became of each host, for people; pytest cuts the repr of a dict short, and no string."""
        text = [f"rollout {result.get('rollout')}: {result.get('status')}: {result.get('reason')}"]
        text += [str(error) for error in result.get("errors", ())]
        for host in result.get("hosts", ()):
            text.append(f"{host['host']}: {host['phase']}: {host['reason']}")
            for attempt in host["attempts"]:
                stage = f" [{attempt['stage_of_death']}]" if attempt["stage_of_death"] else ""
                told = f"{attempt['path']}: {attempt['outcome']}{stage}: {attempt['message']}"
                text.append(f"  attempt {attempt['number']} {told}")
            if host["phase"] != Phase.DONE:
                path = self.fleet.vm(host["host"]).console_path
                text += [f"  | {line}" for line in console.tail(path, CONSOLE_LINES)]
        return "\n".join(text)

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


def host_of(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A host's part of a rollout's JSON."""
    return dict(next(host for host in summary["hosts"] if host["host"] == name))


def outcomes(summary: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """(path, outcome) of each attempt of a host."""
    return [(attempt["path"], attempt["outcome"]) for attempt in host_of(summary, name)["attempts"]]


def phase_of(summary: Mapping[str, Any], name: str) -> str:
    return str(host_of(summary, name)["phase"])
