"""The one runner of external tools: a missing tool or a failed one becomes an error that can be replayed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.domain.errors import LabError, SetupError

PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "fakeroot": "fakeroot",
    "tar": "tar",
}
# Administrators' tools that a plain user's PATH lacks.
SYSTEM_DIRS = "/usr/local/sbin:/usr/sbin:/sbin"
STDERR_LINES = 12


def find_tool(name: str) -> str:
    """The tool's full path, or a SetupError that names the Debian package to install."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_DIRS)
    if found is None:
        package = PACKAGE_OF.get(name, name)
        raise SetupError(f"{name} is not installed", hint=f"install it: apt install {package}")
    return found


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Runs a tool to its end and returns its standard output. `what` completes "could not ...": an error
    carries the tool's last words and the command to run again by hand."""
    argv = [find_tool(str(command[0])), *(str(word) for word in command[1:])]
    try:
        finished = subprocess.run(
            argv,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(
            f"could not {what}: {argv[0]} did not finish in {timeout:.0f} s",
            hint=f"by hand: {shlex.join(argv)}",
        ) from None
    if finished.returncode != 0:
        words = (finished.stderr or finished.stdout).strip().splitlines()[-STDERR_LINES:]
        raise LabError(
            f"could not {what}: {argv[0]} exited with {finished.returncode}: " + "\n".join(words),
            hint=f"by hand: {shlex.join(argv)}",
        )
    return finished.stdout
