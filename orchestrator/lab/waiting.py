"""Waiting until guests are up, and saying why one is not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.domain.errors import LabError
from orchestrator.lab import console, ssh
from orchestrator.lab import progress as say
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.vm import Vm

POLL_SECONDS = 0.5
# sshd penalises a source that connects and leaves (OpenSSH 9.8 on): few, full logins, well apart.
LOGIN_SECONDS = 120.0
LOGIN_PAUSE = 3.0
TAIL_LINES = 12
HOPELESS_PANICS = 3  # with panic=10 the firmware tries again for ever
HOPELESS_LINES = 5000


def wait_until_up(
    vms: Sequence[Vm], paths: LabPaths, seconds: float, progress: say.Progress = say.silent
) -> dict[str, str]:
    """Each guest's running release, once its service has answered and a login has worked."""
    if not vms:
        return {}
    with ThreadPoolExecutor(max_workers=min(len(vms), 32)) as pool:
        futures = {vm.host: pool.submit(_wait_one, vm, paths, seconds, progress) for vm in vms}
        failures: list[LabError] = []
        releases: dict[str, str] = {}
        for host, future in futures.items():
            try:
                releases[host] = future.result()
            except LabError as error:
                failures.append(error)
    if failures:
        raise LabError("\n".join(error.message for error in failures), hint=failures[0].hint)
    return releases


def _wait_one(vm: Vm, paths: LabPaths, seconds: float, progress: say.Progress) -> str:
    started = time.monotonic()
    deadline = started + seconds
    before = _panics(vm)
    while vm.ask_service() is None:
        if not vm.running:
            raise _failure(vm, "QEMU ended while the guest was booting")
        if _panics(vm) - before >= HOPELESS_PANICS:
            raise _failure(vm, "the guest panics again and again")
        if time.monotonic() > deadline:
            raise _failure(vm, f"the guest did not answer in {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    deadline = max(deadline, time.monotonic() + LOGIN_SECONDS)
    while True:
        answer = ssh.call(paths, vm.ssh_port, "uname -r", LOGIN_SECONDS)
        if answer.code == 0:
            release = answer.output.strip()
            say.done(progress, f"up after {time.monotonic() - started:.0f} s on {release}", vm.host)
            return release
        if time.monotonic() > deadline:
            raise _failure(vm, f"the guest is up but refuses the login: {answer.complaint}")
        time.sleep(LOGIN_PAUSE)


def _panics(vm: Vm) -> int:
    """How often its kernel has given up, as far as the console's tail tells."""
    lines = console.tail(vm.console_path, HOPELESS_LINES)
    return sum("Kernel panic - not syncing" in line for line in lines)


def _failure(vm: Vm, what: str) -> LabError:
    lines = [console.without_stamp(line) for line in console.tail(vm.console_path, TAIL_LINES)]
    qemu = (vm.folder / "qemu.log").read_text(errors="replace").strip()
    words = [
        f"{vm.host}: {what}",
        *(["QEMU said: " + qemu] if qemu else []),
        "the console's last lines:",
        *lines,
    ]
    return LabError("\n  ".join(words), hint=f"kexec-fleet lab console {vm.host}; kexec-fleet lab down")
