"""The lab's own way into a scenario's guest, beside the rollout's: commands and fault programs."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import LabError
from orchestrator.lab.initramfs import guest_file
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.ssh import ssh_arguments

SSH_SECONDS = 180.0
"""Without KVM, and with a rollout at work on the same machine, a login may take a minute."""

TRIES = 3
POLL_SECONDS = 1.0
FOLDER = "/run/kexec-fleet-lab"


@dataclass(frozen=True)
class Guest:
    """One guest. Every call raises LabError where the guest does not do it."""

    paths: LabPaths
    host: str
    port: int

    def run(self, command: str, *, stdin: bytes = b"", seconds: float = SSH_SECONDS) -> str:
        """A shell command's standard output. A lost connection is tried again, a failed command is not."""
        complaint = ""
        for _ in range(TRIES):
            try:
                done = subprocess.run(
                    ssh_arguments(self.paths, self.port, [command]),
                    input=stdin, capture_output=True, timeout=seconds, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                complaint = f"no answer in {seconds:.0f} s"
                continue
            if done.returncode == 0:
                return done.stdout.decode(errors="replace")
            complaint = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
            if done.returncode != 255:
                break
        raise LabError(
            f"{self.host}: `{command[:80]}` failed: {complaint}",
            hint=f"look at its console: `kexec-fleet lab console {self.host} --name {self.paths.root.name}`",
        )

    def program(self, name: str, *words: str, seconds: float) -> dict[str, Any]:
        """Runs one of the guest's fault programs to its end; its last line of JSON."""
        arguments = shlex.join(words)
        out = self.run(f"python3 -I - {arguments}", stdin=guest_file(name), seconds=seconds)
        return last_json(out)

    def start(self, name: str, *words: str) -> str:
        """Starts a program that stays; what it prints goes to the returned file on the guest."""
        script, log = f"{FOLDER}/{name}", f"{FOLDER}/{name}.log"
        self.run(f"mkdir -p {FOLDER} && cat > {script}", stdin=guest_file(name))
        # setsid: the program outlives the session, and a `reboot` that it calls does not kill it first.
        self.run(f"setsid -f python3 -I {script} {shlex.join(words)} > {log} 2>&1 < /dev/null")
        return log

    def await_json(self, log: str, seconds: float, stopping: Callable[[], bool]) -> dict[str, Any]:
        """The first JSON line of a program that stays."""
        deadline = time.monotonic() + seconds
        while not stopping():
            text = self.run(f"cat {log}")
            if found := last_json(text):
                return found
            if time.monotonic() > deadline or "Traceback" in text:
                raise LabError(f"{self.host}: {log} does not tell that it is ready: {text[-300:]!r}")
            time.sleep(POLL_SECONDS)
        return {}


def last_json(text: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty where there is none."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
