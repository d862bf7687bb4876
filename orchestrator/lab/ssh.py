"""The plain ssh client as the lab uses it: our key, the pinned host key, none of the user's settings."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.lab.paths import LabPaths
from orchestrator.lab.run import find_tool


@dataclass(frozen=True)
class SshAnswer:
    code: int  # 255: ssh itself failed
    output: str
    complaint: str


def ssh_arguments(
    paths: LabPaths, port: int, command: Sequence[str] = (), *, batch: bool = True
) -> list[str]:
    options = {
        "IdentityFile": paths.key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": paths.known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
        "ConnectTimeout": "30",
        # A guest that dies keeps its forwarded port open: without these a client would hang for ever.
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "8",
        **({"BatchMode": "yes"} if batch else {}),
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return [find_tool("ssh"), "-F", "/dev/null", *words, "-p", str(port), "root@127.0.0.1", *command]


def call(paths: LabPaths, port: int, command: str, seconds: float) -> SshAnswer:
    arguments = ssh_arguments(paths, port, [command])
    try:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return SshAnswer(255, "", f"no answer in {seconds:.0f} s")
    return SshAnswer(done.returncode, done.stdout, done.stderr.strip())
