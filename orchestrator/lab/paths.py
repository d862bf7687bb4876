"""Where the lab keeps things: a cache that may be deleted at any time, and one folder per lab."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import InputError

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kexec-fleet"


def labs_root() -> Path:
    """The folder that holds a folder per lab. KEXEC_FLEET_LAB_DIR overrides it.

    Not XDG_RUNTIME_DIR: that is emptied at the last logout while VMs live on (XDG base directory
    specification), and it is a small tmpfs that disks and consoles would fill.
    """
    override = os.environ.get("KEXEC_FLEET_LAB_DIR")
    if override:
        return Path(override)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "kexec-fleet" / "lab"


def check_name(name: str, what: str) -> str:
    """Names become folder names, host names and parts of QEMU options: only letters that are safe in all."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r} is not usable", hint="use up to 32 lower-case letters, digits and inner hyphens"
        )
    return name


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab."""

    root: Path

    @classmethod
    def of(cls, name: str) -> LabPaths:
        return cls(labs_root().absolute() / check_name(name, "lab name"))

    @property
    def state(self) -> Path:
        return self.root / "lab.json"

    @property
    def lock(self) -> Path:
        # Beside the folder, so that `down` can remove the folder while it holds the lock.
        return self.root.parent / f".{self.root.name}.lock"

    @property
    def inventory(self) -> Path:
        return self.root / "inventory.yaml"

    @property
    def copies(self) -> Path:
        """Which inventories were written elsewhere."""
        return self.root / "copies.json"

    @property
    def going(self) -> Path:
        """Is there while `down` takes the lab down, for those who wait for its guests."""
        return self.root / "going-down"

    @property
    def key(self) -> Path:
        return self.root / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    def vm(self, host: str) -> Path:
        return self.root / "vms" / host


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on `path` between processes; the kernel drops it when the holder dies. The
    holder may remove the file: who waited for it sees that its lock is on no file, and starts over.
    `on_wait` is called before a wait that may be long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                yield
                return
        finally:
            os.close(fd)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Readers see the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
