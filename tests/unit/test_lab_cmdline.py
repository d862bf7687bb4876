"""A guest's own command line: what it needs to be itself again must outlive a rollout that reuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.cmdline import new_command_line
from orchestrator.domain.playbook import CommandLine
from orchestrator.domain.words import split_words
from orchestrator.lab.evidence import KernelCapabilities
from orchestrator.lab.fleet import LabFleet, Prepared
from orchestrator.lab.initramfs import Initramfs
from orchestrator.lab.kernels import KernelSource, LabKernel
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.pstore import ramoops_words
from orchestrator.lab.spec import HostSpec, InitKind, LabOptions

ABILITIES = KernelCapabilities(kexec_file=None, cma=None, no_cma_flag=None)
KERNEL = LabKernel("9.9.9", Path("/vmlinuz"), None, None, "", ABILITIES, KernelSource.FILE)


def command_line(options: LabOptions) -> str:
    fleet = LabFleet("a", LabPaths.of("a"))
    prepared = Prepared(KERNEL, Initramfs(Path("/initrd"), 1))
    return fleet._configure(HostSpec("web1", "9.9"), prepared, options, "tcg", (1, 2)).cmdline


@pytest.mark.parametrize("init", list(InitKind))
def test_a_rollout_keeps_what_makes_the_guest(init: InitKind) -> None:
    """The names of the rollout's own words begin with "kexec_fleet.", and go with the next rollout."""
    line = command_line(LabOptions(init=init))
    assert f"kexec_fleet_lab.init={init}" in split_words(line)
    kept = split_words(new_command_line(line, CommandLine(), "n", (), 2000))
    assert set(split_words(line)) <= set(kept)


def test_only_a_guest_with_systemd_gives_memory_for_pstore() -> None:
    assert "ramoops" not in command_line(LabOptions())
    assert "ramoops.max_reason=4" in split_words(command_line(LabOptions(init=InitKind.SYSTEMD)))


@pytest.mark.parametrize("memory", [512 << 20, 1 << 30, 2 << 30, 3 << 30, 16 << 30])
def test_the_memory_for_pstore_lies_in_ram_and_is_reserved_whole(memory: int) -> None:
    words = dict(word.split("=", 1) for word in ramoops_words(memory))
    address, size = int(words["ramoops.mem_address"], 0), int(words["ramoops.mem_size"], 0)
    assert words["memmap"] == f"{size // 1024}K${address:#x}"
    assert address % 4096 == 0 and size % 4096 == 0
    # QEMU's pc: RAM without a hole up to 3 GiB, the firmware's tables in its last MiB.
    assert address > 128 << 20 and address + size < min(memory, 3 << 30) - (1 << 20)
    assert int(words["ramoops.record_size"], 0) <= size
