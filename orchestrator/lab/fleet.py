"""A lab: VMs that live on between commands. Up, status, down; found again by name."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.domain.errors import InputError, LabError
from orchestrator.lab import accel, keys, ports, ssh
from orchestrator.lab import progress as say
from orchestrator.lab.agree import check_inventory_place, check_memory, new_hosts
from orchestrator.lab.copies import remove_copies, write_copy
from orchestrator.lab.image import ImageStore
from orchestrator.lab.initramfs import Initramfs, InitramfsStore
from orchestrator.lab.inventory import InventoryHost, InventoryTarget, inventory_text
from orchestrator.lab.kernels import KernelStore, LabKernel
from orchestrator.lab.paths import LabPaths, cache_root, labs_root, locked, write_atomically
from orchestrator.lab.plan import candidates_of, default_fleet, default_target
from orchestrator.lab.process import find_in_folder, stop
from orchestrator.lab.pstore import ramoops_words
from orchestrator.lab.run import find_tool, run
from orchestrator.lab.spec import INIT_WORD, HostSpec, InitKind, LabOptions
from orchestrator.lab.state import LabState, Target, ports_taken, read_state, write_state
from orchestrator.lab.vm import PROCESS_MARKS, QEMU, Vm, VmConfig
from orchestrator.lab.waiting import wait_until_up

TOOLS = (QEMU, "qemu-img", "mmdebstrap", "mke2fs", "ssh", "ssh-keygen", "apt-get", "dpkg-deb")
STATUS_SECONDS = 30.0


class VmState(StrEnum):
    UP = "up"  # its service answers
    SILENT = "silent"  # QEMU runs, the guest does not answer: booting, jumping or dead
    PAUSED = "paused"  # QEMU has stopped its processors
    STOPPED = "stopped"  # no QEMU


@dataclass(frozen=True)
class VmStatus:
    host: str
    state: VmState
    kernel: str  # release it was made with
    running: str  # release that runs now; empty when it cannot be asked
    boot_id: str
    role: str
    ssh_port: int
    service_port: int
    pid: int | None
    memory: int
    console: Path


@dataclass(frozen=True)
class UpReport:
    started: tuple[str, ...]  # made or started again by this call
    already: tuple[str, ...]
    inventory: Path


@dataclass(frozen=True)
class Prepared:
    """A kernel with the initramfs that goes with it."""

    kernel: LabKernel
    initramfs: Initramfs


class LabFleet:
    def __init__(self, name: str, paths: LabPaths) -> None:
        self.name = name
        self.paths = paths

    @classmethod
    def open(cls, name: str = "default") -> LabFleet:
        """The lab of that name, whether it is there yet or not."""
        return cls(name, LabPaths.of(name))

    @classmethod
    def names(cls) -> list[str]:
        return sorted(file.parent.name for file in labs_root().glob("*/lab.json"))

    @property
    def exists(self) -> bool:
        return self.paths.state.exists()

    @property
    def inventory_path(self) -> Path:
        """The inventory beside the lab's state, rewritten by each `up`."""
        return self.paths.inventory

    @property
    def target(self) -> Target:
        return self._state().target

    def _state(self) -> LabState:
        state = read_state(self.paths)
        if state is None:
            there = ", ".join(self.names()) or "none"
            raise InputError(
                f"there is no lab {self.name!r}",
                hint=f"kexec-fleet lab up --name {self.name}; labs there are: {there}",
            )
        return state

    def vms(self) -> list[Vm]:
        return [Vm(config, self.paths.vm(config.host)) for config in self._state().vms]

    def vm(self, host: str) -> Vm:
        for vm in self.vms():
            if vm.host == host:
                return vm
        known = ", ".join(vm.host for vm in self.vms())
        raise InputError(f"lab {self.name!r} has no host {host!r}", hint=f"hosts: {known}")

    def ssh_command(self, host: str, command: Sequence[str] = ()) -> list[str]:
        return ssh.ssh_arguments(self.paths, self.vm(host).ssh_port, command, batch=False)

    # -- up ----------------------------------------------------------------------------------------------

    def up(
        self, specs: Sequence[HostSpec] | None, options: LabOptions, progress: say.Progress = say.silent
    ) -> UpReport:
        """Makes the hosts that are not there, starts those that stopped, waits until all of them answer.
        `specs` None: the default fleet, or what the lab already has."""
        check_inventory_place(options.inventory)
        for tool in TOOLS:
            find_tool(tool)
        waiting = f"another command works on lab {self.name!r}; waiting for it"
        with locked(self.paths.lock, lambda: say.notice(progress, waiting)):
            self.paths.going.unlink(missing_ok=True)  # of a `down` that failed
            state = self._extend(read_state(self.paths), specs, options, progress)
            vms = self.vms()
            stopped = [vm for vm in vms if not vm.running]
            if stopped:
                client_public = self._make_client_key()
                image = ImageStore(progress=progress).root_image()
                for vm in stopped:
                    self._make_disks(vm.config, image, client_public)
            for vm in stopped:
                say.step(progress, f"starting on {vm.config.release} ({vm.config.accel})", vm.host)
                vm.start()
            started = [vm.host for vm in stopped]
            inventory = self._write_inventory(state, options.inventory)
        silent = [vm for vm in vms if vm.host not in started and vm.ask_service() is None]
        for vm in silent:
            say.step(progress, "already starting, waiting", vm.host)
        wait_until_up([*stopped, *silent], self.paths, options.boot_seconds, progress)
        already = tuple(vm.host for vm in vms if vm.host not in started)
        return UpReport(tuple(started), already, inventory)

    def _extend(
        self,
        state: LabState | None,
        specs: Sequence[HostSpec] | None,
        options: LabOptions,
        progress: say.Progress,
    ) -> LabState:
        """The state with the new hosts and the wanted target in it, written down; nothing is started."""
        new = new_hosts(state, specs, options, self.name)
        store = KernelStore(progress=progress)
        same_target = state is not None and options.target in ("", state.target.spec, state.target.release)
        if state is not None and not new and same_target:
            return state
        target, target_kernel = self._choose_target(state, store, options, progress)
        if new is None:
            new = default_fleet(candidates_of(store), target_kernel, progress)
        check_memory(len(new), options.memory, progress)
        prepared = {spec.kernel: _prepare(store, spec.kernel, options, progress) for spec in new}
        accelerator = accel.decide(options.accel, target_kernel.vmlinuz, Path(target.initrd), progress)
        with locked(cache_root() / "ports.lock"):
            numbers = ports.choose(2 * len(new), ports_taken())
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            configs = [
                self._configure(spec, prepared[spec.kernel], options, accelerator, pair)
                for spec, pair in zip(new, pairs, strict=True)
            ]
            # With the ports' lock held, and before anything is made: an interrupted `up` can be repeated.
            state = LabState(target, (*(state.vms if state else ()), *configs))
            write_state(self.paths, state)
        return state

    def _choose_target(
        self, state: LabState | None, store: KernelStore, options: LabOptions, progress: say.Progress
    ) -> tuple[Target, LabKernel]:
        wanted = options.target or (state.target.spec if state else "")
        kernel = store.resolve(wanted) if wanted else default_target(candidates_of(store)).kernel
        initramfs = InitramfsStore(progress=progress).build(kernel, options.initrd_pad)
        spec = wanted or kernel.release
        return Target(str(kernel.vmlinuz), str(initramfs.path), kernel.release, spec), kernel

    def _make_client_key(self) -> str:
        self.paths.root.mkdir(parents=True, exist_ok=True)
        self.paths.root.chmod(0o700)
        return keys.make_key(self.paths.key, f"kexec-fleet lab {self.name}")

    def _configure(
        self, spec: HostSpec, prepared: Prepared, options: LabOptions, accelerator: str, pair: tuple[int, int]
    ) -> VmConfig:
        kernel = prepared.kernel
        words = [
            "root=/dev/vda", "rw", "console=ttyS0", "panic=10", "net.ifnames=0",
            f"{INIT_WORD}{options.init}", *([f"cma={options.cma}"] if options.cma else []),
            *(ramoops_words(options.memory) if options.init is InitKind.SYSTEMD else []),
            *options.append.split(),
        ]  # fmt: skip
        digest = hashlib.sha256(f"{self.paths.root}/{spec.name}".encode()).hexdigest()
        return VmConfig(
            host=spec.name,
            kernel_spec=spec.kernel,
            release=kernel.release,
            role=kernel.capabilities.role,
            vmlinuz=str(kernel.vmlinuz),
            initrd=str(prepared.initramfs.path),
            cmdline=" ".join(words),
            memory=options.memory,
            cpus=options.cpus,
            accel=accelerator,
            watchdog=options.watchdog,
            shared_memory=options.shared_memory,
            ssh_port=pair[0],
            service_port=pair[1],
            mac=f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}",
        )

    def _make_disks(self, config: VmConfig, image: Path, client_public: str) -> None:
        folder = self.paths.vm(config.host)
        folder.mkdir(parents=True, exist_ok=True)
        host_key = folder / "ssh_host_ed25519_key"
        keys.make_key(host_key, config.host)
        identity = keys.identity_archive(config.host, host_key, client_public)
        write_atomically(folder / "identity.tar", identity, mode=0o600)
        disk = folder / "disk.qcow2"
        if not disk.exists():
            making = folder / "disk.qcow2.new"
            run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, making],
                what=f"make the disk of {config.host}", timeout=120,
            )  # fmt: skip
            making.rename(disk)

    def _write_inventory(self, state: LabState, elsewhere: Path | None) -> Path:
        hosts = []
        known = []
        for config in state.vms:
            vm = Vm(config, self.paths.vm(config.host))
            public = keys.read_public(vm.folder / "ssh_host_ed25519_key")
            known.append(f"[127.0.0.1]:{config.ssh_port} {public}\n")
            hosts.append(
                InventoryHost(
                    config.host,
                    config.ssh_port,
                    config.service_port,
                    public,
                    config.release,
                    config.role,
                    monitor=vm.qmp_path,
                    console=vm.console_path,
                )
            )
        write_atomically(self.paths.known_hosts, "".join(known).encode())
        target = InventoryTarget(Path(state.target.image), Path(state.target.initrd), state.target.release)
        program = str(Path(sys.executable).parent / "kexec-fleet")
        text = inventory_text(self.name, self.paths.key, target, hosts, program)
        write_atomically(self.paths.inventory, text.encode())
        if elsewhere is None:
            return self.paths.inventory
        write_copy(self.paths, elsewhere.absolute(), text)
        return elsewhere.absolute()

    # -- status and down ---------------------------------------------------------------------------------

    def status(self) -> list[VmStatus]:
        vms = self.vms()
        with ThreadPoolExecutor(max_workers=max(1, min(len(vms), 16))) as pool:
            return list(pool.map(self._ask, vms))

    def _ask(self, vm: Vm) -> VmStatus:
        boot_id = vm.ask_service() if vm.running else None
        running, state = "", VmState.STOPPED
        if boot_id is not None:
            state = VmState.UP
            answer = ssh.call(self.paths, vm.ssh_port, "uname -r", STATUS_SECONDS)
            running = answer.output.strip() if answer.code == 0 else ""
        elif vm.running:
            state = VmState.SILENT
            try:
                if vm.query_status() != "running":
                    state = VmState.PAUSED
            except LabError:
                pass  # somebody else may hold the monitor; silent is what we know
        config = vm.config
        return VmStatus(
            vm.host, state, config.release, running, boot_id or "", config.role, config.ssh_port,
            config.service_port, vm.pid, config.memory, vm.console_path,
        )  # fmt: skip

    def down(self, progress: say.Progress = say.silent) -> list[str]:
        """Ends every process and removes every file of the lab; returns the hosts that were there. Works on
        what an interrupted `up` has left, and does nothing where there is nothing."""
        waiting = f"another command works on lab {self.name!r}; waiting for it"
        with locked(self.paths.lock, lambda: say.notice(progress, waiting)):
            folders = self.paths.root / "vms"
            hosts = sorted(folder.name for folder in folders.iterdir()) if folders.is_dir() else []
            if self.paths.root.exists():
                self.paths.going.touch()
            for process in find_in_folder(self.paths.root, PROCESS_MARKS):
                if not stop(process):
                    raise LabError(f"process {process.pid} of lab {self.name!r} does not die")
            remove_copies(self.paths, progress)
            if self.paths.root.exists():
                shutil.rmtree(self.paths.root)
            for host in hosts:
                say.done(progress, "gone", host)
            self.paths.lock.unlink(missing_ok=True)
        return hosts


def _prepare(store: KernelStore, wanted: str, options: LabOptions, progress: say.Progress) -> Prepared:
    kernel = store.resolve(wanted)
    return Prepared(kernel, InitramfsStore(progress=progress).build(kernel, options.initrd_pad))
