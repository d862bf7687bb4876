"""The last moments: keep the appointment and call reboot(2), or ask systemd to; its stamp hook."""

import os
import threading
import time
from typing import Callable, Optional, Tuple

from workers.hostagent import counter as counter_module
from workers.hostagent.claims import Claim
from workers.hostagent.counter import Counter
from workers.hostagent.environment import Environment
from workers.hostagent.files import unlink_quietly, write_all
from workers.hostagent.processes import run

# Sleep until this long before the appointment, then spin: well over a busy host's wake-up delay. Seconds.
_SPIN = 0.02
# A clock that stands still must not let one long sleep run past the appointment. Seconds.
_NAP = 0.25
HOOK_NAME = "kexec-fleet-stamp"

# What the hook does behind counter.py's text. systemd-shutdown(8) passes the verb as the first argument.
_HOOK_TAIL = """

import os
import sys

if sys.argv[1:2] == ["kexec"]:
    stamp = "kexec-fleet stamp {{}} {{}}\\n".format({nonce!r}, Counter().read())
    for path, prefix in {places!r}:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(descriptor, (prefix + stamp).encode("utf-8"))
            finally:
                os.close(descriptor)
        except OSError:
            pass
"""


def sync_aside(env: Environment) -> threading.Thread:
    """Syncs file systems in a thread of its own: whoever waits for it need not wait for ever."""
    thread = threading.Thread(target=env.kernel.sync)
    thread.daemon = True
    thread.start()
    return thread


def wait_until(
    counter: Counter, appointment: int, hz: float, last: Optional[Callable[[], None]] = None
) -> None:
    """Returns at the first read of the counter that is not before the appointment; `last` is called before
    the spin."""
    while True:
        left = (appointment - counter.read()) / hz
        if left <= _SPIN:
            break
        time.sleep(min(left - _SPIN, _NAP))
    if last is not None:
        last()
    while counter.read() < appointment:
        pass


def direct(
    env: Environment, counter: Counter, appointment: int, hz: float, last: Callable[[], None]
) -> OSError:
    """Jumps at the appointment. Returns only when reboot(2) did, with its error."""
    wait_until(counter, appointment, hz, last)
    try:
        env.kernel.reboot_kexec()
    except OSError as error:
        return error
    return OSError(0, "reboot(2) returned without an error")


def systemd(env: Environment) -> Optional[str]:
    """Asks systemd to stop everything and to kexec then. What it said where it refused, else None: it took
    the request, or may have taken it and was too slow to say so."""
    # An image is loaded: systemctl takes that one and does not look for another (load_kexec_kernel, systemd
    # src/systemctl/systemctl-start-special.c).
    status, text = run([env.systemctl, "--no-block", "kexec"], 30.0)
    return None if status in (0, None) else "systemctl kexec: {} ({})".format(text.strip(), status)


def hook_path(env: Environment) -> str:
    return env.hook_dir + "/" + HOOK_NAME


def hook_text(env: Environment, interpreter: str, claim: Claim) -> str:
    """A program that writes "kexec-fleet stamp <nonce> <counter>" to the kernel log, pmsg and the console.

    The log counts: kernel_kexec() hands it to pstore as its last act (KMSG_DUMP_SHUTDOWN,
    kernel/kexec_core.c), and Debian's kernels have no pmsg. As a debug message it does not come to the
    console a second time.
    """
    loader = counter_module.__spec__.loader
    source = loader.get_source(counter_module.__name__)  # type: ignore[union-attr]
    places = ((env.dev_kmsg, "<7>"), (env.pmsg, ""), (env.console, ""))
    tail = _HOOK_TAIL.format(places=places, nonce=claim.nonce)
    return "#!{} -I\n{}{}".format(interpreter, source, tail)


def install_hook(env: Environment, interpreter: str, claim: Claim) -> Tuple[bool, str]:
    """(True, path), or (False, why): without it no hot phase is measured, the jump goes on all the same."""
    path = hook_path(env)
    try:
        if not os.path.isdir(env.hook_dir):  # Debian has it only where some package needs it
            os.makedirs(env.hook_dir)
            os.chmod(env.hook_dir, 0o755)
        descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
        try:
            write_all(descriptor, hook_text(env, interpreter, claim).encode("utf-8"))
        finally:
            os.close(descriptor)
        os.rename(path + ".new", path)
    except OSError as error:
        return False, str(error)
    return True, path


def remove_hook(env: Environment) -> bool:
    return unlink_quietly(hook_path(env))
