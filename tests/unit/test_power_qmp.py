"""The reset button of a QEMU machine, in states that only QEMU has, and monitors that are none."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.power import QmpPower
from tests.support import qemu
from tests.support.machine import why_qemu_cannot_run
from workers.deadline import Deadline
from workers.power.base import Power
from workers.power.qmp import QmpDriver

needs_qemu = pytest.mark.skipif(bool(why_qemu_cannot_run()), reason=why_qemu_cannot_run())


def soon() -> Deadline:
    return Deadline.after(120)


def driver(path: Path) -> QmpDriver:
    return QmpDriver("vm1", QmpPower(kind="qmp", socket=str(path)))


def failed(path: Path, deadline: Deadline | None = None) -> PowerFailed:
    with pytest.raises(PowerFailed) as caught:
        driver(path).cycle(deadline or soon())
    assert caught.value.hint and str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


@needs_qemu
def test_a_machine_that_never_began_runs(tmp_path: Path) -> None:
    with qemu.machine(tmp_path, "-S") as machine:
        assert driver(machine.monitor).status(soon()).power is Power.OFF
        assert driver(machine.monitor).cycle(soon()).text.endswith("was prelaunch, and let it run")
        machine.wait_for_status("running")
        assert machine.resets == 1


@needs_qemu
def test_a_machine_that_was_stopped_runs_again(tmp_path: Path) -> None:
    with qemu.machine(tmp_path) as machine:
        machine.execute("stop")
        state = driver(machine.monitor).status(soon())
        assert (state.power, state.text) == (Power.ON, "QEMU says paused")
        assert "was paused" in driver(machine.monitor).cycle(soon()).text
        machine.wait_for_status("running")
        assert machine.resets == 1


@needs_qemu
def test_a_machine_that_ends_at_a_reset_is_no_success(tmp_path: Path) -> None:
    with qemu.machine(tmp_path, "-no-reboot") as machine:
        error = failed(machine.monitor)
        assert error.code in ("refused", "no_monitor")
        if error.code == "refused":
            assert "-no-reboot" in error.hint


@needs_qemu
def test_a_machine_that_is_moved_is_left_alone(tmp_path: Path) -> None:
    with qemu.machine(tmp_path, "-incoming", "defer") as machine:
        error = failed(machine.monitor)
        assert (error.code, "inmigrate" in str(error)) == ("refused", True)
        assert machine.resets == 0


@needs_qemu
def test_a_monitor_that_another_client_holds(tmp_path: Path) -> None:
    with qemu.machine(tmp_path) as machine, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(machine.monitor))
        assert other.recv(10)
        error = failed(machine.monitor, Deadline.after(2))
        assert (error.code, "another client" in error.hint) == ("timeout", True)
        other.close()
        assert driver(machine.monitor).status(soon()).power is Power.ON


@needs_qemu
def test_many_who_cycle_at_once(tmp_path: Path) -> None:
    with qemu.machine(tmp_path) as machine:
        # More than QEMU's queue of waiting clients holds.
        threads = [threading.Thread(target=driver(machine.monitor).cycle, args=(soon(),)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert machine.resets == 12


@contextmanager
def serving(path: Path, *answers: bytes) -> Iterator[Path]:
    """A socket that says the first answer by itself, each other one when told something, and hangs up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            try:
                connection, _ = server.accept()
                with connection:
                    for index, answer in enumerate(answers):
                        if index:
                            connection.recv(4096)
                        connection.sendall(answer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(60)


GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
HELLO = b'{"return": {}, "id": "__qmp#00000"}\r\n'


@pytest.mark.parametrize(
    "answers",
    [
        (b"",),
        (b"SSH-2.0-OpenSSH_9.2\r\n",),
        (b"[]\r\n",),
        (b"{}\r\n",),
        (b"\xff\xfe\x00\n",),
        (b"x" * (12 << 20) + b"\n",),
        (b"[" * 100_000 + b"\n",),
        (GREETING,),
        (GREETING, b"{}\r\n"),
        (GREETING, b'{"error": {"class": "GenericError", "desc": "no\\u001b[2J"}}\r\n'),
        (GREETING, b'{"return": {}}\r\n'),
        (GREETING, b'{"return": {}}\r\n', b"garbage\r\n"),
        (GREETING, b'{"return": {}}\r\n', b'{"return": 7}\r\n'),
    ],
)
def test_a_socket_that_is_no_monitor(tmp_path: Path, answers: tuple[bytes, ...]) -> None:
    with serving(tmp_path / "s", *answers) as path:
        error = failed(path, Deadline.after(20))
    assert error.code in ("no_monitor", "refused", "timeout")
    assert len(str(error)) < 800


def test_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("missing", "file", "folder", "file/below", "no/such/folder", "x" * 200, "x" * 300):
        assert failed(tmp_path / name).code == "no_monitor"
    assert re.search("no monitor socket", str(failed(tmp_path / "missing")))
