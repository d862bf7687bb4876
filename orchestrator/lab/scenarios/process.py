"""The real `kexec-fleet rollout run` as a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "from orchestrator.cli.app import main\nmain()"
POLL_SECONDS = 0.2
# A clean stop lets go of hosts before their jump, and waits for a load.
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Finished:
    """`exit_code` None: it did not end by itself."""

    exit_code: int | None
    summary: dict[str, Any]
    why: str = ""


def run_rollout(
    playbook: Path,
    inventory: Path,
    journal: Path,
    folder: Path,
    seconds: float,
    stopping: Callable[[], bool],
) -> Finished:
    """Runs the rollout to its end, its deadline or `stopping`; output goes to rollout.json and .log."""
    words = ["rollout", "run", str(playbook), "-i", str(inventory), "--json"]
    out_path, log_path = folder / "rollout.json", folder / "rollout.log"
    environment = {**os.environ, "KEXEC_FLEET_JOURNAL": str(journal)}
    environment.pop("KEXEC_FLEET_BROKER", None)
    environment.pop("KEXEC_FLEET_BROKER_FILE", None)
    with out_path.open("wb") as out, log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment,
            start_new_session=True,  # Ctrl-C at the terminal reaches us alone, and we stop it in order
        )  # fmt: skip
        why = _wait(process, seconds, stopping)
    if why:
        return Finished(None, {}, why)
    try:
        summary = json.loads(out_path.read_text(encoding="utf-8"))
    except ValueError:
        last = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return Finished(process.returncode, {}, f"the rollout printed no JSON: {' | '.join(last)}")
    if "hosts" not in summary:
        errors = "; ".join(str(error.get("message")) for error in summary.get("errors", ()))
        return Finished(process.returncode, {}, f"the rollout did not begin: {errors}")
    return Finished(process.returncode, summary)


def _wait(process: subprocess.Popen[bytes], seconds: float, stopping: Callable[[], bool]) -> str:
    """Empty when it has ended by itself, else why it was stopped."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if stopping():
            _stop(process)
            return "interrupted"
        if time.monotonic() > deadline:
            _stop(process)
            return f"the rollout did not end in {seconds:.0f} s"
        time.sleep(POLL_SECONDS)
    return ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
