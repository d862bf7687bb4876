#!/usr/bin/python3 -I
"""Faults that strike at one moment of an attempt: waits on the host itself, where no network is in between.

    fault_watch.py kill-load SECONDS       SIGKILLs the keeper so long inside kexec_file_load(2)
    fault_watch.py kill-told 0             SIGKILLs the keeper once go was accepted
    fault_watch.py reboot-orderly 0        reboots once an image is loaded
    fault_watch.py reboot-at-once 0        the same by reboot(2), nothing is stopped
    fault_watch.py corrupt PATH            changes one byte of the file as soon as it is there

Says what it did on the console through /dev/kmsg: that outlives this boot.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CLAIM = Path("/run/kexec-fleet/claim.json")
PATIENCE = 3600.0
POLL = 0.005
TAKEN_PAGES = 512  # more than purgatory and boot parameters: the kernel segment is being placed
RESTART = 0x01234567  # LINUX_REBOOT_CMD_RESTART


def announce(text: str) -> None:
    print(text, flush=True)
    with Path("/dev/kmsg").open("w") as log:
        log.write(f"kexec-fleet-lab: fault done: {text}\n")


def claim() -> dict[str, object]:
    try:
        data = json.loads(CLAIM.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def keeper_pid(data: dict[str, object]) -> int | None:
    keeper = data.get("keeper")
    if isinstance(keeper, dict):
        return int(keeper["pid"])
    return int(keeper[0]) if isinstance(keeper, list) and keeper else None


def wait_phase(*phases: str) -> int:
    """The keeper's pid once the claim is in one of these phases."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        data = claim()
        pid = keeper_pid(data)
        if data.get("phase") in phases and pid is not None:
            return pid
        time.sleep(POLL)
    sys.exit(f"no attempt came into {phases}")


def available_pages() -> int:
    """Of all CMA areas; 0 where the kernel has no CONFIG_CMA_SYSFS."""
    return sum(int(path.read_text()) for path in Path("/sys/kernel/mm/cma").glob("*/available_pages"))


def kill_load(seconds: float) -> None:
    """Strikes when the load has taken pages of the area: only then there is something to leak."""
    before = available_pages()
    pid = wait_phase("loading")
    while available_pages() > before - TAKEN_PAGES:
        if claim().get("phase") != "loading":
            sys.exit("the load took nothing of a CMA area, or was over before it could be killed")
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and claim().get("phase") == "loading":
        time.sleep(POLL)
    announce(f"killed the keeper {pid} inside its load; pages available {before} -> {available_pages()}")


def kill_told(_seconds: float) -> None:
    pid = wait_phase("told")
    os.kill(pid, signal.SIGKILL)
    announce(f"killed the keeper {pid} that was told to jump")


def reboot_orderly(_seconds: float) -> None:
    wait_phase("loaded", "armed")
    announce("reboot")
    subprocess.call(["reboot"], env={"PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"})


def reboot_at_once(_seconds: float) -> None:
    wait_phase("loaded", "armed")
    announce("reboot(2)")
    ctypes.CDLL(None).reboot(ctypes.c_int(RESTART))


def corrupt(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{path} never came")
        time.sleep(POLL)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
        file.flush()
        os.fsync(file.fileno())
    announce(f"one byte of {path} was changed")


ACTIONS = {
    "kill-load": kill_load,
    "kill-told": kill_told,
    "reboot-orderly": reboot_orderly,
    "reboot-at-once": reboot_at_once,
}


def main(words: list[str]) -> None:
    action, parameter = words
    if action == "corrupt":
        corrupt(Path(parameter))
    else:
        ACTIONS[action](float(parameter))


if __name__ == "__main__":
    main(sys.argv[1:])
