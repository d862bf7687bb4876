"""The kernel that a VM's firmware boots: QEMU's -kernel, which is to a lab what a boot loader's default is.

QEMU reads the files when it starts, so a new default holds from the VM's next power-on; a mere reset boots
what the running QEMU was started with.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.domain.bootimage import HEAD_BYTES, BootImageError, parse_header
from orchestrator.domain.errors import InputError
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.paths import locked
from orchestrator.lab.state import LabState, read_state, write_state


def set_boot_default(fleet: LabFleet, host: str, image: Path, initrd: Path) -> tuple[str, str]:
    """Let the host's firmware boot these files from the next power-on; the releases before and after.

    Raises InputError where there is no such host, or the files are no kernel and initrd.
    """
    fleet.vm(host)
    release = _release(image)
    if not initrd.is_file():
        raise InputError(f"no initrd at {initrd}", hint="name the initrd that belongs to the kernel")
    with locked(fleet.paths.lock):
        state = read_state(fleet.paths)
        if state is None:
            raise InputError(f"there is no lab {fleet.name!r}", hint="kexec-fleet lab up")
        before = next(vm.release for vm in state.vms if vm.host == host)
        changed = {"vmlinuz": str(image.absolute()), "initrd": str(initrd.absolute()), "release": release}
        vms = tuple(replace(vm, **changed) if vm.host == host else vm for vm in state.vms)  # type: ignore[arg-type]
        write_state(fleet.paths, LabState(state.target, vms))
    return before, release


def _release(image: Path) -> str:
    try:
        with image.open("rb") as file:
            header = parse_header(file.read(HEAD_BYTES), image.stat().st_size)
    except OSError as error:
        raise InputError(f"cannot read {image}: {error.strerror}", hint="name a kernel image") from error
    except BootImageError as error:
        raise InputError(f"{image}: {error.message}", hint=error.hint) from error
    if header.release is None:
        raise InputError(f"{image} does not tell its release", hint="name a bzImage with its version text")
    return header.release
