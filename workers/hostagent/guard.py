"""The boot guard: a boot of ours that nobody confirms in time goes back through the firmware, by itself.

It is installed on the old boot and runs on the new one, started by the init: early, and beside everything
else, so that neither a dead network nor a hung service holds it up. Its files lie in /etc, since what else
a new kernel fails to mount must not stop it.
"""

import json
import os
import re
import sys
from typing import Any, Dict, List, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.files import read_text, sync_directory, unlink_quietly, write_durably

LEAST, MOST = 10.0, 86400.0  # seconds after the new kernel's start
NAME = "kexec-fleet-guard"
# orchestrator/domain/cmdline.py writes this word onto the new kernel's command line.
_NONCE_WORD = "kexec_fleet.nonce="
_NONCE = re.compile(r"[0-9A-Za-z._-]{1,128}\Z")
_HEAD = re.compile(r"^GUARD = (\{.*\})$", re.MULTILINE)

_PROGRAM = """\
#!{interpreter} -I
# Left by kexec-fleet for the next boot; it removes this file when that boot is confirmed.
import ctypes
import os
import threading
import time

GUARD = {head}


def read(path):
    try:
        with open(path, "rb") as handle:
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""


def confirmed():
    return read({confirmed!r}).strip() == GUARD["nonce"]


def reset_later():
    # Where the kernel's own shutdown hangs.
    time.sleep(60.0)
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("b")


def main():
    if {word!r} + GUARD["nonce"] not in read({cmdline!r}).split():
        return
    while time.clock_gettime(time.CLOCK_MONOTONIC) < GUARD["seconds"]:
        if confirmed():
            return
        time.sleep(1.0)
    if confirmed():
        return
    try:
        with open({kmsg!r}, "w") as log:
            log.write("<2>kexec-fleet guard: not confirmed in %g s: rebooting\\n" % GUARD["seconds"])
    except OSError:
        pass
    # A file system that hangs must not hold the reboot up.
    sync = threading.Thread(target=os.sync)
    sync.daemon = True
    sync.start()
    sync.join(15.0)
    reset = threading.Thread(target=reset_later)
    reset.daemon = True
    reset.start()
    # LINUX_REBOOT_CMD_RESTART: through the firmware whatever is loaded for kexec, and without the init, which
    # may be what hangs.
    ctypes.CDLL(None).reboot(0x01234567)
    time.sleep(120.0)


main()
"""

_UNIT = """\
[Unit]
Description=kexec-fleet: reboot through the firmware unless this boot is confirmed
DefaultDependencies=no
IgnoreOnIsolate=yes

[Service]
Type=simple
ExecStart={interpreter} -I {program}
OOMScoreAdjust=-1000
"""


def install(env: Environment, nonce: str, seconds: float) -> Dict[str, Any]:
    """-> {"installed": bool, "detail": paths, or why not}. What an earlier attempt left is replaced.

    Raises AgentError `bad_request`."""
    if not _NONCE.match(nonce) or not LEAST <= seconds <= MOST:
        raise AgentError(
            "bad_request",
            "a guard wants a nonce of letters and digits, and {:g} to {:g} seconds".format(LEAST, MOST),
        )
    program, refusal = _place(env)
    if refusal:
        return {"installed": False, "detail": refusal}
    interpreter = os.path.realpath(sys.executable or "/usr/bin/python3")
    try:
        write_durably(program, _text(env, interpreter, nonce, seconds), 0o700)
        if env.has_systemd():
            write_durably(_unit(env), _UNIT.format(interpreter=interpreter, program=program), 0o644)
            _link(env)
    except OSError as error:
        _remove(env)
        return {"installed": False, "detail": str(error)}
    return {"installed": True, "detail": ", ".join(path for path in _paths(env) if os.path.lexists(path))}


def confirm(env: Environment, nonce: str) -> Dict[str, Any]:
    """On the new boot. -> {"removed": [paths], "detail"}. Raises AgentError `wrong_boot`."""
    if _NONCE_WORD + nonce not in _cmdline(env):
        raise AgentError(
            "wrong_boot",
            "this boot does not have the nonce {!r} on its command line".format(nonce[:80]),
            "only the boot that the guard watches can be confirmed",
        )
    os.makedirs(env.run_dir, 0o700, exist_ok=True)
    write_durably(env.run_dir + "/confirmed", nonce, 0o600)
    removed = _remove(env)
    return {"removed": removed, "detail": "" if removed else "no guard was installed"}


def remove_stale(env: Environment, nonce: Optional[str] = None) -> List[str]:
    """Removes a guard that watches neither this boot nor the jump that is being prepared on it.

    -> what was removed. A guard that waits for this boot's confirmation stays. `nonce`: the attempt whose
    claim is taken."""
    text = None
    for program in (_systemd_program(env), _boot_d_program(env)):
        text = text or read_text(program)
    if text is None:
        return []
    found = _HEAD.search(text)
    try:
        head = json.loads(found.group(1)) if found else {}
    except ValueError:
        head = {}
    watched = str(head.get("nonce"))
    if _NONCE_WORD + watched in _cmdline(env):
        confirmed = (read_text(env.run_dir + "/confirmed") or "").strip()
        return _remove(env) if confirmed == watched else []
    if head.get("installed_on") == env.boot_id() and watched == nonce:
        return []
    return _remove(env)


def _cmdline(env: Environment) -> List[str]:
    return (read_text(env.proc + "/cmdline") or "").split()


def _systemd_program(env: Environment) -> str:
    return env.etc + "/kexec-fleet/guard"


def _boot_d(env: Environment) -> str:
    return env.etc + "/kexec-fleet/boot.d"


def _boot_d_program(env: Environment) -> str:
    return _boot_d(env) + "/" + NAME


def _unit(env: Environment) -> str:
    return "{}/systemd/system/{}.service".format(env.etc, NAME)


def _wants(env: Environment) -> str:
    # sysinit.target is the first that every boot wants, a rescue one too.
    return "{}/systemd/system/sysinit.target.wants/{}.service".format(env.etc, NAME)


def _paths(env: Environment) -> List[str]:
    return [_wants(env), _unit(env), _systemd_program(env), _boot_d_program(env)]


def _place(env: Environment) -> Any:
    """(the program's path, ""), or ("", why there is none)."""
    if env.has_systemd():
        return _systemd_program(env), ""
    folder = _boot_d(env)
    if os.path.isdir(folder) and os.access(folder, os.X_OK):
        return _boot_d_program(env), ""
    return "", "the init is {}, not systemd, and there is no {} whose programs it runs at boot".format(
        env.init() or "unknown", folder
    )


def _text(env: Environment, interpreter: str, nonce: str, seconds: float) -> str:
    head = {"nonce": nonce, "seconds": seconds, "installed_on": env.boot_id()}
    return _PROGRAM.format(
        interpreter=interpreter,
        head=json.dumps(head, sort_keys=True),
        confirmed=env.run_dir + "/confirmed",
        word=_NONCE_WORD,
        cmdline=env.proc + "/cmdline",
        kmsg=env.dev_kmsg,
    )


def _link(env: Environment) -> None:
    path = _wants(env)
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path))
        os.chmod(os.path.dirname(path), 0o755)
    unlink_quietly(path)
    os.symlink("../{}.service".format(NAME), path)
    sync_directory(os.path.dirname(path))
    sync_directory(os.path.dirname(os.path.dirname(path)))


def _remove(env: Environment) -> List[str]:
    """The link first: what is left of an interrupted removal is started by nobody."""
    return [path for path in _paths(env) if unlink_quietly(path)]
