"""The hardware watchdog that is left running over the jump: what does not come up again is reset by it.

Every keepalive is the magic 'V' (Documentation/watchdog/watchdog-api.rst): whoever closes the device after
it, the kernel at our death included, stops the timer. Only a jump leaves it running, since kexec closes
nothing.
"""

import errno
import os
import struct
import threading
from typing import Any, Dict, Optional, Tuple

from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError, errname
from workers.hostagent.files import link_name, read_int, read_line
from workers.hostagent.processes import run
from workers.hostagent.protocol import Request

# include/uapi/linux/watchdog.h: _IOR('W', 0, struct watchdog_info), _IOWR('W', 6, int), _IOR('W', 7, int),
# with asm-generic's numbers, which x86 and arm64 share.
WDIOC_GETSUPPORT = 0x80285700
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
_INFO = struct.Struct("=II32s")  # struct watchdog_info
_INT = struct.Struct("=i")

LEAST, MOST = 5.0, 3600.0  # of a timeout, seconds: a busy host must get its keepalives in
_MOST_PAUSE = 1.0  # between two keepalives, seconds

# What drivers do at SYS_RESTART, which a kexec announces too (kernel_restart_prepare, kernel/reboot.c). These
# call watchdog_stop_on_reboot(); drivers/watchdog: i6300esb.c, iTCO_wdt.c (Linux 6.12).
_STOPPED = ("i6300ESB timer", "iTCO_wdt")
_SOFTWARE = "Software Watchdog"  # drivers/watchdog/softdog.c: a timer of the old kernel, it dies with it
_IPMI = "IPMI"  # drivers/char/ipmi/ipmi_watchdog.c, wdog_reboot_handler: keeps it running


def seconds_of(request: Request) -> Optional[float]:
    """The argument "watchdog" of `arm`: None where it is absent. Raises AgentError `bad_request`."""
    if request.args.get("watchdog") is None:
        return None
    seconds = float(request.arg("watchdog", (int, float)))
    if not LEAST <= seconds <= MOST:
        raise AgentError(
            "bad_request", "arm wants a watchdog of {:g} to {:g} seconds".format(LEAST, MOST), "or null: none"
        )
    return seconds


class Watchdog(object):
    """One device, kept alive by a thread from `arm` to `leave` or `disarm`. The keeper's."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._descriptor = -1
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def arm(self, seconds: Optional[float], method: str) -> Dict[str, Any]:
        """-> {"armed", "device", "identity", "timeout_s", "survives": true | false | null, "why", "detail"}.

        `detail` says why it is not armed, `why` why it will or will not be running after the jump. Never
        raises: without a watchdog the jump goes on.
        """
        self.disarm()
        if seconds is None:
            return _answer(detail="not asked for")
        if method == "systemd":
            return _answer(detail=_leave_it_to_systemd(self._env))
        device = self._env.dev_watchdog
        refusal = _cannot_be_stopped(self._env, device)
        if refusal:
            return _answer(device=device, detail=refusal)
        try:
            return self._open(device, seconds)
        except OSError as error:
            self.disarm()
            return _answer(device=device, detail=_explain(device, error))

    def _open(self, device: str, seconds: float) -> Dict[str, Any]:
        self._descriptor = self._env.kernel.open_device(device)  # this starts the timer
        self._keep_alive()
        info = _INFO.unpack(self._env.kernel.ioctl(self._descriptor, WDIOC_GETSUPPORT, b"\0" * _INFO.size))
        name = info[2].split(b"\0")[0].decode("utf-8", "replace")
        timeout, problem = self._set_timeout(int(round(seconds)))
        if timeout < round(seconds):
            # Shorter than asked for, it would reset a host that is coming up well.
            left = self.disarm()
            detail = "{} ({}) has a timeout of {} s{}".format(device, name, timeout, problem)
            return _answer(device=device, detail="; ".join(text for text in (detail, left) if text))
        self._stop = threading.Event()
        args = (self._stop, self._descriptor, min(_MOST_PAUSE, max(timeout, 1) / 4.0))
        self._thread = threading.Thread(target=_keep_alive_until, args=args)
        self._thread.daemon = True
        self._thread.start()
        survives, why = _survives(self._env, name)
        answer = _answer(device=device)
        answer.update(armed=True, identity=name, timeout_s=timeout, survives=survives, why=why)
        return answer

    def _set_timeout(self, seconds: int) -> Tuple[int, str]:
        """(the timeout that the device has now, with which errno it refused ours). Raises OSError."""
        refused = ""
        try:
            self._env.kernel.ioctl(self._descriptor, WDIOC_SETTIMEOUT, _INT.pack(seconds))
        except OSError as error:
            refused = " and refuses {} s with {}".format(seconds, errname(error.errno))
        answer = self._env.kernel.ioctl(self._descriptor, WDIOC_GETTIMEOUT, b"\0" * _INT.size)
        return int(_INT.unpack(answer)[0]), refused

    def _keep_alive(self) -> None:
        os.write(self._descriptor, b"V")

    def _rest(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_MOST_PAUSE)
        self._thread = None

    def leave(self) -> None:
        """The last keepalive: from here on the timer runs. Called right before the jump; never raises."""
        if self._descriptor < 0:
            return
        self._rest()
        try:
            self._keep_alive()
        except OSError:
            pass

    def disarm(self) -> str:
        """Stops the timer. Harmless where none runs. Empty, or why it may still be running."""
        if self._descriptor < 0:
            return ""
        self._rest()
        try:
            self._keep_alive()
        except OSError as error:
            return "the watchdog may still be running: {}".format(error)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
        if read_line(_class(self._env) + "/state") == "active":
            return "the watchdog is still running: the host will be reset"
        return ""


def _keep_alive_until(stop: threading.Event, descriptor: int, pause: float) -> None:
    while not stop.wait(pause):
        try:
            os.write(descriptor, b"V")
        except OSError:
            return


def _answer(device: Optional[str] = None, detail: str = "") -> Dict[str, Any]:
    return {
        "armed": False,
        "device": device,
        "identity": None,
        "timeout_s": None,
        "survives": None,
        "why": "",
        "detail": detail,
    }


def _class(env: Environment) -> str:
    # /dev/watchdog is the core's first device (watchdog_cdev_register, drivers/watchdog/watchdog_dev.c).
    return env.sys + "/class/watchdog/watchdog0"


def _cannot_be_stopped(env: Environment, device: str) -> str:
    """Why this watchdog must not be opened, or empty.

    With nowayout a jump that does not happen would end in a reset; where nobody says, it counts as set."""
    if not os.path.exists(device):
        return "there is no {}: load the driver of the machine's watchdog".format(device)
    no_way_out = read_int(_class(env) + "/nowayout")
    if no_way_out is None:
        # The IPMI driver was a device of its own, without the core, up to the kernels of today.
        no_way_out = {"N": 0, "Y": 1}.get(
            read_line(env.sys + "/module/ipmi_watchdog/parameters/nowayout") or ""
        )
    if no_way_out is None:
        return "the kernel does not say whether {} can be stopped again (nowayout)".format(device)
    return "nowayout is set: once opened, {} could not be stopped again".format(device) if no_way_out else ""


def _survives(env: Environment, name: str) -> Any:
    """(does the timer run on after the jump, why): watchdog_reboot_notifier of watchdog_core.c."""
    if name == _SOFTWARE:
        return False, "softdog is a timer of the old kernel and ends with it"
    if name == _IPMI:
        return True, "the IPMI driver leaves it running over a reboot, with at least 120 s"
    parameter = read_int(env.sys + "/module/watchdog/parameters/stop_on_reboot")
    if parameter == 0:
        return True, "watchdog.stop_on_reboot=0"
    hint = "boot the old kernel with watchdog.stop_on_reboot=0"
    if parameter == 1:
        return False, "watchdog.stop_on_reboot=1: the kernel stops it before the jump; " + hint
    if name in _STOPPED:
        return False, "its driver stops it before the jump; " + hint
    driver = link_name(_class(env) + "/device/driver") or name
    return None, "the driver {} decides whether it is stopped before the jump; to be sure, {}".format(
        driver, hint
    )


def _explain(device: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return (
            "{} is held by another process (systemd with RuntimeWatchdogSec=, or a watchdog daemon): with an"
            " orderly jump KExecWatchdogSec= of systemd-system.conf(5) does the same".format(device)
        )
    return "{}: {}".format(device, error)


def _leave_it_to_systemd(env: Environment) -> str:
    status, text = run([env.systemctl, "show", "--property=KExecWatchdogUSec", "--value"], 5.0)
    now = text.strip() if status == 0 and text.strip() else "unknown"
    words = (
        "an orderly jump leaves the watchdog to systemd: KExecWatchdogSec= of systemd-system.conf(5), now "
    )
    return words + now
