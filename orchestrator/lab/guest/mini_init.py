#!/usr/bin/python3 -I
"""PID 1 of a lab guest that skips systemd: mounts, network, sshd and the service; reaps; knows how to reboot.

SIGTERM and SIGINT (ctrl-alt-del) reboot, SIGUSR2 powers off, as busybox init has it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = "/usr/lib/kexec-fleet-lab/"
MOUNTS = (
    # type, where, options
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "rw"),
    ("debugfs", "/sys/kernel/debug", "rw"),
)
BOOT_PROGRAMS = Path("/etc/kexec-fleet/boot.d")  # the host agent's boot guard is put here
SERVICES = {
    "sshd": ["/usr/sbin/sshd", "-D", "-e"],
    "service": ["/usr/bin/python3", "-I", HERE + "service_reply.py"],
}
RESPAWN_SECONDS = 1.0
STOP_SECONDS = 2.0
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}
# reboot(2): LINUX_REBOOT_CMD_RESTART, LINUX_REBOOT_CMD_POWER_OFF
RESTART, POWER_OFF = 0x01234567, 0x4321FEDC


def say(text: str) -> None:
    print(f"kexec-fleet-lab: {text}", flush=True)


def call(*words: str) -> None:
    """Runs a command; a failure is shown and survived: a half-configured guest can still be looked at."""
    try:
        code = subprocess.call(words)
    except OSError as error:
        say(f"{words[0]}: {error}")
        return
    if code:
        say(f"{' '.join(words)}: exit code {code}")


def prepare() -> None:
    for kind, where, options in MOUNTS:
        Path(where).mkdir(parents=True, exist_ok=True)
        call("/bin/mount", "-t", kind, "-o", options, kind, where)
    start_boot_programs()  # before the network: a dead one must not keep them from running
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    socket.sethostname(Path("/etc/hostname").read_text().strip())
    call("/bin/sh", HERE + "net-up.sh")


def unblock() -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def start(name: str) -> int:
    with Path(f"/run/{name}.log").open("ab") as log:
        # preexec_fn is safe here: PID 1 has no threads.
        child = subprocess.Popen(
            SERVICES[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=unblock
        )
    return child.pid


def start_boot_programs() -> None:
    """Each runs beside everything else; main reaps it."""
    for program in sorted(BOOT_PROGRAMS.glob("*")):
        if os.access(program, os.X_OK) and program.is_file():
            try:
                subprocess.Popen([program], stdin=subprocess.DEVNULL, preexec_fn=unblock)
            except OSError as error:
                say(f"{program}: {error}")


def reap() -> set[int]:
    """All children that have ended, ours and those left to PID 1."""
    ended: set[int] = set()
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def stop_everything() -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.05)
            except ChildProcessError:
                return


def shut_down(command: int) -> None:
    say("power off" if command == POWER_OFF else "reboot")
    stop_everything()
    os.sync()
    call("/bin/mount", "-o", "remount,ro", "/")
    ctypes.CDLL(None).reboot(ctypes.c_int(command))


def main() -> None:
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    prepare()
    # Blocked signals wait for sigwait; PID 1 would not get those that it has no handler for.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    running = {start(name): name for name in SERVICES}
    say("mini init is up")
    while True:
        number = signal.sigwait(SIGNALS)
        if number != signal.SIGCHLD:
            shut_down(POWER_OFF if number == signal.SIGUSR2 else RESTART)
        for pid in reap():
            name = running.pop(pid, None)
            if name is not None:
                say(f"{name} ended; starting it again")
                time.sleep(RESPAWN_SECONDS)
                running[start(name)] = name


if __name__ == "__main__":
    main()
