#!/usr/bin/python3 -I
"""PID 1 of a lab guest that skips systemd: mounts, network, sshd and the service; reaps; knows how to reboot.

SIGTERM and SIGINT (ctrl-alt-del) reboot, SIGUSR2 powers off, as busybox init has it.
"""

import os
import signal
import socket
import subprocess
import time

HERE = "/usr/lib/kexec-fleet-lab/"
MOUNTS = (
    # type, where, options
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("debugfs", "/sys/kernel/debug", ""),
)
SERVICES = {
    "sshd": ["/usr/sbin/sshd", "-D", "-e"],
    "service": ["/usr/bin/python3", "-I", HERE + "service_reply.py"],
}
RESPAWN_SECONDS = 1.0
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}


def say(text):
    print("kexec-fleet-lab: " + text, flush=True)


def call(*words):
    """Runs a command; a failure is shown and survived."""
    try:
        code = subprocess.call(words)
    except OSError as error:
        code = error
    if code:
        say("%s: %s" % (" ".join(words), code))


def prepare():
    for kind, where, options in MOUNTS:
        os.makedirs(where, exist_ok=True)
        call("/bin/mount", "-t", kind, *(["-o", options] if options else []), kind, where)
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with open("/etc/hostname") as source:
        socket.sethostname(source.read().strip())
    call("/bin/sh", HERE + "net-up.sh")


def unblock():
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def start(name):
    log = open("/run/%s.log" % name, "ab")  # noqa: SIM115 (the child keeps it)
    with log:
        return subprocess.Popen(
            SERVICES[name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=unblock,
        ).pid


def reap():
    """All children that have ended, ours and those left to PID 1."""
    ended = set()
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def shut_down(power_off):
    say("power off" if power_off else "reboot")
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(-1, number)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.05)
            except ChildProcessError:
                break
    os.sync()
    call("/bin/mount", "-o", "remount,ro", "/")
    import ctypes

    # reboot(2): LINUX_REBOOT_CMD_POWER_OFF, LINUX_REBOOT_CMD_RESTART
    ctypes.CDLL(None).reboot(ctypes.c_int(0x4321FEDC if power_off else 0x01234567))


def main():
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    prepare()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    running = {start(name): name for name in SERVICES}
    say("mini init is up")
    while True:
        number = signal.sigwait(SIGNALS)
        if number != signal.SIGCHLD:
            shut_down(number == signal.SIGUSR2)
        for pid in reap():
            name = running.pop(pid, None)
            if name is not None:
                say("%s ended; starting it again" % name)
                time.sleep(RESPAWN_SECONDS)
                running[start(name)] = name


if __name__ == "__main__":
    main()
