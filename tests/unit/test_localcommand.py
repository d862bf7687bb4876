"""A command of the user's own: its words, its failures, and that nothing of it outlives its deadline."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.domain.errors import HostRefused
from workers.deadline import Deadline
from workers.localcommand import run_local

LONG = 60.0


def run(*argv: str, seconds: float = LONG, **environment: str) -> str:
    return run_local("web1", "finalise", argv, environment, Deadline.after(seconds))


def refused(*argv: str, seconds: float = LONG) -> HostRefused:
    with pytest.raises(HostRefused) as caught:
        run(*argv, seconds=seconds)
    error = caught.value
    assert (error.host, error.step) == ("web1", "finalise") and error.hint
    assert error.message.startswith(f"{argv[0]}: ") and error.message.isprintable()
    return error


def test_the_last_line_of_its_output_is_the_answer() -> None:
    assert run("printf", r"first\nlast\n\n") == "last"
    assert run("true") == ""


def test_it_sees_the_hosts_environment_and_of_ours_what_the_lab_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", "/labs")
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    script = 'echo "$KEXEC_FLEET_HOST $KEXEC_FLEET_LAB_DIR $DATABASE_PASSWORD."'
    assert run("sh", "-c", script, KEXEC_FLEET_HOST="web1") == "web1 /labs ."


def test_no_shell_reads_its_words() -> None:
    assert run("echo", "$HOME; true", "`id`") == "$HOME; true `id`"


def test_it_cannot_wait_for_our_keyboard() -> None:
    assert run("sh", "-c", "read line; echo $?") == "1"


def test_another_status_than_0_is_told_with_its_last_words() -> None:
    error = refused("sh", "-c", "echo fine; echo first >&2; echo no such host >&2; exit 7")
    assert error.code == "exit_status" and "status 7: no such host" in error.message
    assert "wrote nothing to stderr" in refused("false").message
    assert "status -15" in refused("sh", "-c", "kill -TERM $$").message


def test_control_bytes_and_floods_are_kept_out_of_what_is_told() -> None:
    error = refused("sh", "-c", r"printf '\033[2J\377\000bad%0999d' 1 >&2; exit 1")
    assert "bad" in error.message and len(error.message) < 400
    assert run("sh", "-c", r"printf '\033[31mset\007'") == "[31mset"


@pytest.mark.parametrize("program", ["/no/such/program", "/", "no\0program"])
def test_what_cannot_be_started_is_told(program: str) -> None:
    with pytest.raises(HostRefused) as caught:
        run(program)
    assert caught.value.code == "no_command" and "cannot be started" in caught.value.message


@pytest.mark.parametrize("script", ["echo $$ > {pid}; exec sleep 600", "sleep 600 & echo $! > {pid}"])
def test_what_hangs_is_killed_with_all_that_it_started(tmp_path: Path, script: str) -> None:
    """The command itself, and a child that holds its output open after it has gone."""
    pid = tmp_path / "pid"
    error = refused("sh", "-c", script.format(pid=pid), seconds=2.0)
    assert error.code == "deadline" and "was killed" in error.message
    assert gone(int(pid.read_text()))


def gone(pid: int) -> bool:
    """Whether the process has ended; one that waits for its parent to notice has."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_nothing_of_it_is_left_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run("true")
        refused("false")
        refused("sleep", "600", seconds=0.1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
