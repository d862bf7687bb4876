"""Everything that a decision about this host may need, in one answer (parsed by the domain's facts.py)."""

import os
import platform
from typing import Any, Dict, List

from workers.hostagent import cma, counter, devices, kernelinfo, kexec
from workers.hostagent.environment import Environment
from workers.hostagent.files import read_int, read_line, read_text
from workers.hostagent.kmsg import KernelLog, text

# The flags of /proc/cpuinfo that decide something here.
_CPU_FLAGS = (
    "constant_tsc",
    "nonstop_tsc",
    "tsc_known_freq",
    "hypervisor",
    "rdtscp",
    "sha_ni",
    "erms",
    "avx2",
)


def collect(env: Environment, with_devices: bool) -> Dict[str, Any]:
    """The keys are listed in docs/agent-protocol.md, "Facts"; what cannot be read is None."""
    release = read_line(env.proc + "/sys/kernel/osrelease") or platform.release()
    flags = counter.cpu_flags(read_text(env.proc + "/cpuinfo", 1 << 16) or "")
    found = {
        "boot_id": env.boot_id(),
        "release": release,
        "version": read_line(env.proc + "/sys/kernel/version"),
        "machine": platform.machine(),
        "hostname": read_line(env.proc + "/sys/kernel/hostname"),
        "cmdline": read_line(env.proc + "/cmdline"),
        "uptime_s": kernelinfo.uptime(env),
        "python": platform.python_version(),
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "init": env.init(),
        "virt": kernelinfo.virt(env, flags),
        "cpus": devices.cpus(env),
        "cpu_flags": [name for name in _CPU_FLAGS if name in flags],
        "clocksource": kernelinfo.clocksource(env),
        "meminfo": read_text(env.proc + "/meminfo"),
        "nodes": devices.nodes(env),
        "taint": read_int(env.proc + "/sys/kernel/tainted"),
        "lockdown": kernelinfo.lockdown(env),
        "secure_boot": kernelinfo.secure_boot(env),
        "config": kernelinfo.config(env, release),
        "notes_build_id": kernelinfo.build_id(env),
        "pstore": kernelinfo.pstore(env),
        "failed_units": kernelinfo.failed_units(env),
        "mounts": devices.mounts(env),
        "disk_free": _disk_free(env),
    }
    found.update(_kexec(env))
    found.update(_memory(env))
    if with_devices:
        found.update(net=devices.net(env), pci=devices.pci(env), block=devices.block(env))
        found["default_routes"] = devices.default_routes(env)
    return found


def _kexec(env: Environment) -> Dict[str, Any]:
    limit = read_int(env.proc + "/sys/kernel/kexec_load_limit_reboot")
    known, errnos = kexec.probe_flags(env.kernel, limit)
    return {
        "kexec": {
            "loaded": env.kexec_loaded(),
            "crash_loaded": read_int(env.sys + "/kernel/kexec_crash_loaded"),
            "crash_size": read_int(env.sys + "/kernel/kexec_crash_size"),
            "load_disabled": read_int(env.proc + "/sys/kernel/kexec_load_disabled"),
            "load_limit_reboot": limit,
        },
        "flags": known,
        "flag_errnos": errnos,
    }


def _memory(env: Environment) -> Dict[str, Any]:
    """CMA areas and whether fresh pages arrive zeroed: the counters, and the boot log's own words."""
    with KernelLog(env.dev_kmsg, from_now=False) as log:
        lines = [text(line) for line in log.read(64 << 20).lines]
    areas = cma.counters(env)
    areas["boot_log"] = _having(lines, "cma: ")
    automatic = _having(lines, "mem auto-init")
    words = (read_line(env.proc + "/cmdline") or "").split()
    parameters = [word.partition("=")[2] for word in words if word.startswith("init_on_alloc=")]
    return {
        "cma": areas,
        "init_on_alloc": {
            "boot_log": automatic[0] if automatic else None,
            "parameter": parameters[-1] if parameters else None,
        },
        "iomem_ram": _iomem_ram(env),
    }


def _having(lines: List[str], word: str) -> List[str]:
    return [line for line in lines if word in line]


def _iomem_ram(env: Environment) -> List[List[int]]:
    """[[first, last]] physical addresses of "System RAM"; empty where we may not see them (not root)."""
    found = []
    for line in (read_text(env.proc + "/iomem") or "").splitlines():
        span, _, name = line.partition(" : ")
        if name == "System RAM" and not line.startswith(" "):
            first, _, last = span.strip().partition("-")
            if int(last, 16):
                found.append([int(first, 16), int(last, 16)])
    return found


def _disk_free(env: Environment) -> Dict[str, Any]:
    """{"path", "bytes"} of the nearest directory above the artifacts that exists already."""
    path = env.lib_dir
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return {"path": path, "bytes": env.kernel.free_bytes(path)}
