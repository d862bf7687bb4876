"""A corner of a guest's RAM that outlives a kexec: what the last shutdown hook wrote is read there.

Debian's kernels have no CONFIG_PSTORE_PMSG (6.12 to 7.3, read in their config), so nothing can be written
to pstore directly. They have ramoops (CONFIG_PSTORE_RAM=m), and kernel_kexec() dumps the log as
KMSG_DUMP_SHUTDOWN right before machine_kexec() (kernel/kexec_core.c): what was written to /dev/kmsg comes
along.
"""

from __future__ import annotations

SIZE = 64 << 10
RECORD = 16 << 10  # above pstore's kmsg_bytes (10 KiB), so that one record holds all
SHUTDOWN = 4  # KMSG_DUMP_SHUTDOWN, include/linux/kmsg_dump.h
BELOW_TOP = 16 << 20  # the firmware's tables lie in the last MiB
LOW_MEMORY = 2 << 30  # QEMU's pc has RAM below this without a hole


def ramoops_words(memory: int) -> list[str]:
    """Words for the kernel command line of a guest with `memory` bytes. A rollout reuses them, so the next
    kernel leaves the same place alone, and finds there what this one left."""
    address = min(memory, LOW_MEMORY) - BELOW_TOP
    return [
        f"memmap={SIZE >> 10}K${address:#x}",
        f"ramoops.mem_address={address:#x}",
        f"ramoops.mem_size={SIZE:#x}",
        f"ramoops.record_size={RECORD:#x}",
        f"ramoops.max_reason={SHUTDOWN}",
    ]
