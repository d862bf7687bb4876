"""Runs the real agent as a subprocess, through the real loader, on a directory that plays the host.

The entry below is the seam: it builds another Environment (paths below a root, a Kernel that records its
calls to a file) and hands it to the same `serve` that production calls. Only a test can render a bundle with
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workers.agentbundle import LOADER, AgentBundle, render

MEMINFO = "MemTotal: 2048000 kB\nMemAvailable: 1500000 kB\nCmaTotal: 262144 kB\nCmaFree: 262144 kB\n"
LOG_LINE = "6,100,5,-;kexec_file: kexec_file_load: type:0, start:0x60c48130 head:0x4 flags:0x8"
BOOT = "11111111-2222-3333-4444-555555555555"
OTHER_BOOT = "99999999-2222-3333-4444-555555555555"

_ENTRY = '''
import errno, json, os, struct, time
from workers.hostagent.environment import Environment
from workers.hostagent.kexec import Kernel
from workers.hostagent.main import serve

ROOT = {root!r}


class Recorder(Kernel):
    """Writes each call to calls.jsonl; behaviour.json says what it does."""

    def __init__(self):
        pass

    def behaviour(self, name, default=None):
        with open(ROOT + "/behaviour.json") as handle:
            return json.load(handle).get(name, default)

    def note(self, call, **more):
        line = json.dumps(dict(more, call=call, pid=os.getpid(), at=time.monotonic())) + "\\n"
        descriptor = os.open(ROOT + "/calls.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def set_loaded(self, text):
        with open(ROOT + "/sys/kernel/kexec_loaded", "w") as handle:
            handle.write(text)

    def kexec_file_load(self, kernel_fd, initrd_fd, cmdline, flags):
        if flags & 1:
            self.note("unload")
            self.set_loaded("0")
            return
        if kernel_fd == -1:
            raise OSError(errno.EBADF, "probe")
        self.note("load", flags=flags, cmdline=cmdline.decode(), kernel=os.fstat(kernel_fd).st_size)
        time.sleep(self.behaviour("load_seconds", 0.0))
        while self.behaviour("loading"):
            time.sleep(0.01)
        with open(ROOT + "/dev/kmsg", "a") as handle:
            handle.write({line!r} + "\\n SUB=x\\n")
        self.note("load_ended")
        if self.behaviour("load_errno"):
            raise OSError(self.behaviour("load_errno"), "refused")
        self.set_loaded("1")

    def reboot_kexec(self):
        self.note("reboot", raw=time.clock_gettime(time.CLOCK_MONOTONIC_RAW))
        while self.behaviour("reboot_errno") is None:
            time.sleep(0.02)
        raise OSError(self.behaviour("reboot_errno"), "refused")

    def sync(self):
        self.note("sync")
        time.sleep(self.behaviour("sync_seconds", 0.0))

    def open_device(self, path):
        if self.behaviour("device_errno"):
            raise OSError(self.behaviour("device_errno"), "refused")
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def ioctl(self, descriptor, request, data):
        """A watchdog that takes timeouts up to `most_timeout`; its file gathers the keepalives."""
        number = request & 0xff
        if number == 0:
            return struct.pack("=II32s", 0x8180, 0, self.behaviour("identity", "i6300ESB timer").encode())
        if number == 6:
            wanted = struct.unpack("=i", data)[0]
            if wanted > self.behaviour("most_timeout", 2046):
                raise OSError(errno.EINVAL, "refused")
            with open(ROOT + "/timeout", "w") as handle:
                handle.write(str(wanted))
        with open(ROOT + "/timeout") as handle:
            return struct.pack("=i", int(handle.read()))

    def is_root(self):
        return self.behaviour("root", True)

    def free_bytes(self, path):
        return self.behaviour("free_bytes", 10 ** 12)


environment = Environment(Recorder(), ROOT)
environment.systemctl = ROOT + "/systemctl"
environment.busctl = ROOT + "/busctl"
environment.bootctl = ROOT + "/bootctl"
environment.systemd_inhibit = ROOT + "/systemd-inhibit"
serve(environment, AGENT)
'''


def bzimage(init_size: int = 4 << 20, cmdline_size: int = 2047, size: int = 64 << 10) -> bytes:
    """An x86 boot header that says what the checks ask for, and bytes behind it."""
    image = bytearray(os.urandom(size))
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<I", image, 0x238, cmdline_size)
    struct.pack_into("<I", image, 0x260, init_size)
    return bytes(image)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def claim(fence: int = 17, journal: str = "journal-a", **changed: Any) -> dict[str, Any]:
    whole = {
        "journal": journal,
        "rollout": "r1",
        "host": "web1",
        "attempt": 1,
        "nonce": f"nonce-{journal}-{fence}",
        "fence": fence,
        "boot_id": BOOT,
    }
    return {**whole, **changed}


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """The first true answer of `condition`; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Host:
    """A directory with the few files of /proc, /sys and /dev that the agent wants, and its agents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._agents: list[Agent] = []
        for path, text in {
            "proc/sys/kernel/random/boot_id": BOOT + "\n",
            "proc/sys/kernel/osrelease": "7.2.12-test\n",
            "proc/sys/kernel/kexec_load_disabled": "0\n",
            "proc/sys/kernel/kexec_load_limit_reboot": "-1\n",
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu constant_tsc nonstop_tsc\n",
            "proc/meminfo": MEMINFO,
            "proc/1/comm": "init\n",
            "sys/kernel/kexec_loaded": "0\n",
            "sys/kernel/mm/cma/reserved/available_pages": "65536\n",
            "dev/kmsg": "6,0,0,-;Linux version 7.2.12-test\n",
            "behaviour.json": "{}",
            "calls.jsonl": "",
        }.items():
            self.write(path, text)
        self.kernel = self.write("boot/vmlinuz", bzimage())
        self.initrd = self.write("boot/initrd", os.urandom(128 << 10))

    def write(self, path: str, data: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        return target

    def behave(self, **behaviour: Any) -> None:
        temporary = self.write("behaviour.new", json.dumps(behaviour))
        temporary.rename(self.root / "behaviour.json")

    def calls(self, *names: str) -> list[dict[str, Any]]:
        calls = [json.loads(line) for line in (self.root / "calls.jsonl").read_text().splitlines()]
        return [call for call in calls if not names or call["call"] in names]

    def names(self) -> list[str]:
        return [call["call"] for call in self.calls("load", "unload", "reboot")]

    def loaded(self) -> bool:
        return (self.root / "sys/kernel/kexec_loaded").read_text().strip() == "1"

    def record(self) -> dict[str, Any]:
        return json.loads((self.root / "run/kexec-fleet/claim.json").read_text())

    def keeper_pid(self) -> int:
        return int(self.record()["keeper"]["pid"])

    def agent(self, python: str = sys.executable) -> Agent:
        made = render(_ENTRY.format(root=str(self.root), line=LOG_LINE))
        agent = Agent([python, "-I", "-c", LOADER], made)
        self._agents.append(agent)
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.kill()
        pids = {call["pid"] for call in self.calls()}
        with contextlib.suppress(OSError, KeyError, TypeError):
            pids.add(self.keeper_pid())
        for pid in pids:
            # Only a keeper of ours: its command line is the loader's.
            with contextlib.suppress(OSError):
                if b"kexec-fleet loader" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


class Agent:
    """One session: the process, its hello, and one question at a time."""

    def __init__(self, argv: list[str], bundle: AgentBundle, patience: float = 60.0) -> None:
        """`patience`: how many seconds an answer may take before the test fails."""
        self._patience = patience
        self._number = 0
        self._received = b""
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.send(bundle.header + bundle.source)
        self.hello = self.read()

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._received:
            ready, _, _ = select.select([descriptor], [], [], self._patience)
            data = os.read(descriptor, 1 << 16) if ready else b""
            assert data, f"no answer: {self._received!r}"
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)

    def begin(self, op: str, claim: dict[str, Any] | None = None, deadline: float = 20.0, **args: Any) -> int:
        self._number += 1
        request = {"id": self._number, "op": op, "deadline": deadline, "args": args}
        if claim is not None:
            request["claim"] = claim
        self.send(json.dumps(request).encode() + b"\n")
        return self._number

    def ask(
        self, op: str, claim: dict[str, Any] | None = None, deadline: float = 20.0, **args: Any
    ) -> dict[str, Any]:
        """The result of a request that must succeed."""
        number = self.begin(op, claim, deadline, **args)
        answer = self.read()
        assert answer["id"] == number
        assert answer["ok"], answer
        return answer["result"]

    def refused(
        self, op: str, claim: dict[str, Any] | None = None, deadline: float = 20.0, **args: Any
    ) -> dict[str, Any]:
        """The error of a request that must fail."""
        self.begin(op, claim, deadline, **args)
        answer = self.read()
        assert not answer["ok"], answer
        assert set(answer["error"]) == {"code", "message", "hint", "errno", "detail"}
        return answer["error"]

    def chunk(self, claim: dict[str, Any], digest: str, offset: int, data: bytes) -> dict[str, Any]:
        """The whole answer to one stage_chunk."""
        self.begin("stage_chunk", claim, sha256=digest, offset=offset, length=len(data))
        self.send(data)
        return self.read()

    def load(
        self, host: Host, claim: dict[str, Any], deadline: float = 20.0, **changed: Any
    ) -> dict[str, Any]:
        return self.ask("load", claim, deadline, **{**load_args(host), **changed})

    def armed(self, host: Host, claim: dict[str, Any], lead: float = 30.0, **changed: Any) -> dict[str, Any]:
        """Claims, loads, arms; -> the answer to arm."""
        self.ask("claim", claim)
        self.load(host, claim)
        return self.ask("arm", claim, lead=lead, span=0.05, **changed)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()

    def end(self) -> int:
        """Closes the channel and waits for the agent's end; -> exit status."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(timeout=20)


def load_args(host: Host) -> dict[str, Any]:
    return {
        "kernel": str(host.kernel),
        "initrd": str(host.initrd),
        "cmdline": "console=ttyS0 nonce",
        "flags": 0,
        "debug": True,
        "hold": 60.0,
        "expect": {"kernel": sha256(host.kernel.read_bytes()), "initrd": sha256(host.initrd.read_bytes())},
    }


@contextlib.contextmanager
def host_in(root: Path) -> Iterator[Host]:
    host = Host(root)
    try:
        yield host
    finally:
        host.close()
