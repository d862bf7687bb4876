"""The contiguous memory areas' counters (CONFIG_CMA_SYSFS) and what /proc/meminfo says of them."""

from typing import Any, Dict

from workers.hostagent.environment import Environment
from workers.hostagent.files import names, read_int, read_text


def meminfo(env: Environment) -> Dict[str, int]:
    """/proc/meminfo as {name: number}; the numbers are KiB (HugePages_* are counts)."""
    values: Dict[str, int] = {}
    for line in (read_text(env.proc + "/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[name] = int(words[0])
    return values


def counters(env: Environment) -> Dict[str, Any]:
    """{"areas": {name: {counter: pages or calls}}, "total_kb", "free_kb"}; None where the kernel says
    nothing.

    Counters: Documentation/ABI/testing/sysfs-kernel-mm-cma, e.g. alloc_pages_success, available_pages,
    total_pages.
    """
    base = env.sys + "/kernel/mm/cma"
    areas: Dict[str, Dict[str, int]] = {}
    for area in names(base):
        values = {}
        for name in names(base + "/" + area):
            number = read_int("{}/{}/{}".format(base, area, name))
            if number is not None:
                values[name] = number
        areas[area] = values
    memory = meminfo(env)
    return {"areas": areas, "total_kb": memory.get("CmaTotal"), "free_kb": memory.get("CmaFree")}
