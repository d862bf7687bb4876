"""Waiting for guests: what is said when one fails, is taken down meanwhile, or nobody waits any more."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.errors import LabError
from orchestrator.lab import waiting
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.progress import ProgressEvent
from orchestrator.lab.spec import HostSpec, LabOptions
from orchestrator.lab.ssh import SshAnswer
from orchestrator.lab.state import LabState, Target, write_state
from orchestrator.lab.vm import Vm
from orchestrator.lab.waiting import wait_until_up
from tests.unit.test_lab_spec import vm_config

PATIENCE = 20.0


class FakeVm(Vm):
    """Runs, and never answers."""

    alive = True
    answer: str | None = None

    @property
    def running(self) -> bool:
        return self.alive

    def ask_service(self, seconds: float = 3.0) -> str | None:
        return self.answer


@pytest.fixture
def paths(tmp_path: Path) -> LabPaths:
    return LabPaths(tmp_path / "mine")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(waiting, "LOGIN_PAUSE", 0.02)


def make_vm(paths: LabPaths, host: str = "a") -> FakeVm:
    vm = FakeVm(vm_config(host), paths.vm(host))
    vm.folder.mkdir(parents=True)
    return vm


def later(action: Callable[[], object]) -> None:
    timer = threading.Timer(0.2, action)
    timer.daemon = True
    timer.start()


def take_down(paths: LabPaths, *vms: FakeVm) -> None:
    """As `lab down` does: it is said first, then QEMU ends, then the files go."""
    paths.going.touch()
    for vm in vms:
        vm.alive = False
    shutil.rmtree(paths.root)


@pytest.mark.parametrize("phase", ["boot", "login"])
def test_a_lab_that_is_taken_down_meanwhile_is_told_at_once(
    paths: LabPaths, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr("orchestrator.lab.ssh.call", lambda *_: SshAnswer(255, "", "refused"))
    vms = [make_vm(paths, host) for host in ("a", "b")]
    for vm in vms:
        vm.answer = "boot-id" if phase == "login" else None
    later(lambda: take_down(paths, *vms))
    started = time.monotonic()
    with pytest.raises(LabError, match="a: taken down while it was waited for; b: taken down") as caught:
        wait_until_up(vms, paths, 600.0)
    assert time.monotonic() - started < PATIENCE
    assert "lab down --name mine" in caught.value.hint


def test_a_qemu_that_ends_by_itself_is_not_taken_down(paths: LabPaths) -> None:
    vm = make_vm(paths)
    later(lambda: setattr(vm, "alive", False))
    with pytest.raises(LabError, match="a: QEMU ended while the guest was booting; its console is empty"):
        wait_until_up([vm], paths, 600.0)


def test_a_failure_is_one_line_and_the_console_comes_as_progress(paths: LabPaths) -> None:
    vm = make_vm(paths)
    vm.console_path.write_text("2026-01-01T00:00:00.000Z loading\n2026-01-01T00:00:01.000Z stuck here\n\n")
    (vm.folder / "qemu.log").write_text("qemu: odd\nqemu: very odd\n")
    events: list[ProgressEvent] = []
    with pytest.raises(LabError) as caught:
        wait_until_up([vm], paths, 0.01, events.append)
    assert caught.value.message == (
        "a: the guest did not answer in 0.01 s; QEMU said: qemu: odd | qemu: very odd; "
        "its console ends: stuck here"
    )
    assert "lab console a --name mine" in caught.value.hint
    assert "lab down --name mine" in caught.value.hint
    texts = [event.text for event in events]
    assert "console: loading" in texts and "QEMU said: qemu: very odd" in texts
    assert all("\n" not in text and event.host == "a" for text, event in zip(texts, events, strict=True))


def test_an_interrupt_does_not_wait_for_the_guests(paths: LabPaths) -> None:
    vm = make_vm(paths)
    # A shell's background job inherits an ignored SIGINT, and then Python installs no handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        later(lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            wait_until_up([vm], paths, 600.0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_all_that_answer_are_reported(paths: LabPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lab.ssh.call", lambda *_: SshAnswer(0, "7.2.12\n", ""))
    vms = [make_vm(paths, host) for host in ("a", "b")]
    for vm in vms:
        vm.answer = "boot-id"
    assert wait_until_up(vms, paths, 600.0) == {"a": "7.2.12", "b": "7.2.12"}
    assert wait_until_up([], paths, 600.0) == {}


def test_up_says_that_a_vm_is_already_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setattr("orchestrator.lab.fleet.find_tool", lambda name: name)
    monkeypatch.setattr("orchestrator.lab.fleet.Vm", FakeVm)
    monkeypatch.setattr(LabFleet, "_write_inventory", lambda self, *_: self.paths.inventory)
    waited: list[str] = []
    monkeypatch.setattr(
        "orchestrator.lab.fleet.wait_until_up", lambda vms, *_: waited.extend(vm.host for vm in vms)
    )
    fleet = LabFleet.open("mine")
    config = replace(vm_config("old1"), release="7.2.12")
    write_state(fleet.paths, LabState(Target("/t", "/i", "7.3.4", "7.3"), (config,)))
    events: list[ProgressEvent] = []
    report = fleet.up([HostSpec("old1", "7.2")], LabOptions(), events.append)
    assert [(event.host, event.text) for event in events] == [("old1", "already starting, waiting")]
    assert waited == ["old1"]
    assert (report.started, report.already) == ((), ("old1",))
