"""The lab itself, with a real VM: up, status, ssh, console, the firmware's fall-back, a jump by hand, down.

The steps follow one another on one VM; each leaves it up. Waits suit a busy machine without KVM.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.domain.errors import InputError
from orchestrator.lab import console, ssh
from orchestrator.lab.fleet import LabFleet, VmState
from orchestrator.lab.spec import LabOptions, parse_hosts
from orchestrator.lab.vm import PROCESS_MARKS, Vm

HOST = "web1"
NAME = "test-lab"
PATIENCE = 600.0
STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")

# Loads the target with the flags given and jumps; the session is let go first.
JUMP = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
line = open("/proc/cmdline").read().strip() + " kexec_fleet.attempt=" + sys.argv[2]
kernel, initrd = os.open("/root/vmlinuz", 0), os.open("/root/initrd", 0)
text = line.encode() + b"\\0"
size, flags = ctypes.c_ulong(len(text)), ctypes.c_ulong(int(sys.argv[1], 0))
if libc.syscall(ctypes.c_long(320), kernel, initrd, size, text, flags):
    sys.exit("load refused: errno %d" % ctypes.get_errno())
print("loaded", flush=True)
if os.fork():
    os._exit(0)
os.setsid()
nothing = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
time.sleep(1)
libc.reboot(0x45584543)
"""
NO_CMA = "0x10"


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of our own for labs; the cache of kernels and images is the user's."""
    folder = tmp_path_factory.mktemp("labs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def fleet(labs: Path) -> Iterator[LabFleet]:
    lab = LabFleet.open(NAME)
    try:
        lab.up(parse_hosts(f"{HOST}=7.2"), LabOptions(target="7.3"), lambda event: print(event.text))
        yield lab
    finally:
        lab.down()
        assert list(labs.iterdir()) == []


def cli(*words: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.lab", *words],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def wait_for(what: str, condition: Callable[[], bool], vm: Vm) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}\n" + "\n".join(console.tail(vm.console_path, 40)))
        time.sleep(1.0)


def boot_id(vm: Vm) -> str:
    return vm.ask_service() or ""


def wait_for_another_boot(vm: Vm, before: str) -> None:
    wait_for("the guest is up again", lambda: boot_id(vm) not in ("", before), vm)


def call(fleet: LabFleet, command: str, give: bytes | None = None) -> str:
    """A command in the guest. sshd may need a moment longer than the service."""
    words = fleet.ssh_command(HOST, [command])
    for _ in range(20):
        done = subprocess.run(words, input=give, capture_output=True, timeout=PATIENCE, check=False)
        if done.returncode != 255:
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()
        time.sleep(3.0)
    pytest.fail(f"no login: {done.stderr.decode()}")


def test_up_twice_is_a_no_op_that_says_so(fleet: LabFleet) -> None:
    pid = fleet.vm(HOST).pid
    done = cli("up", "--name", NAME, "--hosts", f"{HOST}=7.2")
    assert done.returncode == 0, done.stderr
    assert f"already up: {HOST}" in done.stdout
    assert LabFleet.open(NAME).vm(HOST).pid == pid


def test_another_kernel_for_the_same_host_is_refused(fleet: LabFleet) -> None:
    done = cli("up", "--name", NAME, "--hosts", f"{HOST}=7.3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    with pytest.raises(InputError):
        fleet.up(parse_hosts("other=1.2.3"), LabOptions())


def test_status_says_what_runs(fleet: LabFleet) -> None:
    (row,) = fleet.status()
    assert row.state is VmState.UP
    assert row.running == row.kernel
    assert row.kernel.startswith("7.2.")
    assert row.role == "cma"
    (record,) = json.loads(cli("status", "--name", NAME, "--json").stdout)
    assert (record["host"], record["state"], record["pid"]) == (HOST, "up", row.pid)
    assert row.kernel in cli("status", "--name", NAME).stdout


def test_the_guest_is_as_promised(fleet: LabFleet) -> None:
    done = cli("ssh", "--name", NAME, HOST, "--", "hostname; cat /proc/cmdline; ps -o stat= -e; exit 7")
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == HOST
    assert {"panic=10", "console=ttyS0", "cma=384M", "net.ifnames=0"} <= set(lines[1].split())
    assert not any(line.startswith("Z") for line in lines[2:]), "PID 1 must reap"
    # sshd punishes impatient clients, as Debian ships it: a mistake of ours must be seen.
    assert "persourcepenalties crash:" in call(fleet, "/usr/sbin/sshd -T")
    key = call(fleet, "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
    inventory = yaml.safe_load(fleet.inventory_path.read_text())
    assert inventory["hosts"][HOST]["host_key"] == key
    assert key.split()[1] not in call(fleet, "cat /proc/cmdline")


def test_another_host_key_is_refused(fleet: LabFleet) -> None:
    pinned = fleet.paths.known_hosts.read_text()
    other = (fleet.paths.root / "id_ed25519.pub").read_text().split()[1]
    try:
        fleet.paths.known_hosts.write_text(re.sub(r"AAAA\S+", other, pinned))
        answer = ssh.call(fleet.paths, fleet.vm(HOST).ssh_port, "true", 120)
    finally:
        fleet.paths.known_hosts.write_text(pinned)
    assert answer.code == 255
    assert "verification failed" in answer.complaint


def test_the_flag_is_known_as_the_image_said(fleet: LabFleet) -> None:
    """The ability was read from the file; here the running kernel is asked."""
    probe = "import ctypes,os; c=ctypes.CDLL(None,use_errno=True); z=ctypes.c_ulong(0)"
    probe += "; c.syscall(ctypes.c_long(320),-1,-1,z,None,ctypes.c_ulong(0x14)); print(ctypes.get_errno())"
    assert call(fleet, f'python3 -c "{probe}"').strip() == "9"  # EBADF: known


def test_the_console_is_whole_and_carries_the_time(fleet: LabFleet) -> None:
    vm = fleet.vm(HOST)
    text = console.read_all(vm.console_path)
    assert all(STAMPED.match(line) for line in text.splitlines())
    assert "Kernel command line: root=/dev/vda" in text
    raw = cli("console", "--name", NAME, "--raw", HOST).stdout
    assert not STAMPED.match(raw)
    # Every line that the kernel sent to its console (level below 7) must have arrived.
    sent = call(fleet, "dmesg --level=emerg,alert,crit,err,warn,notice,info").splitlines()
    assert len(sent) > 100
    assert [line for line in sent if line not in text] == []


def test_a_reset_comes_back_through_the_firmware(fleet: LabFleet) -> None:
    vm = fleet.vm(HOST)
    before, pid = boot_id(vm), vm.pid
    call(fleet, "(sleep 1; echo b > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    wait_for_another_boot(vm, before)
    assert vm.pid == pid
    assert call(fleet, "uname -r").strip() == vm.config.release


def test_the_guests_own_reboot_works(fleet: LabFleet) -> None:
    vm = fleet.vm(HOST)
    before = boot_id(vm)
    call(fleet, "(sleep 1; reboot) > /dev/null 2>&1 &")
    wait_for_another_boot(vm, before)


def test_a_jump_into_cma_corrupts_and_falls_back(fleet: LabFleet) -> None:
    """What the product is for: placed misaligned, the new kernel destroys its own initrd."""
    vm = fleet.vm(HOST)
    upload_target(fleet)
    before = boot_id(vm)
    assert "loaded" in call(fleet, "python3 /root/jump.py 0x0 nonce-cma")
    wait_for_another_boot(vm, before)
    text = console.read_all(vm.console_path)
    after_jump = text[text.index("Kernel command line", text.index("Starting new kernel")) :]
    assert "kexec_fleet.attempt=nonce-cma" in after_jump
    assert "Initramfs unpacking failed" in after_jump
    assert "Kernel panic - not syncing" in after_jump
    assert call(fleet, "uname -r").strip() == vm.config.release
    assert "nonce-cma" not in call(fleet, "cat /proc/cmdline")


def test_a_jump_without_cma_arrives_and_the_reset_button_goes_back(fleet: LabFleet) -> None:
    vm = fleet.vm(HOST)
    upload_target(fleet)
    before = boot_id(vm)
    assert "loaded" in call(fleet, f"python3 /root/jump.py {NO_CMA} nonce-plain")
    wait_for_another_boot(vm, before)
    assert call(fleet, "uname -r").strip() == fleet.target.release
    assert "nonce-plain" in call(fleet, "cat /proc/cmdline")
    before = boot_id(vm)
    vm.power_cycle()
    wait_for_another_boot(vm, before)
    assert call(fleet, "uname -r").strip() == vm.config.release


def upload_target(fleet: LabFleet) -> None:
    for name, content in (
        ("vmlinuz", Path(fleet.target.image).read_bytes()),
        ("initrd", Path(fleet.target.initrd).read_bytes()),
        ("jump.py", JUMP.encode()),
    ):
        call(fleet, f"cat > /root/{name} && sync", content)


def test_a_killed_vm_is_seen_and_up_starts_it_again(fleet: LabFleet) -> None:
    vm = fleet.vm(HOST)
    call(fleet, "echo kept > /root/file && sync")
    vm.kill()
    assert vm.pid is None
    assert [row.state for row in fleet.status()] == [VmState.STOPPED]
    report = fleet.up(None, LabOptions())
    assert report.started == (HOST,)
    assert call(fleet, "cat /root/file").strip() == "kept"
    assert console.read_all(vm.console_path).count("--- lab: power on ---") == 2


def test_an_interrupted_up_is_cleared_away(labs: Path) -> None:
    """Ctrl-C while the guest boots: the VM is there, and `down` ends it."""
    words = [
        sys.executable,
        "-m",
        "orchestrator.cli.lab",
        "up",
        "--name",
        "half",
        "--hosts",
        "x=7.2",
        "--target",
        "7.3",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "starting on" in line:
                break
        lab = LabFleet.open("half")
        deadline = time.monotonic() + PATIENCE
        while lab.vm("x").pid is None and time.monotonic() < deadline:
            time.sleep(0.2)
        child.kill()  # harder than Ctrl-C: nothing of its own runs any more
    assert lab.vm("x").pid is not None
    assert lab.down() == ["x"]
    assert not lab.paths.root.exists()


def test_down_leaves_nothing_behind(labs: Path) -> None:
    """By itself, so that it may come last: its own VM, not waited for."""
    done = cli("up", "--name", "short", "--hosts", "y=7.2", "--target", "7.3", "--boot-timeout", "0.1")
    assert done.returncode == 1, "nothing boots in no time"
    assert "did not answer" in done.stderr
    vm = LabFleet.open("short").vm("y")
    assert vm.pid is not None
    done = cli("down", "--name", "short")
    assert (done.returncode, done.stdout) == (0, "gone: y\n")
    assert "short" not in "".join(path.name for path in labs.iterdir())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                where = str((entry / "cwd").readlink())
            except OSError:
                continue
            assert not (
                where.startswith(str(labs / "short")) and any(mark in command for mark in PROCESS_MARKS)
            )
    assert cli("down", "--name", "short").stdout.startswith("nothing was up")
