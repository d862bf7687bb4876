"""What every power driver promises, asked of each: a real QEMU, a user's script, a BMC behind a client."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.inventory import Host
from orchestrator.domain.power import CommandPower, Power, QmpPower, Secret
from tests.support import bmc, qemu
from tests.support.machine import why_qemu_cannot_run
from workers.deadline import Deadline
from workers.power import base
from workers.power.base import PowerDriver
from workers.power.wiring import power_driver

PASSWORD = "correct horse/battery+staple"
GENEROUS_S = 120.0


class Bench(Protocol):
    """A host with power control, and hands that change both from outside."""

    driver: PowerDriver

    def cycles(self) -> int: ...
    def switch_off(self) -> None: ...
    def be_mute(self) -> None: ...
    def refuse(self) -> None: ...
    def die(self) -> None: ...


def driver_of(power: Power) -> PowerDriver:
    driver = power_driver(Host(name="web1", address="192.0.2.1", power=power))
    assert driver is not None
    return driver


class QemuBench:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.folder = (
            folder / ("deep" * 20) / ("deeper" * 12)
        )  # far beyond the 107 bytes of a socket's address
        self.start("on")

    def start(self, name: str, *arguments: str, disk: bytes | None = None) -> None:
        self.machine = self.stack.enter_context(qemu.machine(self.folder / name, *arguments, disk=disk))
        assert len(str(self.machine.monitor)) > 107
        self.driver = driver_of(QmpPower(kind="qmp", socket=str(self.machine.monitor)))

    def cycles(self) -> int:
        return self.machine.resets

    def switch_off(self) -> None:
        self.start("off", "-no-shutdown", disk=qemu.POWER_OFF)
        self.machine.wait_for_status("shutdown")

    def be_mute(self) -> None:
        self.machine.freeze()

    def refuse(self) -> None:
        self.start("incoming", "-incoming", "defer")

    def die(self) -> None:
        self.machine.kill()


class ScriptBench:
    """A shell script that keeps the power's state in a file and counts in another."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.script = folder / "rack"
        self.write("")
        (folder / "state").write_text("on")
        (folder / "count").write_text("")
        self.set_up(GENEROUS_S)

    def set_up(self, timeout: float) -> None:
        words = str(self.script)
        power = CommandPower(kind="command", run=(words, "cycle"), status=(words, "status"), timeout=timeout)
        self.driver = driver_of(power)

    def write(self, first: str) -> None:
        self.script.write_text(
            f"#!/bin/sh\n{first}\ncd '{self.folder}'\n"
            '[ "$1" = status ] || { echo x >> count; echo on > state; }\ncat state\n'
        )
        self.script.chmod(0o755)

    def cycles(self) -> int:
        return (self.folder / "count").read_text().count("x")

    def switch_off(self) -> None:
        (self.folder / "state").write_text("off")

    def be_mute(self) -> None:
        self.write("sleep 1000 & sleep 1000")
        self.set_up(2)

    def refuse(self) -> None:
        self.write("echo 'no such outlet' >&2; exit 7")

    def die(self) -> None:
        self.script.unlink()


class BmcBench:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.bmc = stack.enter_context(bmc.running(PASSWORD))
        self.secret = folder / "password"
        self.secret.write_text(PASSWORD + "\n")
        self.secret.chmod(0o600)
        client = (sys.executable, bmc.__file__)
        power = CommandPower(
            kind="command",
            run=(*client, "cycle", self.bmc.url),
            status=(*client, "status", self.bmc.url),
            timeout=GENEROUS_S,
            secrets={"BMC_PASSWORD": Secret(file=str(self.secret))},
        )
        self.power = power
        self.driver = driver_of(power)

    def cycles(self) -> int:
        return self.bmc.cycles

    def switch_off(self) -> None:
        self.bmc.on = False

    def be_mute(self) -> None:
        self.bmc.mood = bmc.Mood.MUTE
        self.driver = driver_of(self.power.model_copy(update={"timeout": 3.0}))

    def refuse(self) -> None:
        self.bmc.mood = bmc.Mood.SURLY

    def die(self) -> None:
        self.secret.unlink()


BENCHES: list[Callable[[Path, ExitStack], Bench]] = [QemuBench, ScriptBench, BmcBench]


@pytest.fixture(params=BENCHES, ids=lambda bench: bench.__name__)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param is QemuBench and (why := why_qemu_cannot_run()):
        pytest.skip(why)
    with ExitStack() as stack:
        yield request.param(tmp_path, stack)


def soon() -> Deadline:
    return Deadline.after(GENEROUS_S)


def failed(call: Callable[[Deadline], object], deadline: Deadline | None = None) -> PowerFailed:
    with pytest.raises(PowerFailed) as caught:
        call(deadline or soon())
    error = caught.value
    assert (error.host, error.step) == ("web1", base.STEP)
    assert error.hint
    assert re.fullmatch(r"[\x20-\x7e]{1,600}", str(error)), "one line that a terminal can show"
    assert PASSWORD not in str(error) + error.hint
    assert error.__cause__ is None, "a cause would show what the message hides"
    return error


def test_asking_changes_nothing(bench: Bench) -> None:
    assert bench.driver.status(soon()).power is base.Power.ON
    assert bench.driver.status(soon()).text
    assert bench.cycles() == 0


def test_a_cycle_is_one_cycle(bench: Bench) -> None:
    result = bench.driver.cycle(soon())
    assert bench.cycles() == 1
    assert result.text
    assert result.kind in ("qmp", "command")
    bench.driver.cycle(soon())
    assert bench.cycles() == 2
    assert bench.driver.status(soon()).power is base.Power.ON


def test_a_host_that_is_off_comes_on(bench: Bench) -> None:
    bench.switch_off()
    assert bench.driver.status(soon()).power is base.Power.OFF
    before = bench.cycles()
    bench.driver.cycle(soon())
    assert bench.cycles() == before + 1
    if isinstance(bench, QemuBench):
        bench.machine.wait_for_shutdowns(2)  # its boot sector ran, and switched it off again
    else:
        assert bench.driver.status(soon()).power is base.Power.ON


def test_control_that_refuses(bench: Bench) -> None:
    bench.refuse()
    assert failed(bench.driver.cycle).code in ("refused", "exit_status")
    assert bench.cycles() == 0


def test_control_that_hangs(bench: Bench) -> None:
    bench.be_mute()
    for call in (bench.driver.cycle, bench.driver.status):
        assert failed(call, Deadline.after(4)).code == "timeout"
    if isinstance(bench, QemuBench):
        bench.machine.process.send_signal(signal.SIGCONT)
        assert bench.cycles() == 0


def test_control_that_is_gone(bench: Bench) -> None:
    bench.die()
    for call in (bench.driver.cycle, bench.driver.status):
        assert failed(call).code in ("no_monitor", "no_command", "secret")


def test_with_no_time_left_nothing_is_done(bench: Bench) -> None:
    assert failed(bench.driver.cycle, Deadline.after(-1)).code == "timeout"
    assert bench.cycles() == 0


def test_no_power_no_driver() -> None:
    assert power_driver(Host(name="a", address="a")) is None
