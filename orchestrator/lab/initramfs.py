"""The initramfs of one kernel: busybox, the modules its virtual hardware needs, a script to find the root."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from orchestrator.lab import cpio
from orchestrator.lab import progress as say
from orchestrator.lab.archive import Archive, unpack
from orchestrator.lab.kernels import LabKernel
from orchestrator.lab.modules import Module, load_order
from orchestrator.lab.paths import cache_root, locked, sha256_of, write_atomically

RECIPE = 1  # raise it when the layout below changes
BUSYBOX_PACKAGE = "busybox-static"


@dataclass(frozen=True)
class Initramfs:
    path: Path
    size: int


def guest_file(name: str) -> bytes:
    """A file that runs inside the guest, shipped with the package."""
    return resources.files("orchestrator.lab").joinpath("guest", name).read_bytes()


def layout(busybox: bytes, modules: list[Module]) -> list[cpio.Entry]:
    order = "".join(f"/modules/{module.name}.ko\n" for module in modules).encode()
    return [
        *(cpio.directory(name) for name in ("bin", "dev", "modules", "newroot", "proc", "sys")),
        # The kernel opens it for init's standard streams before anything is mounted.
        cpio.character_device("dev/console", 5, 1),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("init", guest_file("initramfs-init.sh"), 0o755),
        cpio.file("modules/order", order),
        *(cpio.file(f"modules/{module.name}.ko", module.content) for module in modules),
    ]


def padding(size: int) -> bytes:
    """An archive of its own with one file that does not compress, the same bytes each time."""
    noise = hashlib.shake_256(b"kexec-fleet lab padding").digest(size)
    return cpio.archive([cpio.file("padding", noise)])


class InitramfsStore:
    """Built once per kernel, module set and padding."""

    def __init__(self, cache: Path | None = None, progress: say.Progress = say.silent) -> None:
        self.cache = cache or cache_root()
        self.progress = progress

    def build(self, kernel: LabKernel, pad_bytes: int = 0) -> Initramfs:
        with locked(self.cache / "initramfs.lock"):
            modules = load_order(kernel.modules_dir) if kernel.modules_dir else []
            entries = layout(self._busybox(), modules)
            key = hashlib.sha256(f"{RECIPE} {pad_bytes} {kernel.release}".encode())
            for entry in entries:
                key.update(f"\0{entry.path} {entry.mode} {len(entry.content)}\0".encode() + entry.content)
            path = self.cache / "initramfs" / f"{kernel.release}-{key.hexdigest()[:16]}.img"
            if not _sound(path):
                say.step(self.progress, f"building the initramfs of {kernel.release}")
                # gzip: the one compression that every kernel of a user's own can be expected to undo.
                data = gzip.compress(cpio.archive(entries), compresslevel=6, mtime=0)
                data += b"\0" * (-len(data) % 512)
                data += padding(pad_bytes) if pad_bytes else b""
                write_atomically(path, data)
                write_atomically(path.with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())
            return Initramfs(path, path.stat().st_size)

    def _busybox(self) -> bytes:
        """The static busybox of the guests' own distribution."""
        folder = self.cache / "busybox"
        path = folder / "busybox"
        if not _sound(path):
            say.step(self.progress, "fetching busybox")
            archive = Archive(self.cache / "apt", self.progress)
            with archive.downloaded([BUSYBOX_PACKAGE]) as files, tempfile.TemporaryDirectory() as scratch:
                unpack(files[0], Path(scratch))
                data = next(Path(scratch).glob("**/bin/busybox")).read_bytes()
            write_atomically(path, data, 0o755)
            write_atomically(path.with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())
        return path.read_bytes()


def _sound(path: Path) -> bool:
    """There, and with the hash that was stored when it was made."""
    try:
        return sha256_of(path) == path.with_suffix(".sha256").read_text()
    except OSError:
        return False
