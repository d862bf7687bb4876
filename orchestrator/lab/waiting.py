"""Waiting until guests are up, and saying why one is not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
    outcomes: queue.SimpleQueue[tuple[str, str | Exception]] = queue.SimpleQueue()
    interrupted = threading.Event()

    def wait(vm: Vm) -> None:
        try:
            outcomes.put((vm.host, _Waiting(vm, paths, seconds, progress, interrupted).wait()))
        except Exception as error:
            outcomes.put((vm.host, error))

    for vm in vms:
        # Daemons: a Ctrl-C ends the command at once, not when the last guest has answered.
        threading.Thread(target=wait, args=(vm,), daemon=True).start()
    try:
        found = dict(outcomes.get() for _ in vms)
    finally:
        interrupted.set()
    failures: list[LabError] = []
    releases: dict[str, str] = {}
    for vm in vms:
        outcome = found[vm.host]
        if isinstance(outcome, str):
            releases[vm.host] = outcome
        elif isinstance(outcome, LabError):
            failures.append(outcome)
        else:
            raise outcome
    if failures:
        raise LabError("; ".join(error.message for error in failures), hint=failures[0].hint)
    return releases


@dataclass(frozen=True)
class _Waiting:
    """For one guest."""

    vm: Vm
    paths: LabPaths
    seconds: float
    progress: say.Progress
    interrupted: threading.Event

    def wait(self) -> str:
        try:
            return self._wait()
        except OSError:
            if self._taken_down():  # its files went while they were read
                raise self._gone() from None
            raise

    def _wait(self) -> str:
        vm, started = self.vm, time.monotonic()
        deadline = started + self.seconds
        before = _panics(vm)
        while vm.ask_service() is None:
            self._check_there("while the guest was booting")
            if _panics(vm) - before >= HOPELESS_PANICS:
                raise self._failure("the guest panics again and again")
            if time.monotonic() > deadline:
                raise self._failure(f"the guest did not answer in {self.seconds:g} s")
            time.sleep(POLL_SECONDS)
        deadline = max(deadline, time.monotonic() + LOGIN_SECONDS)
        while True:
            answer = ssh.call(self.paths, vm.ssh_port, "uname -r", LOGIN_SECONDS)
            if answer.code == 0:
                release = answer.output.strip()
                say.done(self.progress, f"up after {time.monotonic() - started:.0f} s on {release}", vm.host)
                return release
            self._check_there("before a login worked")
            if time.monotonic() > deadline:
                raise self._failure(f"the guest is up but refuses the login: {answer.complaint}")
            time.sleep(LOGIN_PAUSE)

    def _check_there(self, when: str) -> None:
        if self.interrupted.is_set():
            raise LabError(f"{self.vm.host}: nobody waits any more")
        if self._taken_down():
            raise self._gone()
        if not self.vm.running:
            # `down` says that it comes before it ends the first QEMU.
            raise self._gone() if self._taken_down() else self._failure(f"QEMU ended {when}")

    def _taken_down(self) -> bool:
        return self.paths.going.exists() or not self.vm.folder.exists()

    def _gone(self) -> LabError:
        return LabError(
            f"{self.vm.host}: taken down while it was waited for",
            hint=f"another command ran `kexec-fleet lab down --name {self.paths.root.name}`",
        )

    def _failure(self, what: str) -> LabError:
        """The error is one line; the console's end goes to who watches, as soon as it is known."""
        vm, lab = self.vm, self.paths.root.name
        lines = [console.without_stamp(line) for line in console.tail(vm.console_path, TAIL_LINES)]
        log = vm.folder / "qemu.log"
        qemu = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        say.notice(self.progress, what, vm.host)
        for line in qemu:
            say.notice(self.progress, f"QEMU said: {line}", vm.host)
        for line in lines:
            say.notice(self.progress, f"console: {line}", vm.host)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        ends = [
            *([f"QEMU said: {' | '.join(qemu)}"] if qemu else []),
            f"its console ends: {last}" if last else "its console is empty",
        ]
        return LabError(
            f"{vm.host}: {what}; {'; '.join(ends)}",
            hint=f"kexec-fleet lab console {vm.host} --name {lab}; kexec-fleet lab down --name {lab}",
        )


def _panics(vm: Vm) -> int:
    """How often its kernel has given up, as far as the console's tail tells."""
    lines = console.tail(vm.console_path, HOPELESS_LINES)
    return sum("Kernel panic - not syncing" in line for line in lines)
