"""One virtual machine: its QEMU command line, starting it so that it outlives us, console, power."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.domain.errors import LabError
from orchestrator.lab import console_logger, qmp
from orchestrator.lab.paths import write_atomically
from orchestrator.lab.process import (
    ProcessIdentity,
    find_in_folder,
    is_alive,
    spawn_detached,
    stop,
    wait_gone,
)
from orchestrator.lab.run import find_tool

QEMU = "qemu-system-x86_64"
START_SECONDS = 120.0
LOGGER_SECONDS = 60.0
CONSOLE_BYTES = 64 << 20
SSH_IN_GUEST = 22
SERVICE_IN_GUEST = 7777
SERVICE_GREETING = "kexec-fleet-lab "
# QEMU takes a pipe chardev's name and opens NAME.in and NAME.out.
CONSOLE_IN, CONSOLE_OUT, LOGGER_READY = "console.in", "console.out", "console.ready"
LEFTOVERS = ("qmp.sock", CONSOLE_IN, CONSOLE_OUT, LOGGER_READY, "qemu.pid", "process.json")
PROCESS_MARKS = (QEMU, "console_logger.py")
# What /proc/PID/fd calls QEMU's memfd (backends/hostmem-memfd.c in QEMU 7.2).
RAM_NAME = "/memfd:memory-backend-memfd"


@dataclass(frozen=True, kw_only=True)
class VmConfig:
    """All that is needed to start the VM, also by a later command. Written to the lab's state file."""

    host: str
    kernel_spec: str  # as the user wrote it
    release: str
    role: str
    vmlinuz: str
    initrd: str
    cmdline: str
    memory: int
    cpus: int
    accel: str  # kvm or tcg
    watchdog: bool
    ssh_port: int
    service_port: int
    mac: str
    # The guest's RAM is memory that QEMU shares: who may look into QEMU can read and write it (`guest_ram`).
    # Also the default for a state file that an earlier version wrote.
    shared_memory: bool = False


def qemu_arguments(config: VmConfig) -> list[str]:
    """Relative names: QEMU works in the VM's folder, since a socket's address holds only 107 bytes."""
    forwards = (
        f"hostfwd=tcp:127.0.0.1:{config.ssh_port}-:{SSH_IN_GUEST},"
        f"hostfwd=tcp:127.0.0.1:{config.service_port}-:{SERVICE_IN_GUEST}"
    )
    arguments = [
        "-name", f"kexec-fleet-{config.host}", "-nodefaults", "-no-user-config", "-display", "none",
        # TCG's default CPU crashes 6.12 and later in cmpxchg16b (QEMU 7.2), hence max.
        "-machine", "pc", "-accel", config.accel, "-cpu", "host" if config.accel == "kvm" else "max",
        "-smp", str(config.cpus), "-m", f"{config.memory >> 20}M",
        # The firmware's boot: a reset without a kexec always comes back to this kernel.
        "-kernel", config.vmlinuz, "-initrd", config.initrd, "-append", config.cmdline,
        "-chardev", "pipe,id=console,path=console", "-serial", "chardev:console",
        "-chardev", "socket,id=monitor,path=qmp.sock,server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        "-drive", "file=disk.qcow2,format=qcow2,if=none,id=root",
        "-device", "virtio-blk-pci,drive=root,serial=lab-root",
        "-drive", "file=identity.tar,format=raw,if=none,id=identity,readonly=on",
        "-device", "virtio-blk-pci,drive=identity,serial=lab-identity",
        "-netdev", f"user,id=net0,ipv6=off,restrict=on,{forwards}",
        "-device", f"virtio-net-pci,netdev=net0,mac={config.mac},romfile=",
        "-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
        "-pidfile", "qemu.pid",
    ]  # fmt: skip
    if config.watchdog:
        arguments += ["-device", "i6300esb", "-action", "watchdog=reset"]
    if config.shared_memory:
        # A memfd and not a file: nothing is written back to a disk, and it is gone with QEMU.
        size = f"{config.memory >> 20}M"
        arguments[arguments.index("pc")] = "pc,memory-backend=ram"
        arguments += ["-object", f"memory-backend-memfd,id=ram,size={size},share=on"]
    return arguments


class Vm:
    """A VM of a lab, running or not."""

    def __init__(self, config: VmConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def host(self) -> str:
        return self.config.host

    @property
    def console_path(self) -> Path:
        """Each line of the serial console with the host's time; the older half is beside it as `.1`."""
        return self.folder / "console.log"

    @property
    def qmp_path(self) -> Path:
        return self.folder / "qmp.sock"

    @property
    def ssh_port(self) -> int:
        return self.config.ssh_port

    @property
    def service_port(self) -> int:
        return self.config.service_port

    @property
    def process(self) -> ProcessIdentity | None:
        """QEMU, when it is running; a stale record is never taken for it."""
        try:
            record = ProcessIdentity(**json.loads((self.folder / "process.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return record if is_alive(record) else None

    @property
    def pid(self) -> int | None:
        process = self.process
        return process.pid if process else None

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Boots through the firmware on the same disk. Returns when QEMU runs, not when the guest is up."""
        if self.running:
            raise LabError(f"{self.host} is already running")
        self._clear()
        self._start_logger()
        log = self.folder / "qemu.log"
        log.write_bytes(b"")
        process = spawn_detached([find_tool(QEMU), *qemu_arguments(self.config)], cwd=self.folder, log=log)
        if process is not None:
            write_atomically(self.folder / "process.json", json.dumps(asdict(process)).encode())
        deadline = time.monotonic() + START_SECONDS
        while process is not None and is_alive(process) and time.monotonic() < deadline:
            try:
                qmp.execute(self.qmp_path, "query-status", timeout=deadline - time.monotonic())
                return
            except qmp.QmpError:
                time.sleep(0.05)
        self.kill()
        lines = log.read_text(errors="replace").strip().splitlines()
        words = " | ".join(lines) or "no message, it never answered its monitor"
        raise LabError(
            f"QEMU did not start {self.host}: {words}", hint=f"command line: {' '.join(self._replay())}"
        )

    def _replay(self) -> list[str]:
        return ["cd", str(self.folder), "&&", QEMU, *qemu_arguments(self.config)]

    def _clear(self) -> None:
        """What an earlier QEMU left, a half-started one included."""
        for process in find_in_folder(self.folder, PROCESS_MARKS):
            stop(process)
        for name in LEFTOVERS:
            (self.folder / name).unlink(missing_ok=True)

    def _start_logger(self) -> None:
        script = str(Path(console_logger.__file__).resolve())
        log = self.folder / "logger.log"
        for fifo in (CONSOLE_IN, CONSOLE_OUT):
            os.mkfifo(self.folder / fifo, 0o600)
        arguments = [CONSOLE_OUT, self.console_path.name, str(CONSOLE_BYTES), LOGGER_READY]
        process = spawn_detached([sys.executable, "-I", script, *arguments], cwd=self.folder, log=log)
        deadline = time.monotonic() + LOGGER_SECONDS
        while process is not None and is_alive(process) and time.monotonic() < deadline:
            if (self.folder / LOGGER_READY).exists():
                return
            time.sleep(0.02)
        raise LabError(f"the console logger of {self.host} did not start: {log.read_text(errors='replace')}")

    def power_cycle(self) -> None:
        """The reset button: back through the firmware to the kernel it was made with."""
        qmp.execute(self.qmp_path, "system_reset")

    def query_status(self) -> str:
        """QEMU's word for the VM's state: running, paused, internal-error, ..."""
        return str(qmp.execute(self.qmp_path, "query-status")["status"])

    def guest_ram(self) -> Path:
        """A file that is the guest's RAM while QEMU runs: the offset is the physical address, below the hole
        that ends at 4 GiB. Raises LabError where the VM was not made with `shared_memory`."""
        pid = self.pid
        for entry in Path(f"/proc/{pid}/fd").iterdir() if pid else ():
            try:
                name = str(entry.readlink())
            except OSError:
                continue  # closed meanwhile
            if name.startswith(RAM_NAME) and entry.stat().st_size == self.config.memory:
                return entry
        why = "QEMU does not run" if pid is None else "it was made without shared memory"
        raise LabError(f"the RAM of {self.host} cannot be reached: {why}", hint="lab up --shared-memory")

    def kill(self) -> None:
        """As if the power had failed: QEMU is killed, nothing is flushed by the guest."""
        process = self.process
        if process is not None and not stop(process):
            raise LabError(f"QEMU of {self.host} (pid {process.pid}) does not die", hint="is its disk stuck?")
        self._await_logger()
        for left in find_in_folder(self.folder, PROCESS_MARKS):
            stop(left)

    def _await_logger(self) -> None:
        """It reads what is left in the socket and ends by itself; that must be on disk before we go on."""
        for logger in find_in_folder(self.folder, ("console_logger.py",)):
            wait_gone(logger, 5.0)

    def ask_service(self, seconds: float = 3.0) -> str | None:
        """The guest's boot_id from its service, or None. Only the line counts: the forwarded port accepts
        connections for a dead guest too."""
        deadline = time.monotonic() + seconds
        data = b""
        try:
            with socket.create_connection(("127.0.0.1", self.service_port), timeout=seconds) as connection:
                while not data.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
                    connection.settimeout(left)
                    piece = connection.recv(256)
                    if not piece:
                        break
                    data += piece
        except OSError:
            return None
        text = data.decode("ascii", "replace")
        if not text.startswith(SERVICE_GREETING) or not text.endswith("\n"):
            return None
        return text.removeprefix(SERVICE_GREETING).strip()
