"""Kernel log lines that tell of damage, as data: what they look like, how bad they are, who prints them.

Files and texts are those of Linux 6.12 to 7.3. A `suspect` line may have a harmless cause or one outside the
host (a hypervisor that starves it, a corrected bit): the verdict is inconclusive, a human decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a new line of that kind makes of the check."""

    FAILURE = "failure"
    SUSPECT = "suspect"


@dataclass(frozen=True)
class Pattern:
    """One kind of line. `reference`: the kernel's file that prints it."""

    name: str
    expression: re.Pattern[str]
    severity: Severity
    reference: str


def _failure(name: str, expression: str, reference: str) -> Pattern:
    return Pattern(name, re.compile(expression), Severity.FAILURE, reference)


def _suspect(name: str, expression: str, reference: str) -> Pattern:
    return Pattern(name, re.compile(expression), Severity.SUSPECT, reference)


INITRAMFS_FAILED = _failure(
    "initramfs",
    r"Initramfs unpacking failed|rootfs image is not initramfs|junk within compressed archive",
    "init/initramfs.c",
)

# The first that matches names the line, so the narrower kinds come first.
PATTERNS = (
    _suspect(
        "soft lockup", r"BUG: soft lockup|BUG: workqueue lockup", "kernel/watchdog.c, kernel/workqueue.c"
    ),
    _suspect("hard lockup", r"Watchdog detected hard LOCKUP", "kernel/watchdog.c"),
    _suspect(
        "RCU stall",
        r"\bINFO: \S+ (?:self-detected stall|detected (?:expedited )?stalls)",
        "kernel/rcu/tree_stall.h, kernel/rcu/tasks.h",
    ),
    _suspect("hung task", r"blocked (?:in I/O wait )?for more than \d+ seconds", "kernel/hung_task.c"),
    _suspect("out of memory", r"^Out of memory: |Memory cgroup out of memory: ", "mm/oom_kill.c"),
    _failure("bad page", r"BUG: Bad (?:page|rss-counter)", "mm/page_alloc.c, mm/memory.c, kernel/fork.c"),
    _failure(
        "bug", r"\bBUG: |\bkernel BUG at |\bBUG \S+ \((?:Not t|T)ainted", "lib/bug.c, mm/fault.c, mm/slub.c"
    ),
    _failure(
        "oops",
        r"\bOops: |\bOops\[#|^general protection fault|Unable to handle kernel|^Internal error: ",
        "arch/*/kernel/traps.c, dumpstack.c, arch/*/mm/fault.c",
    ),
    # The two forms of __warn (the second since 6.19), and lockdep's and RCU's. "WARNING: " alone also begins
    # advice about mitigations and firmware.
    _failure(
        "warning",
        r"\bWARNING: (?:CPU: \d+ PID: \d+ at |\S+:\d+ at |at \S+\+0x|possible |suspicious |inconsistent )",
        "kernel/panic.c, kernel/locking/lockdep.c",
    ),
    _failure("list corruption", r"\blist_(?:add|del) corruption", "lib/list_debug.c"),
    _failure("user copy", r"usercopy: Kernel memory (?:exposure|overwrite) attempt", "mm/usercopy.c"),
    _failure("UBSAN", r"\bUBSAN: ", "lib/ubsan.c"),
    _failure("memory failure", r"^Memory failure: 0x", "mm/memory-failure.c"),
    _suspect("corrected AER", r"PCIe Bus Error: severity=Correct", "drivers/pci/pcie/aer.c"),
    _failure("AER", r"PCIe Bus Error: severity=", "drivers/pci/pcie/aer.c"),
    _suspect("corrected EDAC", r"EDAC \S+: \d+ CE\b", "drivers/edac/edac_mc.c"),
    _failure("EDAC", r"EDAC \S+: \d+ UE\b", "drivers/edac/edac_mc.c"),
    # "[Hardware Error]" alone also begins remarks about a TPM's timeouts and records of an earlier boot.
    _suspect(
        "corrected machine check",
        r"Machine check events logged"
        r"|\[Hardware Error\]: (?:event severity: (?:corrected|info)|Corrected|Deferred)",
        "arch/x86/kernel/cpu/mce/core.c, drivers/firmware/efi/cper.c, drivers/edac/mce_amd.c",
    ),
    _failure(
        "machine check",
        r"\[Hardware Error\]: (?:CPU \d+: )?"
        r"(?:Machine [Cc]heck|event severity: |Uncorrected|System Fatal|GHES: )",
        "arch/x86/kernel/cpu/mce/core.c, drivers/acpi/apei/ghes.c, drivers/edac/mce_amd.c",
    ),
    _failure(
        "IOMMU fault",
        r"DMAR: \[.*fault addr|AMD-Vi: Event logged|arm-smmu.*(?:context fault|event 0x)",
        "drivers/iommu/intel/dmar.c, amd/iommu.c, arm/",
    ),
    _failure("interrupt", r"^irq \d+: nobody cared", "kernel/irq/spurious.c"),
    _failure("network transmit", r"NETDEV WATCHDOG: ", "net/sched/sch_generic.c"),
    INITRAMFS_FAILED,
    _failure("I/O error", r"\bI/O error\b", "block/blk-core.c, fs/buffer.c"),
    _failure(
        "file system",
        r"EXT4-fs error|Remounting filesystem read-only|XFS \(\S+\): .*(?:[Cc]orruption|Internal error|shut)"
        r"|BTRFS (?:error|critical)",
        "fs/ext4/super.c, fs/xfs/xfs_error.c, fs/btrfs/messages.c",
    ),
    _failure("module version", r"disagrees about version of symbol", "kernel/module/version.c"),
)
