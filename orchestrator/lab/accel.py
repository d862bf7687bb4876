"""Which accelerator works: KVM is believed only after something has booted under it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import LabError
from orchestrator.lab import progress as say
from orchestrator.lab.paths import cache_root, write_atomically
from orchestrator.lab.process import machine_boot_id
from orchestrator.lab.run import find_tool
from orchestrator.lab.spec import AccelChoice
from orchestrator.lab.vm import QEMU

KVM_DEVICE = Path("/dev/kvm")
PROBE_SECONDS = 30.0
REACHED = "kexec-fleet-lab: user space reached"
BROKEN = "KVM internal error"


@dataclass(frozen=True)
class Verdict:
    works: bool
    reason: str


def decide(choice: AccelChoice, vmlinuz: Path, initrd: Path, progress: say.Progress = say.silent) -> str:
    """`kvm` or `tcg`; the fall-back is said aloud."""
    if choice is AccelChoice.TCG:
        return "tcg"
    verdict = probe_kvm(vmlinuz, initrd, progress)
    if verdict.works:
        return "kvm"
    if choice is AccelChoice.KVM:
        raise LabError(f"KVM does not work here: {verdict.reason}", hint="use --accel tcg")
    say.notice(progress, f"KVM does not work here ({verdict.reason}): emulating with TCG, which is slower")
    return "tcg"


def probe_kvm(vmlinuz: Path, initrd: Path, progress: say.Progress = say.silent) -> Verdict:
    """Boots the kernel to user space once, and remembers the answer until this machine boots again."""
    if not KVM_DEVICE.exists():
        return Verdict(False, f"there is no {KVM_DEVICE}")
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, f"{KVM_DEVICE} may not be opened by this user")
    memory = cache_root() / "kvm.json"
    qemu = find_tool(QEMU)
    key = [machine_boot_id(), qemu, Path(qemu).stat().st_mtime_ns]
    try:
        record = json.loads(memory.read_text())
        if record["key"] == key:
            return Verdict(record["works"], record["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    say.step(progress, "trying KVM by booting a kernel under it")
    verdict = _boot(qemu, vmlinuz, initrd)
    write_atomically(
        memory, json.dumps({"key": key, "works": verdict.works, "reason": verdict.reason}).encode()
    )
    return verdict


def _boot(qemu: str, vmlinuz: Path, initrd: Path) -> Verdict:
    command = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "512M",
        "-no-reboot", "-kernel", str(vmlinuz), "-initrd", str(initrd),
        "-append", "console=ttyS0 panic=-1 kexec_fleet_lab.probe=1", "-serial", "file:console",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kexec-fleet-kvm-") as name:
        folder = Path(name)
        console, complaints = folder / "console", folder / "complaints"
        console.touch()
        with complaints.open("wb") as out:
            child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < deadline:
                ended = child.poll() is not None  # before reading: what it wrote last must be seen
                words = complaints.read_text(errors="replace").strip()
                if REACHED in console.read_text(errors="replace"):
                    return Verdict(True, "a kernel reached user space")
                if BROKEN in words:
                    return Verdict(False, "KVM could not emulate an instruction of a stock kernel")
                if ended:
                    return Verdict(False, words.splitlines()[0] if words else "QEMU ended early")
                time.sleep(0.1)
            return Verdict(False, f"a stock kernel did not reach user space in {PROBE_SECONDS:.0f} s")
        finally:
            child.kill()
            child.wait()
