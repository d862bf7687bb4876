"""A command of the user's own on this machine, about one host; no shell reads its words."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from orchestrator.domain.errors import HostRefused
from workers.deadline import Deadline
from workers.power.command import PASSED

LAB = ("XDG_STATE_HOME", "XDG_CACHE_HOME", "KEXEC_FLEET_LAB_DIR")
"""Where `kexec-fleet lab default`, which a lab's playbook runs, finds its lab."""

_REAP_S = 5.0  # a killed process in an uninterruptible sleep may never go
_MOST = 300  # characters of its last words


def run_local(
    host: str, step: str, argv: Sequence[str], environment: Mapping[str, str], deadline: Deadline
) -> str:
    """The last line that the command wrote to stdout.

    Of our own environment it gets what power commands get, and `environment`: the rest of ours may hold
    secrets. Raises HostRefused where it cannot be started, does not end before the deadline (its process
    group is killed) or ends with another status than 0.
    """
    passed = (*PASSED, *LAB)

    def refused(code: str, message: str) -> HostRefused:
        return HostRefused(host, step, f"{argv[0]}: {message}", hint="run it by hand", code=code)

    try:
        process = subprocess.Popen(
            argv,
            env={**{name: os.environ[name] for name in passed if name in os.environ}, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise refused("no_command", f"cannot be started: {error}") from error
    try:
        out, err = process.communicate(timeout=max(deadline.left(), 0.1))
    except subprocess.TimeoutExpired:
        raise refused("deadline", "did not end before its deadline, and was killed") from None
    finally:
        if process.returncode is None:
            _kill(process)
    if process.returncode != 0:
        last = _last_line(err) or "it wrote nothing to stderr"
        raise refused("exit_status", f"ended with status {process.returncode}: {last}")
    return _last_line(out)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return "".join(letter for letter in lines[-1] if letter.isprintable())[:_MOST] if lines else ""


def _kill(process: subprocess.Popen[str]) -> None:
    """Its whole group; one that does not die is left behind, and so are its pipes' other ends."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_REAP_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
