"""The faults by kind: each changes the target, the guest before the rollout, or the guest while it runs.

A fault that did not strike makes its run an error: what came out then proves nothing.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from orchestrator.domain.errors import LabError
from orchestrator.domain.rollout import Phase
from orchestrator.lab import console
from orchestrator.lab.paths import sha256_of
from orchestrator.lab.scenarios import faultspec as spec
from orchestrator.lab.scenarios import ram
from orchestrator.lab.scenarios.context import FaultContext, TargetFiles
from orchestrator.lab.scenarios.faultbase import Fault
from orchestrator.lab.scenarios.scribble import Scribble
from orchestrator.lab.spec import parse_size

READY_SECONDS = 900.0
ARTIFACTS = "/var/lib/kexec-fleet/artifacts"
ENOUGH = 0.5
"""The part of the area that must have been soiled for the fault to count as made."""

LARGEST_GAP = 40 << 20
"""Bytes of the area without a pinned page: below what a kernel segment takes (init_size, some 60 MiB)."""

PATTERN = 0xA5  # guest/fault_memory.py
AREA = re.compile(r"cma: Reserved (\d+) MiB at (0x[0-9a-f]+)")  # mm/cma.c, Linux 7.2

# Documentation/arch/x86/boot.rst: setup_sects at 0x1f1; the 64-bit entry is 0x200 behind the setup part.
SETUP_SECTS, SECTOR, ENTRY_64 = 0x1F1, 512, 0x200
JUMP_TO_ITSELF = b"\xeb\xfe"
FAULT_WORD = "kexec_fleet_lab.fault="  # read by guest/initramfs-init.sh and guest/net-up.sh


class Nothing(Fault):
    """No fault: it has always struck."""

    def __init__(self, _spec: spec.NoFault) -> None: ...

    def before(self, context: FaultContext) -> None:
        context.findings["done"] = True


class DirtyArea(Fault):
    """The area's pages hold a pattern when the kernel takes them for the image."""

    def __init__(self, wanted: spec.DirtyAreaFault) -> None:
        self.rounds = wanted.rounds

    def before(self, context: FaultContext) -> None:
        told = context.guest.program("fault_memory.py", "dirty", str(self.rounds), seconds=900)
        context.log.write(f"user pages filled the area: {told}")
        total, least = told.get("cma_total_kb", 0), told.get("least_free_kb", 0)
        context.findings |= told
        share = 1 - least / total if total else 0.0
        how = "of the area was given to user pages"
        if context.vm.config.shared_memory:
            share, how = self._soiled(context), "of the area's pages hold the pattern now, nobody's any more"
        context.findings["soiled_share"] = round(share, 3)
        if share > ENOUGH:
            context.done(f"{share:.0%} {how}")

    def _soiled(self, context: FaultContext) -> float:
        """The part of the area whose pages hold the pattern, as this machine sees it in the guest's RAM."""
        match = AREA.search(context.guest.run("dmesg"))
        if match is None:
            return 0.0
        size, first = int(match[1]) << 20, int(match[2], 16)
        with ram.opened(context.vm) as memory:
            pages = range(first, first + size, ram.PAGE)
            return sum(memory[page] == PATTERN == memory[page + ram.PAGE - 1] for page in pages) / len(pages)


class PinCma(Fault):
    """Pages that cannot be migrated away lie in the area."""

    def __init__(self, wanted: spec.PinCmaFault) -> None:
        self.every = parse_size(wanted.every, "every")

    def before(self, context: FaultContext) -> None:
        log = context.guest.start("fault_memory.py", "pin", str(self.every))
        told = context.guest.await_json(log, READY_SECONDS, context.stop.is_set)
        context.log.write(f"pinned: {told}")
        if told and told["largest_gap"] <= max(LARGEST_GAP, 2 * self.every):
            context.done(f"{told['pinned']} of {told['parts']} parts of the area hold a pinned page", **told)

    def after(self, context: FaultContext) -> None:
        _end(context)


class FillMemory(Fault):
    """Little memory is left, and stays so."""

    def __init__(self, wanted: spec.FillMemoryFault) -> None:
        self.leave = parse_size(wanted.leave, "leave")

    def before(self, context: FaultContext) -> None:
        log = context.guest.start("fault_memory.py", "fill", str(self.leave))
        told = context.guest.await_json(log, READY_SECONDS, context.stop.is_set)
        if told:
            context.done(f"{told.get('available_kb')} KiB are left available", **told)

    def after(self, context: FaultContext) -> None:
        _end(context)


def _end(context: FaultContext) -> None:
    """Ends the program that told its pid, where it is still there: a jump has ended it too."""
    if pid := context.findings.get("pid"):
        context.guest.run(f"grep -qs fault_memory /proc/{pid}/cmdline && kill {pid} || true")


class Watched(Fault):
    """A program on the guest strikes at its moment, and says so on the console."""

    def start(self, context: FaultContext, action: str, parameter: str) -> None:
        context.guest.start("fault_watch.py", action, parameter)
        context.log.write(f"waiting on the guest: {action} {parameter}")

    def during(self, context: FaultContext) -> None:
        context.done(context.wait_console_mark())


class KillLoad(Watched):
    """Afterwards it is seen whether pages of the area are gone."""

    def __init__(self, wanted: spec.KillLoadFault) -> None:
        self.seconds = wanted.after

    def before(self, context: FaultContext) -> None:
        context.findings["pages_before"] = context.available_pages()
        self.start(context, "kill-load", str(self.seconds))

    def during(self, context: FaultContext) -> None:
        super().during(context)
        # Of the same boot: the next attempt goes on while we ask, so its own image is not yet in the area.
        text = context.wait_console_mark()
        before, _, after = text.rpartition("available ")[2].partition(" -> ")
        if before.isdigit() and after.isdigit():
            context.findings["leaked_pages"] = int(before) - int(after)
            context.findings["leaked"] = int(after) < int(before)


class RebootBetween(Watched):
    """Somebody else reboots once an image is loaded."""

    def __init__(self, wanted: spec.RebootFault) -> None:
        self.how = wanted.how

    def before(self, context: FaultContext) -> None:
        self.start(context, f"reboot-{self.how.replace('_', '-')}", "0")


class KillKeeper(Watched):
    """The jump that was told never happens."""

    def __init__(self, _wanted: spec.KillKeeperFault) -> None: ...

    def before(self, context: FaultContext) -> None:
        self.start(context, "kill-told", "0")


class CorruptStaged(Watched):
    """The file is whole when it was staged, and is not when it is loaded."""

    def __init__(self, wanted: spec.CorruptStagedFault) -> None:
        self.file = wanted.file

    def before(self, context: FaultContext) -> None:
        path = context.target.image if self.file == "kernel" else context.target.initrd
        self.start(context, "corrupt", f"{ARTIFACTS}/{sha256_of(path)}")


class Sysctl(Fault):
    """Only a reboot takes it back, and the next run of a scenario begins with one."""

    def __init__(self, _wanted: spec.SysctlFault) -> None: ...

    def before(self, context: FaultContext) -> None:
        told = context.guest.run(
            "echo 1 > /proc/sys/kernel/kexec_load_disabled && cat /proc/sys/kernel/kexec_load_disabled"
        )
        if told.strip() == "1":
            context.done("kexec_load_disabled is 1")


class HangImage(Fault):
    """The kernel's first 64-bit instruction, where purgatory jumps to, jumps to itself."""

    def __init__(self, _wanted: spec.HangImageFault) -> None: ...

    def image(self, target: TargetFiles, folder: Path) -> TargetFiles:
        path = folder / "vmlinuz-that-hangs"
        path.write_bytes(hang_at_entry(target.image.read_bytes()))
        return TargetFiles(path, target.initrd)

    def before(self, context: FaultContext) -> None:
        context.done("the image's 64-bit entry jumps to itself")


def hang_at_entry(image: bytes) -> bytes:
    """A bzImage with its 64-bit entry replaced. Raises LabError where it has none."""
    if image[0x202:0x206] != b"HdrS" or len(image) < 0x1000:
        raise LabError("the target is no bzImage: its entry cannot be patched", hint="hang_image is for x86")
    (setup_sectors,) = struct.unpack_from("<B", image, SETUP_SECTS)
    entry = ((setup_sectors or 4) + 1) * SECTOR + ENTRY_64
    return image[:entry] + JUMP_TO_ITSELF + image[entry + len(JUMP_TO_ITSELF) :]


class NewKernelFault(Fault):
    """The new kernel's user space does something wrong: a word on its command line says what."""

    word: ClassVar[str]
    mark: ClassVar[str]  # what its console shows when it strikes

    def __init__(self, _wanted: object) -> None: ...

    def words(self) -> Sequence[str]:
        return (FAULT_WORD + self.word,)

    def during(self, context: FaultContext) -> None:
        while True:
            ended = context.stop.wait(0.5)
            if self.mark in console.read_all(context.vm.console_path):
                context.done(f"the console says {self.mark!r}")
                return
            if ended:
                return


class Panic(NewKernelFault):
    word, mark = "panic", "kexec-fleet-lab: fault: panic"


class HangInitramfs(NewKernelFault):
    word, mark = "hang", "kexec-fleet-lab: fault: hang"


class NoNetwork(NewKernelFault):
    word, mark = "nonet", "kexec-fleet-lab: fault: no network"


class PowerFailure(Fault):
    """QEMU is killed as if the power had failed, and started again."""

    def __init__(self, wanted: spec.KillVmFault) -> None:
        self.phase = wanted.phase

    def during(self, context: FaultContext) -> None:
        later = [phase for phase in Phase if phase in (self.phase, *_AFTER.get(self.phase, ()))]
        context.journal.wait_phase(*later)
        context.vm.kill()
        context.done(f"power off in phase {self.phase}")
        time.sleep(1.0)
        context.vm.start()
        context.log.write("power on")


# Phases that follow so quickly that a watcher may see them instead.
_AFTER: dict[Phase, tuple[Phase, ...]] = {
    Phase.STAGED: (Phase.LOADED, Phase.ARMED),
    Phase.LOADED: (Phase.ARMED,),
}

_FAULTS: dict[type, type] = {
    spec.NoFault: Nothing,
    spec.DirtyAreaFault: DirtyArea,
    spec.ScribbleFault: Scribble,
    spec.PinCmaFault: PinCma,
    spec.KillLoadFault: KillLoad,
    spec.RebootFault: RebootBetween,
    spec.KillKeeperFault: KillKeeper,
    spec.CorruptStagedFault: CorruptStaged,
    spec.SysctlFault: Sysctl,
    spec.FillMemoryFault: FillMemory,
    spec.HangImageFault: HangImage,
    spec.PanicFault: Panic,
    spec.HangInitramfsFault: HangInitramfs,
    spec.NoNetworkFault: NoNetwork,
    spec.KillVmFault: PowerFailure,
}


def make_fault(wanted: spec.FaultSpec) -> Fault:
    """The fault that a scenario asks for."""
    made = _FAULTS[type(wanted)](wanted)
    assert isinstance(made, Fault)
    return made
