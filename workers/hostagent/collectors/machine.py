"""The hardware as this kernel sees it, to be compared with what the one before saw."""

from typing import Any, Dict

from workers.hostagent import cma, devices
from workers.hostagent.environment import Environment
from workers.hostagent.files import read_line


def collect(env: Environment, _args: Dict[str, Any]) -> Dict[str, Any]:
    """-> {"cpus", "memory": {name: KiB}, "nodes", "net", "pci", "block", "mounts", "cma", "clocksource",
    "default_routes"}; shapes in devices.py."""
    memory = cma.meminfo(env)
    return {
        "cpus": devices.cpus(env),
        "memory": {name: memory.get(name) for name in ("MemTotal", "MemAvailable", "CmaTotal", "CmaFree")},
        "nodes": devices.nodes(env),
        "net": devices.net(env),
        "pci": devices.pci(env),
        "block": devices.block(env),
        "mounts": devices.mounts(env),
        "cma": cma.counters(env),
        "clocksource": read_line(env.sys + "/devices/system/clocksource/clocksource0/current_clocksource"),
        "default_routes": devices.default_routes(env),
    }
