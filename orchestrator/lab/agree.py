"""What is asked of a lab against what is there: refused before anything is made, never silently ignored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import InputError, SetupError
from orchestrator.lab import progress as say
from orchestrator.lab.kernels import matches
from orchestrator.lab.spec import INIT_WORD, HostSpec, LabOptions, parse_size
from orchestrator.lab.state import LabState
from orchestrator.lab.vm import VmConfig

# A guest of 1 GB was seen to cost about 300 MB; page cache and a loaded image come on top.
REAL_SHARE = 0.45


def new_hosts(
    state: LabState | None, specs: Sequence[HostSpec] | None, options: LabOptions, lab: str
) -> list[HostSpec] | None:
    """Those that the lab does not have; None: the default fleet. A host that is there cannot be changed in
    place: another kernel for it, or another size that the user gave, is refused. Who names no host means all
    that the lab has."""
    if state is None:
        return None if specs is None else list(specs)
    there = {vm.host: vm for vm in state.vms}
    hint = f"take another name, or `kexec-fleet lab down --name {lab}` first"
    for spec in specs or ():
        vm = there.get(spec.name)
        if vm is not None and spec.kernel != vm.kernel_spec and not matches(vm.release, spec.kernel):
            raise InputError(
                f"host {spec.name!r} was made with kernel {vm.release}, not {spec.kernel}", hint=hint
            )
    named = there if specs is None else [spec.name for spec in specs if spec.name in there]
    complaints = [text for name in named if (text := _disagreement(there[name], options))]
    if complaints:
        raise InputError("; ".join(complaints), hint=hint)
    return [spec for spec in specs or () if spec.name not in there]


def _disagreement(vm: VmConfig, options: LabOptions) -> str:
    """Only about what the user gave; empty when the VM is as asked."""
    made_cma, made_init = _word(vm.cmdline, "cma="), _word(vm.cmdline, INIT_WORD)
    pairs = {
        "memory": (f"{vm.memory >> 20}M", f"{options.memory >> 20}M", vm.memory == options.memory),
        "cma": (made_cma or "none", options.cma or "none", _bytes(made_cma) == _bytes(options.cma)),
        "cpus": (str(vm.cpus), str(options.cpus), vm.cpus == options.cpus),
        "init": (made_init, str(options.init), made_init == options.init),
        "shared_memory": (
            _word_for(vm.shared_memory),
            _word_for(options.shared_memory),
            vm.shared_memory == options.shared_memory,
        ),
    }
    different = [key for key, (_, _, same) in pairs.items() if key in options.given and not same]
    if not different:
        return ""
    made = " ".join(f"--{key.replace('_', '-')} {pairs[key][0]}" for key in different)
    asked = " ".join(f"--{key.replace('_', '-')} {pairs[key][1]}" for key in different)
    return f"host {vm.host!r} was made with {made}, not {asked}"


def _word_for(value: bool) -> str:
    return "yes" if value else "no"


def _word(cmdline: str, start: str) -> str:
    return next((word.removeprefix(start) for word in cmdline.split() if word.startswith(start)), "")


def _bytes(cma: str) -> int | str:
    """Sizes compare as sizes; a word that came in by --append may be anything."""
    try:
        return parse_size(cma, "cma") if cma else 0
    except InputError:
        return cma


def check_inventory_place(inventory: Path | None) -> None:
    """Whether it can be written, before the VMs are booted."""
    if inventory is None:
        return
    place = inventory.absolute()
    if not place.parent.is_dir():
        raise InputError(
            f"the inventory {inventory} cannot be written: there is no folder {place.parent}",
            hint="make the folder first, or name another",
        )
    if place.is_dir():
        raise InputError(f"the inventory {inventory} is a folder", hint="name a file in it")
    if not os.access(place.parent, os.W_OK):
        raise InputError(
            f"the inventory {inventory} cannot be written: you may not write to {place.parent}",
            hint="name another folder",
        )


def check_memory(count: int, memory: int, progress: say.Progress) -> None:
    available = read_available_memory()
    whole, likely = count * memory, int(count * memory * REAL_SHARE)
    text = f"{count} VMs of {memory >> 20} MiB; this machine has {available >> 20} MiB available"
    if available < likely:
        raise SetupError(f"not enough memory for {text}", hint="use fewer --hosts or less --memory")
    if available < whole:
        say.notice(progress, f"memory is tight for {text}")


def read_available_memory(source: Path = Path("/proc/meminfo")) -> int:
    for line in source.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
