"""What the machine that runs the tests can do."""

from __future__ import annotations

import functools
import subprocess

QEMU = "qemu-system-x86_64"
PROBE = [
    *(QEMU, "-machine", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"),
    *("-device", "virtio-net-pci", "-S", "-monitor", "stdio"),
]


@functools.cache
def why_qemu_cannot_run() -> str:
    """Empty when QEMU starts with its firmware, otherwise what it said. deploy/lib.sh probes likewise."""
    try:
        done = subprocess.run(PROBE, input="quit\n", capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return f"{QEMU} is not installed; ./deploy/test installs it"
    except subprocess.TimeoutExpired:
        return f"{QEMU} did not answer within 60 s"
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()}"
