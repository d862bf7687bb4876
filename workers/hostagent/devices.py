"""Processors, memory nodes, network, PCI and block devices as /sys shows them, each with its driver."""

import os
from typing import Any, Dict, List, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.files import link_name, names, read_int, read_line, read_text


def cpus(env: Environment) -> Dict[str, Any]:
    """{"online", "present", "possible": range lists such as "0-3", "count": processors online}."""
    base = env.sys + "/devices/system/cpu/"
    ranges: Dict[str, Any] = {name: read_line(base + name) for name in ("online", "present", "possible")}
    ranges["count"] = count_of(ranges["online"])
    return ranges


def count_of(ranges: Optional[str]) -> Optional[int]:
    """ "0-3,8" -> 5 (Documentation/admin-guide/cputopology.rst); None for None."""
    if ranges is None:
        return None
    total = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            total += int(last or first) - int(first) + 1
    return total


def nodes(env: Environment) -> Dict[str, Optional[int]]:
    """{"node0": MemTotal in KiB} for each NUMA node."""
    found: Dict[str, Optional[int]] = {}
    base = env.sys + "/devices/system/node"
    for name in names(base):
        if name.startswith("node") and name[4:].isdigit():
            text = read_text("{}/{}/meminfo".format(base, name)) or ""
            sizes = [line.split()[-2] for line in text.splitlines() if "MemTotal:" in line]
            found[name] = int(sizes[0]) if sizes else None
    return found


def net(env: Environment) -> Dict[str, Dict[str, Any]]:
    """{interface: {"mac", "operstate", "carrier", "mtu", "speed", "driver", "bus"}}; None where not known."""
    base = env.sys + "/class/net"
    found: Dict[str, Dict[str, Any]] = {}
    for name in names(base):
        device = "{}/{}".format(base, name)
        if not os.path.isdir(device):
            continue  # bonding_masters is a file
        found[name] = {
            "mac": read_line(device + "/address"),
            "operstate": read_line(device + "/operstate"),
            "carrier": read_int(device + "/carrier"),
            "mtu": read_int(device + "/mtu"),
            "speed": read_int(device + "/speed"),
            "driver": link_name(device + "/device/driver"),
            "bus": link_name(device + "/device"),
        }
    return found


def pci(env: Environment) -> Dict[str, Dict[str, Any]]:
    """{address: {"vendor", "device", "class": hex text as in /sys, "driver": name or None}}."""
    base = env.sys + "/bus/pci/devices"
    found: Dict[str, Dict[str, Any]] = {}
    for name in names(base):
        device = "{}/{}".format(base, name)
        found[name] = {key: read_line(device + "/" + key) for key in ("vendor", "device", "class")}
        found[name]["driver"] = link_name(device + "/driver")
    return found


def block(env: Environment) -> Dict[str, Dict[str, Any]]:
    """{name: {"bytes", "read_only", "driver", "model", "serial"}}; memory-backed devices left out."""
    base = env.sys + "/block"
    found: Dict[str, Dict[str, Any]] = {}
    for name in names(base):
        if name.startswith(("loop", "ram", "zram")):
            continue
        device = "{}/{}".format(base, name)
        sectors = read_int(device + "/size")
        found[name] = {
            "bytes": None
            if sectors is None
            else sectors * 512,  # always 512: Documentation/ABI/stable/sysfs-block
            "read_only": read_int(device + "/ro"),
            "driver": link_name(device + "/device/driver") or link_name(device + "/device/device/driver"),
            "model": read_line(device + "/device/model"),
            "serial": read_line(device + "/serial") or read_line(device + "/device/serial"),
        }
    return found


def mounts(env: Environment) -> List[Dict[str, str]]:
    """[{"source", "target", "type", "options"}] of the root and of file systems on devices (proc(5))."""
    found = []
    for line in (read_text(env.proc + "/mounts") or "").splitlines():
        words = line.split()
        if len(words) >= 4 and (words[0].startswith("/") or words[1] == "/"):
            found.append({"source": words[0], "target": words[1], "type": words[2], "options": words[3]})
    return found


def default_routes(env: Environment) -> List[str]:
    """Interfaces with an IPv4 default route, sorted (/proc/net/route: destination and mask are 0)."""
    found = set()
    for line in (read_text(env.proc + "/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == "00000000" and words[7] == "00000000":
            found.add(words[0])
    return sorted(found)
