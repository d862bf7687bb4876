"""This boot's kernel log: warnings and worse, and the lines that tell of a damaged start."""

import re
from typing import Any, Dict, List

from workers.hostagent.environment import Environment
from workers.hostagent.files import read_int
from workers.hostagent.kmsg import KernelLog, level, sequence, text

_WARNING = 4
# Lines of any level that a judge wants to see. The message texts are the kernel's own (lib/, mm/,
# init/initramfs.c, kernel/dma/contiguous.c, mm/mm_init.c of Linux 6.12 to 7.3).
_INTERESTING = re.compile(
    "|".join(
        (
            r"[Ii]nitramfs|initrd|\bcma:|kexec|mem auto-init|^Memory: |^DMI: |[Kk]ernel command line",
            r"\bBUG\b|WARNING:|Oops|Bad page|Bad rss|list_(add|del) corruption|UBSAN|KASAN|KFENCE",
            r"general protection|Call Trace|soft lockup|hard LOCKUP|rcu.*stall|hung_task",
            r"\bMCE\b|mce:|Machine [Cc]heck|EDAC|AER:|DMAR|IOMMU|AMD-Vi|nobody cared|NETDEV WATCHDOG",
            r"Kernel panic|blocked for more than",
            r"[Rr]emounting filesystem read-only|EXT4-fs error|XFS.*([Ee]rror|[Cc]orruption)|I/O error",
            r"clocksource|tsc:|smpboot:|Brought up",
        )
    )
)
_MOST_BYTES = 256 << 10


def collect(env: Environment, args: Dict[str, Any]) -> Dict[str, Any]:
    """args {"bytes": bound of the lines sent, "all": true for every line}.

    -> {"lines": ["prio,seq,usec,flags;text"], "total": records in the ring, "first_seq", "wrapped": the ring
    has lost its beginning, "complete": read without a gap, "truncated": the bound cut lines off, "taint":
    int or None}.
    """
    bound = args.get("bytes", _MOST_BYTES)
    with KernelLog(env.dev_kmsg, from_now=False) as log:
        everything = log.read(64 << 20)
    wanted: List[str] = []
    used, truncated = 0, False
    for line in everything.lines:
        if not args.get("all") and level(line) > _WARNING and not _INTERESTING.search(text(line)):
            continue
        used += len(line) + 1
        if used > bound:
            truncated = True
            break
        wanted.append(line)
    first = sequence(everything.lines[0]) if everything.lines else None
    return {
        "lines": wanted,
        "total": len(everything.lines),
        "first_seq": first,
        # Sequence numbers begin at 0 with every boot (kernel/printk/printk_ringbuffer.c).
        "wrapped": first != 0,
        "complete": everything.complete,
        "truncated": truncated,
        "taint": read_int(env.proc + "/sys/kernel/tainted"),
    }
