"""Many scenarios: which are applicable, as many at once as memory and jobs allow, results in their order."""

from __future__ import annotations

import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.domain.errors import LabError
from orchestrator.lab import progress as say
from orchestrator.lab.agree import read_available_memory
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.scenarios import expect
from orchestrator.lab.scenarios.kernels import Kernels, NoSuchKernel
from orchestrator.lab.scenarios.onerun import OneScenario, dump_scenario
from orchestrator.lab.scenarios.result import ScenarioResult, Verdict
from orchestrator.lab.scenarios.spec import Scenario

MEMORY_FACTOR = 1.2
"""What a VM may cost beyond its RAM: QEMU itself, its disk's page cache, the rollout's process."""

JOIN_SECONDS = 300.0


def default_jobs() -> int:
    """One for each processor: an emulated guest keeps one busy."""
    return max(1, os.cpu_count() or 1)


@dataclass
class Schedule:
    """Which scenario may start next. Pure: memory in bytes goes in, indexes come out.

    First come, first served, except that a smaller one may go before one that does not fit at the moment.
    """

    wanted: Sequence[int]  # bytes of each, in order
    memory: int
    jobs: int
    waiting: list[int] = field(init=False)
    running: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.wanted)))

    def impossible(self) -> list[int]:
        """Those that would not fit alone; they are taken off the list."""
        out = [index for index in self.waiting if self.wanted[index] > self.memory]
        self.waiting = [index for index in self.waiting if index not in out]
        return out

    def next(self) -> int | None:
        """The next to start now; it counts as running from here on."""
        if len(self.running) >= self.jobs:
            return None
        free = self.memory - sum(self.wanted[index] for index in self.running)
        for index in self.waiting:
            if self.wanted[index] <= free:
                self.waiting.remove(index)
                self.running.add(index)
                return index
        return None

    def ended(self, index: int) -> None:
        self.running.discard(index)

    @property
    def over(self) -> bool:
        return not self.waiting and not self.running


def memory_of(scenario: Scenario) -> int:
    """Bytes of this machine's memory that the scenario may take."""
    return int(scenario.vm.memory * MEMORY_FACTOR)


@dataclass
class Runner:
    """`observe` is called with each result as it comes, from the calling thread."""

    kernels: Kernels
    keep: Path
    jobs: int
    progress: say.Progress = say.silent
    observe: Callable[[ScenarioResult], None] = lambda result: None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, scenarios: Sequence[Scenario]) -> list[ScenarioResult]:
        """All of them, in the given order. KeyboardInterrupt takes every VM down before it goes on."""
        results: dict[int, ScenarioResult] = {}
        made = [self._make(index, scenario) for index, scenario in enumerate(scenarios)]
        todo: list[tuple[int, OneScenario]] = []
        for index, item in enumerate(made):
            if isinstance(item, ScenarioResult):
                results[index] = item
                self.observe(item)
            else:
                todo.append((index, item))
        schedule = Schedule(
            [memory_of(item.scenario) for _, item in todo], read_available_memory(), self.jobs
        )
        for position in schedule.impossible():
            index, item = todo[position]
            results[index] = _too_big(item, schedule.memory)
            self.observe(results[index])
        self._drive(schedule, todo, results)
        return [results[index] for index in sorted(results)]

    def _make(self, index: int, scenario: Scenario) -> OneScenario | ScenarioResult:
        """What is to be run, or why it is not."""
        needs = scenario.needs
        try:
            spec, kernel = self.kernels.of(str(scenario.vm.kernel))
        except NoSuchKernel as error:
            return ScenarioResult(name=scenario.name, verdict=Verdict.NOT_APPLICABLE, why=str(error))
        able = kernel.capabilities
        why = expect.why_not_applicable(
            needs,
            {"can_cma": able.cma, "knows_no_cma": able.no_cma_flag, "kexec_file": able.kexec_file},
        )
        if why:
            return ScenarioResult(
                name=scenario.name, verdict=Verdict.NOT_APPLICABLE, why=why, kernel=kernel.release,
                target=self.kernels.target.release,
            )  # fmt: skip
        folder = self.keep / scenario.name
        folder.mkdir(parents=True, exist_ok=True)
        dump_scenario(scenario, folder / "scenario.yaml")
        lab = f"test-{secrets.token_hex(4)}-{index}"
        target = self.kernels.target_spec
        return OneScenario(scenario, spec, kernel, target, folder, lab, self.stop, self.progress)

    def _drive(
        self, schedule: Schedule, todo: list[tuple[int, OneScenario]], results: dict[int, ScenarioResult]
    ) -> None:
        ended: queue.SimpleQueue[tuple[int, ScenarioResult | BaseException]] = queue.SimpleQueue()
        threads: dict[int, threading.Thread] = {}

        def work(position: int) -> None:
            try:
                ended.put((position, todo[position][1].run()))
            except BaseException as error:
                ended.put((position, error))

        try:
            while not schedule.over:
                while (position := schedule.next()) is not None:
                    thread = threading.Thread(target=work, args=(position,), daemon=True)
                    threads[position] = thread
                    thread.start()
                position, outcome = ended.get()
                schedule.ended(position)
                if isinstance(outcome, BaseException):
                    raise outcome
                results[todo[position][0]] = outcome
                self.observe(outcome)
        except BaseException:
            self.stop.set()
            self._tear_down([todo[position][1] for position in schedule.running])
            for thread in threads.values():
                thread.join(JOIN_SECONDS)
            raise

    def _tear_down(self, running: Sequence[OneScenario]) -> None:
        """Their threads wait for guests: without the VMs they end."""
        for item in running:
            try:
                LabFleet.open(item.lab).down()
            except (LabError, OSError) as error:
                say.notice(self.progress, f"the lab {item.lab} could not be taken down: {error}")


def _too_big(item: OneScenario, memory: int) -> ScenarioResult:
    wanted = memory_of(item.scenario)
    return ScenarioResult(
        name=item.scenario.name,
        verdict=Verdict.ERROR,
        why=f"needs {wanted >> 20} MiB of memory, {memory >> 20} MiB are available",
        kernel=item.kernel.release,
    )
