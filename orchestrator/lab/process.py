"""Processes that outlive the command that started them, and are never mistaken for another."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
POLL_SECONDS = 0.05

# Children of this very process: polled, so that one which has ended does not stay a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ProcessIdentity:
    """A pid alone may be somebody else's by now; with its start time and this machine's boot it is not."""

    pid: int
    start_ticks: int
    boot_id: str


def machine_boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None for a process that is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessIdentity | None:
    ticks = _start_ticks(pid)
    return None if ticks is None else ProcessIdentity(pid, ticks, machine_boot_id())


def is_alive(process: ProcessIdentity) -> bool:
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
    return process.boot_id == machine_boot_id() and _start_ticks(process.pid) == process.start_ticks


def spawn_detached(argv: Sequence[str], *, cwd: Path, log: Path) -> ProcessIdentity | None:
    """Starts a process in a session of its own, its output in `log`. None when it ended at once."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    _children[child.pid] = child
    _wait_for_its_words(child)
    return identify(child.pid)


def _wait_for_its_words(child: subprocess.Popen[bytes]) -> None:
    """The kernel lets the parent of a vfork go on before the new program's command line can be read
    (Linux 6.12, fs/exec.c begin_new_exec), and `find_in_folder` would not see the process."""
    until = time.monotonic() + 10.0
    words = Path(f"/proc/{child.pid}/cmdline")
    while child.poll() is None and time.monotonic() < until and not words.read_bytes():
        time.sleep(0.001)


def wait_gone(process: ProcessIdentity, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def stop(process: ProcessIdentity, number: signal.Signals = signal.SIGKILL, seconds: float = 20.0) -> bool:
    """Signals exactly this process, and waits for its end."""
    if is_alive(process):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
    return wait_gone(process, seconds)


def find_in_folder(folder: Path, marks: Sequence[str]) -> list[ProcessIdentity]:
    """Processes that work in `folder` or below and whose command line holds one of `marks`: what a command
    that was killed between starting a process and writing it down has left."""
    found = []
    root = folder.resolve()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            where = Path(str((entry / "cwd").readlink()).removesuffix(" (deleted)"))
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if where.is_relative_to(root) and any(mark in command for mark in marks):
            identity = identify(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found
