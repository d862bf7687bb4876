"""Is the system going down, and the inhibitor that keeps others from taking it down under a loaded image."""

import subprocess
from typing import Any, Dict, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.files import read_text
from workers.hostagent.processes import run


def state(env: Environment, seconds: float = 5.0) -> Dict[str, Any]:
    """-> {"under_way": bool, "why": str, "scheduled": text of /run/systemd/shutdown/scheduled or None}.

    Where systemd does not answer, a shutdown counts as under way: "nothing will happen" must not be a guess.
    Without systemd nobody can be asked: a shutdown there is under way only when it is the init itself that
    does it.
    """
    scheduled = read_text(env.run_systemd + "/shutdown/scheduled")
    init = env.init()
    if init == "systemd-shutdow":  # 15 characters of systemd-shutdown, TASK_COMM_LEN
        return {"under_way": True, "why": "systemd-shutdown is running", "scheduled": scheduled}
    if not env.has_systemd():
        return {"under_way": False, "why": "", "scheduled": scheduled}
    # systemctl(1): "stopping" while a job for shutdown.target is queued.
    status, text = run([env.systemctl, "is-system-running"], seconds)
    word = text.strip()
    if status is None or word in ("", "offline", "unknown"):
        return {"under_way": True, "why": "systemd does not answer: " + word, "scheduled": scheduled}
    if word == "stopping":
        return {"under_way": True, "why": "systemd is stopping the system", "scheduled": scheduled}
    if _logind_waits(env, seconds):
        return {"under_way": True, "why": "logind waits for its inhibitors", "scheduled": scheduled}
    return {"under_way": False, "why": "", "scheduled": scheduled}


def _logind_waits(env: Environment, seconds: float) -> bool:
    """Whether logind has taken a shutdown and lets its delay inhibitors end first, up to InhibitDelayMaxSec
    (logind.conf(5)): systemd knows nothing of it yet. Without logind there is nobody to wait."""
    manager = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
    _, text = run([env.busctl, "--system", "get-property"] + manager + ["PreparingForShutdown"], seconds)
    return text.strip() == "b true"


class Inhibitor(object):
    """A child that holds systemd's shutdown lock while an image is loaded that nobody told to jump yet.

    `systemctl reboot` kexecs into whatever is loaded. The child reads a pipe of ours: when we die, however
    we die, it ends and the lock is gone. It is a help, never a condition: hosts without logind have none.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._child: Optional[Any] = None

    def take(self) -> None:
        if self._child is not None or not self._env.has_systemd():
            return
        argv = [self._env.systemd_inhibit, "--what=shutdown", "--mode=block", "--who=kexec-fleet"]
        argv += ["--why=a kernel is loaded for kexec and not yet approved", "cat"]
        try:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._child = None

    def drop(self, wait: bool = True) -> None:
        """Lets others shut down again; with `wait`, returns when logind has seen it."""
        if self._child is None:
            return
        self._child.stdin.close()
        if not wait:
            return
        try:
            self._child.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._child = None
