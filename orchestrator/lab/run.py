"""The one runner of external tools: a missing tool or a failed one becomes an error that can be replayed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
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
TERMINATE_SECONDS = 15.0


def find_tool(name: str) -> str:
    """The tool's full path, or a SetupError that names the Debian package to install."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_DIRS)
    if found is None:
        package = PACKAGE_OF.get(name, name)
        raise SetupError(f"{name} is not installed", hint=f"install it: apt install {package}")
    return found


def _end_group(child: subprocess.Popen[str]) -> None:
    """Asks the tool and all that it has started to end, so that it can clean up; then insists."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            pass
        try:
            child.communicate(timeout=TERMINATE_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Runs a tool to its end and returns its standard output. `what` completes "could not ...":
    carries the tool's last words and the command to run again by hand."""
    argv = [find_tool(str(command[0])), *(str(word) for word in command[1:])]
    by_hand = f"by hand: {shlex.join(argv)}"
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=dict(env) if env is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Its own group: an interrupt at the terminal reaches only us, and we end the group in order.
        start_new_session=True,
    ) as child:
        try:
            output, complaints = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _end_group(child)
            raise LabError(
                f"could not {what}: {argv[0]} did not finish in {timeout:.0f} s", hint=by_hand
            ) from None
        except BaseException:
            _end_group(child)
            raise
    if child.returncode != 0:
        words = (complaints or output).strip().splitlines()[-STDERR_LINES:]
        failure = f"could not {what}: {argv[0]} exited with {child.returncode}"
        raise LabError(f"{failure}: " + " | ".join(words), hint=by_hand)
    return output
