"""Processes that outlive a command, stale records, the console logger, locks, ports, tools that fail."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError, LabError, SetupError
from orchestrator.lab import console, ports
from orchestrator.lab.accel import decide
from orchestrator.lab.console_logger import TimestampedLog
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.paths import LabPaths, locked, write_atomically
from orchestrator.lab.process import find_in_folder, identify, is_alive, spawn_detached, stop
from orchestrator.lab.run import run
from orchestrator.lab.spec import AccelChoice
from orchestrator.lab.vm import Vm
from tests.unit.test_lab_spec import vm_config

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z .*")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sleeper(folder: Path) -> list[str]:
    return [sys.executable, "-c", "import time; time.sleep(600)", "a-mark"]


def test_a_spawned_process_is_found_and_ended(tmp_path: Path) -> None:
    process = spawn_detached(sleeper(tmp_path), cwd=tmp_path, log=tmp_path / "log")
    assert process is not None
    assert is_alive(process)
    assert os.getsid(process.pid) == process.pid, "it must survive the terminal"
    assert find_in_folder(tmp_path, ["a-mark"]) == [process]
    assert find_in_folder(tmp_path, ["another-mark"]) == []
    assert stop(process)
    assert not is_alive(process)
    assert find_in_folder(tmp_path, ["a-mark"]) == []


def test_a_pid_that_is_somebody_elses_now_is_not_alive() -> None:
    own = identify(os.getpid())
    assert own is not None
    assert is_alive(own)
    assert not is_alive(replace(own, start_ticks=own.start_ticks - 1))
    assert not is_alive(replace(own, boot_id="another boot of this machine"))


def test_a_stale_record_is_not_taken_for_a_vm(tmp_path: Path) -> None:
    vm = Vm(vm_config("a"), tmp_path)
    assert vm.pid is None
    own = identify(os.getpid())
    assert own is not None
    write_atomically(tmp_path / "process.json", json.dumps(asdict(own)).encode())
    assert vm.pid == os.getpid()
    stale = replace(own, start_ticks=own.start_ticks - 1)
    write_atomically(tmp_path / "process.json", json.dumps(asdict(stale)).encode())
    assert vm.pid is None
    (tmp_path / "process.json").write_text("{half")
    assert vm.pid is None


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = identify(child.pid)
        assert process is not None
        assert child.stdin is not None
        child.stdin.close()
        deadline = time.monotonic() + 30
        while is_alive(process):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_down_ends_what_was_never_written_down(tmp_path: Path) -> None:
    """An `up` that was killed right after it started QEMU has left a process and no record of it."""
    fleet = LabFleet.open("broken")
    folder = fleet.paths.vm("web1")
    folder.mkdir(parents=True)
    orphan = spawn_detached([*sleeper(folder), "qemu-system-x86_64"], cwd=folder, log=folder / "log")
    bystander = spawn_detached(sleeper(tmp_path), cwd=folder, log=folder / "log")
    assert orphan is not None
    assert bystander is not None
    assert fleet.down() == ["web1"]
    assert not is_alive(orphan)
    assert is_alive(bystander), "a shell that happens to be in the folder is not ours"
    stop(bystander)
    assert not fleet.paths.root.exists()
    assert list(fleet.paths.root.parent.iterdir()) == []
    assert fleet.down() == []


def test_a_lab_that_is_not_there_says_how_to_make_one() -> None:
    with pytest.raises(InputError) as caught:
        LabFleet.open("nothing").status()
    assert "lab up" in caught.value.hint
    with pytest.raises(InputError):
        LabFleet.open("../etc")


def test_console_lines_carry_the_time(tmp_path: Path) -> None:
    log = TimestampedLog(tmp_path / "console.log", 1 << 20)
    for piece in (b"first\r\nsec", b"ond\r\n", b"\r\n", b"no end"):
        log.write(piece)
    lines = (tmp_path / "console.log").read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert [console.without_stamp(line) for line in lines] == ["first", "second", "", "no end"]


def test_the_console_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = TimestampedLog(path, 20_000)
    for number in range(2000):
        log.write(f"line {number}\n".encode())
    text = console.read_all(path)
    assert 10_000 <= len(text) <= 20_200
    numbers = [int(line.split()[-1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 2000)), "no line is lost at the turn"


def test_the_logger_writes_all_and_ends_with_its_writer(tmp_path: Path) -> None:
    vm = Vm(vm_config("a"), tmp_path)
    vm._start_logger()
    lines = [f"{number} {'x' * 50}\n" for number in range(5000)]
    with (tmp_path / "console.out").open("w") as writer:
        writer.writelines(lines)
    vm._await_logger()
    written = [console.without_stamp(line) for line in (tmp_path / "console.log").read_text().splitlines()]
    assert written == [
        "--- lab: power on ---",
        *(line.strip() for line in lines),
        "--- lab: QEMU is gone ---",
    ]


def test_a_slow_logger_loses_nothing(tmp_path: Path) -> None:
    """Single bytes, as QEMU writes them, while the reader is stopped: they must fit the pipe."""
    vm = Vm(vm_config("a"), tmp_path)
    vm._start_logger()
    (logger,) = find_in_folder(tmp_path, ["console_logger.py"])
    writer = os.open(tmp_path / "console.out", os.O_WRONLY | os.O_NONBLOCK)
    os.kill(logger.pid, 19)  # SIGSTOP
    for _ in range(50_000):
        os.write(writer, b"x")
    os.kill(logger.pid, 18)  # SIGCONT
    os.close(writer)
    vm._await_logger()
    assert (tmp_path / "console.log").read_text().count("x") == 50_000


def test_the_service_must_answer_with_its_line(tmp_path: Path) -> None:
    """A bare connect proves nothing: QEMU accepts for a dead guest too."""
    answers = [b"", b"kexec-fleet-lab half-a-line", b"SSH-2.0-OpenSSH\r\n", b"kexec-fleet-lab 1234-5678\n"]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _peer = server.accept()
                with connection:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        vm = Vm(replace(vm_config("a"), service_port=server.getsockname()[1]), tmp_path)
        assert [vm.ask_service() for _ in answers] == [None, None, None, "1234-5678"]


def test_who_waited_for_a_removed_lock_takes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def second() -> None:
        with locked(path):
            order.append("second holds the file" if path.exists() else "second holds nothing")

    with locked(path):
        waiter = threading.Thread(target=second)
        waiter.start()
        time.sleep(0.2)
        order.append("first")
        path.unlink()
    waiter.join(timeout=30)
    assert order == ["first", "second holds the file"]


def test_ports_are_free_and_not_taken() -> None:
    first = ports.choose(4, set())
    second = ports.choose(4, set(first))
    assert len({*first, *second}) == 8
    with socket.create_server(("127.0.0.1", first[0])):
        assert not ports.is_free(first[0])
    assert ports.is_free(first[1])


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lab.run.shutil.which", lambda *_args, **_options: None)
    with pytest.raises(SetupError) as caught:
        run(["qemu-system-x86_64"], what="x", timeout=1)
    assert "qemu-system-x86" in caught.value.hint


def test_a_failing_tool_is_quoted_and_can_be_replayed() -> None:
    with pytest.raises(LabError, match=r"could not do it: .*exited with 3: because") as caught:
        run(["sh", "-c", "echo because >&2; exit 3"], what="do it", timeout=30)
    assert "sh -c 'echo because" in caught.value.hint


def test_a_tool_past_its_deadline_goes_with_all_it_started(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="did not finish"):
        run(["sh", "-c", "sleep 611 & wait"], what="wait", timeout=0.3, cwd=tmp_path)
    assert find_in_folder(tmp_path, ["sleep 611"]) == []


def test_qemus_own_words_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text("#!/bin/sh\necho 'qemu: could not set up the moon' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match="could not set up the moon"):
        Vm(vm_config("a"), tmp_path).start()
    assert find_in_folder(tmp_path, ["console_logger.py"]) == []


def test_without_kvm_it_is_tcg_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lab.accel.KVM_DEVICE", tmp_path / "kvm")
    notices: list[str] = []
    found = decide(AccelChoice.AUTO, Path("k"), Path("i"), lambda event: notices.append(event.text))
    assert found == "tcg"
    assert "TCG" in notices[0]
    with pytest.raises(LabError, match="KVM does not work"):
        decide(AccelChoice.KVM, Path("k"), Path("i"))


def test_kvm_that_opens_and_then_fails_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr("orchestrator.lab.accel.KVM_DEVICE", device)
    calls = tmp_path / "calls"
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(
        f"#!/bin/sh\necho x >> {calls}\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 600\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    notices: list[str] = []
    assert decide(AccelChoice.AUTO, Path("k"), Path("i"), lambda event: notices.append(event.text)) == "tcg"
    assert "could not emulate" in notices[-1], "QEMU's complaint is seen at once, not after the deadline"
    assert decide(AccelChoice.AUTO, Path("k"), Path("i")) == "tcg"
    assert calls.read_text().count("x") == 1, "the verdict is remembered"
    fake.write_text("#!/bin/sh\necho 'kexec-fleet-lab: user space reached' > console\n")
    assert decide(AccelChoice.AUTO, Path("k"), Path("i")) == "kvm", "another QEMU is asked anew"


def test_lab_names_become_folders() -> None:
    assert LabPaths.of("default").root.name == "default"
    for bad in ("", "..", "a/b", "-x", "x" * 33):
        with pytest.raises(InputError):
            LabPaths.of(bad)
