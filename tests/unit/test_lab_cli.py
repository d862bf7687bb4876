"""`kexec-fleet lab` as a user types it: what reaches the lab, what is refused, what is said. No VM."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.cli import lab
from orchestrator.cli.app import main
from orchestrator.lab.fleet import LabFleet, UpReport
from orchestrator.lab.progress import Progress, ProgressEvent, ProgressKind
from orchestrator.lab.spec import HostSpec, LabOptions
from orchestrator.lab.state import LabState, Target, write_state
from tests.unit.test_lab_spec import vm_config

Run = Callable[..., tuple[int, str, str]]
Asked = list[tuple[Sequence[HostSpec] | None, LabOptions]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The exit code, standard output and standard error of `kexec-fleet lab WORDS`."""
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path / "labs"))

    def run_with(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kexec-fleet", "lab", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return int(caught.value.code or 0), captured.out, captured.err

    return run_with


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What `lab up` asks of the lab; nothing is started."""
    calls: Asked = []

    def up(self: LabFleet, specs: Sequence[HostSpec] | None, options: LabOptions, _: Progress) -> UpReport:
        calls.append((specs, options))
        return UpReport((), (), self.inventory_path)

    monkeypatch.setattr(LabFleet, "up", up)
    return calls


def make_lab(name: str) -> None:
    write_state(LabFleet.open(name).paths, LabState(Target("/t", "/i", "7.3.4", "7.3"), (vm_config("old1"),)))


def test_only_a_missing_hosts_means_the_default_fleet(run: Run, asked: Asked) -> None:
    code, _, err = run("up", "--hosts", "")
    assert code == 2 and "--hosts is empty" in err
    assert asked == []
    assert run("up")[0] == 0
    assert asked[0][0] is None


def test_what_the_user_gave_is_known_from_the_defaults(run: Run, asked: Asked) -> None:
    run("up")
    run("up", "--hosts", "a=7.2", "--memory", "2G", "--cpus=1", "--boot-timeout", "5")
    assert asked[0][1].given == frozenset()
    assert asked[1][1].given == {"memory", "cpus"}
    run("up", "--cma", "none", "--init", "mini")
    assert asked[2][1].given == {"cma", "init"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--cma", "1000G"), "cma 1000G does not fit"),
        (("--boot-timeout", "-1"), "boot timeout -1 is not usable"),
        (("--boot-timeout", "0"), "boot timeout 0 is not usable"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, asked: Asked, words: tuple[str, ...], says: str) -> None:
    code, _, err = run("up", *words)
    assert code == 2 and says in err
    assert asked == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_up_says_what_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def up(*_: object) -> UpReport:
        os.kill(os.getpid(), number)
        time.sleep(60)
        raise AssertionError("not stopped")

    monkeypatch.setattr(LabFleet, "up", up)
    before = signal.getsignal(number)
    code, out, err = run("up", "--name", "mine")
    assert (code, out) == (130, "")
    assert err == (
        "stopping; VMs that were started stay up: `kexec-fleet lab status --name mine`, "
        "`kexec-fleet lab down --name mine`\n"
    )
    assert signal.getsignal(number) is before


def test_down_of_what_is_not_there_names_what_is(run: Run) -> None:
    assert run("down", "--name", "typo")[:2] == (0, "nothing was up\n")
    make_lab("mine")
    make_lab("other")
    assert run("down", "--name", "typo")[:2] == (
        0,
        "nothing was up in a lab 'typo'; there are: mine, other\n",
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "mine", "old1", "ls", "-l"),
        ("old1", "--name", "mine", "ls", "-l"),
        ("old1", "--name=mine", "ls", "-l"),
    ],
)
def test_ssh_takes_the_name_on_either_side_of_the_host(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    def execute(_program: str, argv: list[str]) -> None:
        raise SystemExit(0 if argv[-3:] == ["root@127.0.0.1", "ls", "-l"] else 77)

    monkeypatch.setattr("orchestrator.lab.ssh.find_tool", lambda name: name)
    monkeypatch.setattr("os.execv", execute)
    make_lab("mine")
    assert run("ssh", *words)[0] == 0


def test_a_later_name_is_the_commands_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(_program: str, argv: list[str]) -> None:
        raise SystemExit(0 if argv[-3:] == ["find", "--name", "x"] else 77)

    monkeypatch.setattr("orchestrator.lab.ssh.find_tool", lambda name: name)
    monkeypatch.setattr("os.execv", execute)
    make_lab("default")
    assert run("ssh", "old1", "find", "--name", "x")[0] == 0
    code, _, err = run("ssh", "old1", "--name")
    assert code == 2 and "--name needs a value" in err


def test_progress_cannot_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    lab._show_progress(ProgressEvent(ProgressKind.NOTICE, "console: \x1b[2Jboo", "a"))
    assert capfd.readouterr().err == "! a: console: \\x1b[2Jboo\n"
