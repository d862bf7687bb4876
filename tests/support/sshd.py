"""A real OpenSSH server on loopback with its own keys and configuration, as the current user (root)."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.domain.inventory import Host

SSHD = "/usr/sbin/sshd"


def free_port() -> int:
    """A port that nothing listens on now, below those that Linux gives to outgoing connections (32768 on).

    One of those could be taken by any connection of this machine before the server binds it.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A key pair by ssh-keygen; RSA short because the tests wait for it."""
    bits = ["-b", "2048"] if kind == "rsa" else []
    command = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def public(path: Path) -> str:
    """The public half as the inventory wants it: type and base64 text."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


@functools.cache
def _patience() -> tuple[str, ...]:
    """The line that keeps OpenSSH 9.8 and later from locking tests out that fail to log in on purpose."""
    line = "PerSourcePenalties no"
    asked = subprocess.run(
        [SSHD, "-T", "-f", "/dev/null", "-o", line], capture_output=True, text=True, check=False
    )
    return () if "Bad configuration option" in asked.stderr else (line,)


class Sshd:
    """One sshd. `options` are lines of sshd_config that go first, so that they win; `env` is the sessions'.

    HOME is a directory of the test's: the login shell must not run the start-up files of whoever runs the
    tests (pyenv's, for one, wait a minute for a lock that a killed session has left).
    """

    def __init__(
        self,
        where: Path,
        *,
        key_kinds: Iterable[str] = ("ed25519",),
        options: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        where.mkdir(parents=True, exist_ok=True)
        self.where = where
        self.port = free_port()
        self.user_key = make_key(where / "user_key")
        self.host_keys = {kind: make_key(where / f"host_{kind}", kind) for kind in key_kinds}
        authorized = where / "authorized_keys"
        shutil.copy(where / "user_key.pub", authorized)
        self.config = where / "sshd_config"
        variables = {"HOME": str(where), **(env or {})}
        self.config.write_text(
            "\n".join(
                [
                    *options,
                    *_patience(),
                    f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}",
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    *(f"HostKey {path}" for path in self.host_keys.values()),
                    f"AuthorizedKeysFile {authorized}",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PermitRootLogin yes",
                    "StrictModes no",
                    "UsePAM no",
                    f"PidFile {where}/sshd.pid",
                    "",
                ]
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Sshd:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation directory
        with (self.where / "log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(self.config)], stderr=log)
        try:
            self._wait_until_listening()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_listening(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self.process and self.process.poll() is None, (self.where / "log").read_text()
            if "Server listening" in (self.where / "log").read_text():
                return
            time.sleep(0.02)
        raise AssertionError("sshd did not start")

    def sessions(self) -> list[int]:
        """The processes that sshd forked for its connections, and theirs."""
        assert self.process
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            tasks = Path(f"/proc/{pid}/task/{pid}/children")
            children = [int(word) for word in tasks.read_text().split()] if tasks.exists() else []
            found += children
            queue += children
        return found

    def signal_sessions(self, number: signal.Signals) -> None:
        for pid in self.sessions():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def stop(self) -> None:
        if self.process:
            self.signal_sessions(signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def host(self, **values: object) -> Host:
        """An inventory entry for this server; without more, its first key is pinned."""
        first = next(iter(self.host_keys.values()))
        given = {
            "name": "web1",
            "address": "127.0.0.1",
            "port": self.port,
            "key": str(self.user_key),
            "known_hosts": str(self.where / "known_hosts"),
            "host_key": public(first),
        }
        return Host(**(given | values))  # type: ignore[arg-type]
