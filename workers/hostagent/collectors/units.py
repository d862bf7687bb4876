"""Units that systemd calls failed."""

from typing import Any, Dict

from workers.hostagent import kernelinfo, shutdown
from workers.hostagent.environment import Environment
from workers.hostagent.processes import run


def collect(env: Environment, _args: Dict[str, Any]) -> Dict[str, Any]:
    """-> {"init", "failed": [unit] or None without systemd, "state": of `systemctl is-system-running` or
    None, "jobs": how many units are still starting or None, "shutdown": {...}}."""
    state = None
    if env.has_systemd():
        _, text = run([env.systemctl, "is-system-running"], 10.0)
        state = text.strip() or None
    return {
        "init": env.init(),
        "failed": kernelinfo.failed_units(env),
        "state": state,
        "jobs": kernelinfo.jobs(env),
        "shutdown": shutdown.state(env),
    }
