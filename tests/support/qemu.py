"""A QEMU machine without a kernel, for its monitor's sake: it starts within a second and boots nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machine import QEMU

MONITOR = "qmp.sock"
_WATCH = "watch.sock"
_START_S = 120.0

# At the reset vector: hlt; jmp $-1. SeaBIOS, reset while it starts, may reset once more of itself, and a test
# that counts resets would count that one too.
HALT = b"\xf4\xeb\xfd".rjust(0xFFF3, b"\0").ljust(0x10000, b"\0")

# mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt; jmp $-1: QEMU's pc powers off (ACPI PM1a_CNT, SLP_EN).
POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"


class Machine:
    """A running QEMU. `resets` counts what it said on a second monitor, which a driver does not disturb."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, watch: socket.socket) -> None:
        self.process = process
        self.monitor = folder / MONITOR
        self._stream = watch.makefile("rw", encoding="utf-8")
        self._answers: list[dict[str, object]] = []
        self._events: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        self.execute("qmp_capabilities")

    def _listen(self) -> None:
        try:
            for line in self._stream:
                message = json.loads(line)
                with self._news:
                    if "event" in message:
                        self._events.append(message["event"])
                    elif "QMP" not in message:
                        self._answers.append(message)
                    self._news.notify_all()
        except (OSError, ValueError):
            pass

    def execute(self, command: str) -> object:
        self._stream.write(json.dumps({"execute": command}) + "\n")
        self._stream.flush()
        with self._news:
            assert self._news.wait_for(lambda: self._answers, _START_S), f"no answer to {command}"
            return self._answers.pop(0)["return"]

    @property
    def resets(self) -> int:
        self.execute("query-status")  # events come in order: whatever happened before is heard by now
        return self._events.count("RESET")

    def wait_for_shutdowns(self, count: int) -> None:
        """Until the guest has switched itself off so often: it has run that often."""
        with self._news:
            assert self._news.wait_for(lambda: self._events.count("SHUTDOWN") >= count, _START_S), (
                "it never ran"
            )

    @property
    def status(self) -> str:
        answer = self.execute("query-status")
        assert isinstance(answer, dict)
        return str(answer["status"])

    def wait_for_status(self, status: str) -> None:
        until = time.monotonic() + _START_S
        while (now := self.status) != status:
            assert time.monotonic() < until, f"{now} for ever, not {status}"
            time.sleep(0.02)

    def freeze(self) -> None:
        """QEMU keeps its sockets and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@contextmanager
def machine(folder: Path, *arguments: str, disk: bytes | None = None) -> Iterator[Machine]:
    """A machine whose monitor is `folder`/qmp.sock. Without a boot sector `disk` its CPU only halts."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc", "-accel", "tcg", "-m", "16M"),
        *("-qmp", f"unix:{MONITOR},server=on,wait=off", "-qmp", f"unix:{_WATCH},server=on,wait=off"),
        *arguments,
    ]
    if disk is None:
        (folder / "halt.bin").write_bytes(HALT)
        command += ["-bios", "halt.bin"]
    else:
        (folder / "disk.img").write_bytes(disk)
        command += ["-drive", "file=disk.img,format=raw,if=ide"]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
    watch = socket.socket(socket.AF_UNIX)
    watch.settimeout(_START_S)
    try:
        _connect(watch, folder, process)
        watch.settimeout(None)
        yield Machine(process, folder, watch)
    finally:
        process.kill()
        process.wait(60)
        watch.close()


def _connect(watch: socket.socket, folder: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    descriptor = os.open(folder, os.O_PATH)  # the path may be longer than a socket's address
    try:
        while True:
            try:
                watch.connect(f"/proc/self/fd/{descriptor}/{_WATCH}")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                assert process.poll() is None, "QEMU did not start"
                assert time.monotonic() < until, "QEMU never listened"
                time.sleep(0.02)
    finally:
        os.close(descriptor)
