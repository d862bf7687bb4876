"""Which kernel is this, which boot, and how it was asked for."""

from typing import Any, Dict

from workers.hostagent import kernelinfo
from workers.hostagent.environment import Environment
from workers.hostagent.files import read_line


def collect(env: Environment, _args: Dict[str, Any]) -> Dict[str, Any]:
    """-> {"cmdline", "boot_id", "release", "version", "build_id", "uptime_s", "kexec_loaded"}."""
    return {
        "cmdline": read_line(env.proc + "/cmdline"),
        "boot_id": env.boot_id(),
        "release": read_line(env.proc + "/sys/kernel/osrelease"),
        "version": read_line(env.proc + "/sys/kernel/version"),
        "build_id": kernelinfo.build_id(env),
        "uptime_s": kernelinfo.uptime(env),
        "kexec_loaded": env.kexec_loaded(),
    }
