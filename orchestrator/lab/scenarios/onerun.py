"""One scenario from its first boot to its evidence: lab, rollouts beside their faults, judgement, end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from orchestrator.domain.errors import JournalError, KexecFleetError, LabError
from orchestrator.journal.store import Journal
from orchestrator.lab import console
from orchestrator.lab import progress as say
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.kernels import LabKernel
from orchestrator.lab.scenarios import expect, observed, playbook, process
from orchestrator.lab.scenarios.context import FaultContext, FaultLog, Interrupted, JournalWatch, TargetFiles
from orchestrator.lab.scenarios.faults import make_fault
from orchestrator.lab.scenarios.guest import Guest
from orchestrator.lab.scenarios.result import ScenarioResult, Verdict
from orchestrator.lab.scenarios.spec import Run, Scenario
from orchestrator.lab.scenarios.witness import DigestWitness
from orchestrator.lab.spec import HostSpec, LabOptions
from orchestrator.lab.vm import Vm
from orchestrator.lab.waiting import wait_until_up

HOST = "host1"
BOOT_SECONDS = 900.0
THREAD_SECONDS = 120.0
NONCE_WORD = "kexec_fleet.nonce="


@dataclass
class OneScenario:
    """One scenario on one VM. `folder` keeps the evidence."""

    scenario: Scenario
    kernel_spec: str
    kernel: LabKernel
    target_spec: str
    folder: Path
    lab: str  # the lab's name
    stop: threading.Event
    progress: say.Progress = say.silent
    remembered: dict[str, Any] = field(default_factory=dict)

    def run(self) -> ScenarioResult:
        """All runs of the scenario, until one is not as expected. Never raises a KexecFleetError."""
        began = time.monotonic()
        result = ScenarioResult(name=self.scenario.name, verdict=Verdict.ERROR, evidence=str(self.folder))
        fleet = LabFleet.open(self.lab)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            result = self._run(fleet, result)
        except (KexecFleetError, OSError) as error:
            hint = f" ({error.hint})" if isinstance(error, KexecFleetError) and error.hint else ""
            result = replace(result, verdict=Verdict.ERROR, why=f"{error}{hint}")
        finally:
            self._keep(fleet)
            fleet.down()
        return replace(result, seconds=time.monotonic() - began)

    def _run(self, fleet: LabFleet, result: ScenarioResult) -> ScenarioResult:
        machine = self.scenario.vm
        options = LabOptions(
            memory=machine.memory,
            cma=machine.cma,
            cpus=machine.cpus,
            init=machine.init,
            target=self.target_spec,
            initrd_pad=machine.initrd_pad,
            watchdog=machine.watchdog,
            shared_memory=machine.shared_memory,
            append=" ".join(machine.append),
            boot_seconds=BOOT_SECONDS,
        )
        say.step(self.progress, f"booting {self.kernel.release}", self.scenario.name)
        fleet.up([HostSpec(HOST, self.kernel_spec)], options)
        result = replace(result, kernel=self.kernel.release, target=fleet.target.release)
        steps = self.scenario.steps
        for number, step in enumerate(steps, 1):
            if self.stop.is_set():
                raise LabError("interrupted")
            if number > 1:
                self._boot_again(fleet)
            name = step.name or (f"run {number}" if len(steps) > 1 else "")
            say.step(self.progress, f"rollout {name}".strip(), self.scenario.name)
            result = self._judged(fleet, step, name, number, result)
            if result.verdict is not Verdict.PASSED:
                return result
        return result

    def _boot_again(self, fleet: LabFleet) -> None:
        """Every run begins on the firmware's kernel."""
        vm = fleet.vm(HOST)
        vm.kill()
        vm.start()
        wait_until_up([vm], fleet.paths, BOOT_SECONDS)

    def _judged(
        self, fleet: LabFleet, step: Run, name: str, number: int, result: ScenarioResult
    ) -> ScenarioResult:
        """The result with this run in it."""
        folder = self.folder / f"run-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        seen, trouble = RunOnce(self, fleet, step, folder).go()
        judgement = expect.judge(step.expect, seen)
        before = f"{name}: " if name else ""
        why = trouble or "; ".join(judgement.differences)
        verdict = Verdict.ERROR if trouble else Verdict.FAILED if judgement.differences else Verdict.PASSED
        record = {
            "name": name,
            "expected": judgement.expected,
            "observed": expect.describe_observed(seen),
            "differences": list(judgement.differences),
            "trouble": trouble,
            "facts": seen.as_dict(),
        }
        return replace(
            result,
            verdict=verdict,
            why=f"{before}{why}" if why else "",
            expected="; ".join(filter(None, (result.expected, f"{before}{judgement.expected}"))),
            observed="; ".join(filter(None, (result.observed, f"{before}{record['observed']}"))),
            runs=(*result.runs, record),
        )

    def _keep(self, fleet: LabFleet) -> None:
        """What the VM leaves: console and QEMU's words. Disks and keys go with the lab."""
        folder = fleet.paths.vm(HOST)
        for pattern in ("console.log*", "qemu.log"):
            for path in folder.glob(pattern):
                shutil.copy2(path, self.folder / path.name)
        if fleet.paths.state.exists():
            shutil.copy2(fleet.paths.state, self.folder / "lab.json")


@dataclass
class RunOnce:
    """One rollout with its fault beside it."""

    scenario: OneScenario
    fleet: LabFleet
    step: Run
    folder: Path

    def go(self) -> tuple[observed.Observed, str]:
        """What was observed, and why it proves nothing (empty where it does)."""
        ended = threading.Event()
        fault = make_fault(self.step.fault)
        vm = self.fleet.vm(HOST)
        target = self.fleet.target
        files = fault.image(TargetFiles(Path(target.image), Path(target.initrd)), self.folder)
        watch = JournalWatch(self.folder / "journal.sqlite", ended.is_set)
        context = FaultContext(
            vm, Guest(self.fleet.paths, HOST, vm.ssh_port), watch, FaultLog(self.folder / "fault.log"),
            files, ended, self.scenario.remembered,
        )  # fmt: skip
        book, inventory = self.folder / "playbook.yaml", self.folder / "inventory.yaml"
        scenario = self.scenario.scenario
        playbook.write_playbook(book, scenario.name, files, self.step.policy, fault.words())
        playbook.write_inventory(inventory, self.fleet.inventory_path, scenario.vm.power)
        fault.before(context)
        console_before = len(console.read_all(vm.console_path))
        witness = DigestWitness()
        troubles: list[str] = []
        threads = [_Beside(lambda: fault.during(context), context, troubles)]
        if vm.config.shared_memory:
            threads.append(_Beside(lambda: witness.watch(context), context, troubles))
        for thread in threads:
            thread.start()
        try:
            finished = process.run_rollout(
                book, inventory, watch.path, self.folder, scenario.deadline, self.scenario.stop.is_set
            )
        finally:
            ended.set()
            for thread in threads:
                thread.join(THREAD_SECONDS)
            watch.close()
        events, texts = _events(watch.path)
        seen = observed.observe(
            finished.exit_code, finished.summary, events, texts, witness.seen,
            can_cma=self.scenario.kernel.capabilities.cma,
            leaked=context.findings.get("leaked"),
            runs=_running(context),
            console=console.read_all(vm.console_path)[console_before:],
            fault=context.findings,
        )  # fmt: skip
        if not finished.why and not troubles and not self.scenario.stop.is_set():
            fault.after(context)
        trouble = finished.why or "; ".join(troubles)
        if not trouble and not context.findings.get("done"):
            trouble = f"the fault {self.step.fault.kind} did not strike: see {context.log.path}"
        return seen, trouble


class _Beside(threading.Thread):
    """Something that goes on beside the rollout; what goes wrong there is told, not lost."""

    def __init__(self, work: Callable[[], None], context: FaultContext, troubles: list[str]) -> None:
        super().__init__(daemon=True)
        self._work, self._context, self._troubles = work, context, troubles

    def run(self) -> None:
        try:
            self._work()
        except Interrupted:
            self._context.log.write("the moment did not come")
        except (KexecFleetError, OSError, ValueError) as error:
            self._context.log.write(f"failed: {error}")
            self._troubles.append(f"the fault could not be made: {error}")


def _events(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The journal's events as JSON values and as texts; none where the rollout made no journal."""
    try:
        journal = Journal.open(path, create=False)
    except JournalError:
        return [], []
    try:
        found = [event for rollout in journal.rollouts() for event in journal.events(rollout.id)]
    finally:
        journal.close()
    return [event.model_dump(mode="json") for event in found], [event.model_dump_json() for event in found]


def _running(context: FaultContext) -> str:
    """Which kernel answers at the end, as its own command line tells."""
    if not _answers(context.vm):
        return "nothing"
    try:
        line = context.guest.run("cat /proc/cmdline")
    except LabError:
        return "nothing"
    return "target" if NONCE_WORD in line else "source"


def _answers(vm: Vm) -> bool:
    return vm.running and vm.ask_service(5.0) is not None


def dump_scenario(scenario: Scenario, path: Path) -> None:
    """The scenario as it was understood, with every default."""
    data = playbook.plain(scenario.model_dump(mode="json", exclude_none=True))
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
