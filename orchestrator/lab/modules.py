"""Which modules a guest must load, and in what order, read from the modules' own `depends=` lines."""

from __future__ import annotations

import gzip
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import zstandard

from orchestrator.domain.errors import LabError

# Without the first two there is no root and no network; the others are taken where the kernel has them.
REQUIRED = ("virtio_blk", "virtio_net")
WELCOME = ("virtio_pci", "ext4", "virtio_rng", "i6300esb", "ramoops")
MODULE_FILE = re.compile(r"(?P<name>.+)\.ko(?P<packing>|\.xz|\.zst|\.gz)")


@dataclass(frozen=True)
class Module:
    name: str
    content: bytes  # uncompressed, so that any insmod can load it


def normal(name: str) -> str:
    """Module names use - and _ alike."""
    return name.replace("-", "_")


def read_module(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if path.name.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def read_depends(content: bytes) -> list[str]:
    """The `depends=` entry of .modinfo: a NUL-terminated string, first in the section or after a NUL."""
    match = re.search(rb"\0depends=([^\0]*)\0", content) or re.search(rb"^depends=([^\0]*)\0", content)
    names = match.group(1).decode("ascii", "replace").split(",") if match else []
    return [normal(name) for name in names if name]


def load_order(folder: Path) -> list[Module]:
    """The wanted modules and all they depend on, dependencies first."""
    files: dict[str, Path] = {}
    for path in sorted((folder / "kernel").rglob("*.ko*")):
        match = MODULE_FILE.fullmatch(path.name)
        if match:
            files[normal(match["name"])] = path
    built_in = _built_in(folder)
    ordered: dict[str, Module] = {}

    def visit(name: str, required: bool, above: tuple[str, ...]) -> None:
        if name in ordered or name in built_in:
            return
        if name in above:
            raise LabError(f"modules depend on each other in a circle: {' -> '.join((*above, name))}")
        if name not in files:
            if required:
                raise LabError(f"module {name} is neither built in nor under {folder}",
                               hint="the lab's machines need virtio disks and network")  # fmt: skip
            return
        content = read_module(files[name])
        for dependency in read_depends(content):
            visit(dependency, True, (*above, name))
        ordered[name] = Module(name, content)

    for name in REQUIRED:
        visit(name, True, ())
    for name in WELCOME:
        visit(name, False, ())
    return list(ordered.values())


def _built_in(folder: Path) -> set[str]:
    listing = folder / "modules.builtin"
    lines = listing.read_text().splitlines() if listing.exists() else []
    return {normal(Path(line).name.removesuffix(".ko")) for line in lines}
