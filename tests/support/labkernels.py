"""Small stand-ins for kernels and their packages: real formats, no code in them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from orchestrator.lab.archive import Archive, Package


def make_image(release: str, symbols: Iterable[str] = (), *, btf: bool = True) -> bytes:
    """A bzImage whose compressed payload holds type information with the given names."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in symbols)
    header = b"\x9f\xeb\x01\x00" + struct.pack("<IIIII", 24, 0, 0, 0, len(strings))
    elf = b"\x7fELF" + b"no_cma" + b"." * 100 + (header + strings if btf else b"")
    payload = zstandard.ZstdCompressor().compress(elf)
    image = bytearray(2 * 512)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    text = f"{release} (someone@somewhere) #1".encode() + b"\0"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<II", image, 0x248, 0x20, len(payload))
    return bytes(image) + b"\0" * 0x20 + payload


def make_module(name: str, depends: str = "") -> bytes:
    return f"\x7fELF..\0license=GPL\0depends={depends}\0name={name}\0".encode()


def write_tree(root: Path, release: str, *, image_among_modules: bool, symbols: Iterable[str] = ()) -> None:
    """The files of a kernel's packages, the image where newer or where older packages have it."""
    modules = root / "usr/lib/modules" / release
    drivers = modules / "kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio_blk.ko").write_bytes(make_module("virtio_blk"))
    (drivers / "virtio_net.ko").write_bytes(make_module("virtio_net", "net_failover"))
    (drivers / "net_failover.ko").write_bytes(make_module("net_failover"))
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    image = modules / "vmlinuz" if image_among_modules else root / f"boot/vmlinuz-{release}"
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(make_image(release, symbols))


class FakeArchive(Archive):
    """The archive with a dictionary for an index and packages built on the spot; counts the downloads."""

    def __init__(self, folder: Path, index: dict[str, Package], trees: dict[str, Path]) -> None:
        super().__init__(folder)
        self.index = index
        self.trees = trees
        self.downloads: list[list[str]] = []

    def kernel_packages(self) -> dict[str, Package]:
        return self.index

    @contextmanager
    def downloaded(self, names: list[str]) -> Iterator[list[Path]]:
        self.downloads.append(names)
        files = []
        for name in names:
            tree = self.trees[name]
            control = tree / "DEBIAN"
            control.mkdir(exist_ok=True)
            (control / "control").write_text(
                f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: none\n"
            )
            file = self.folder.parent / f"{name}.deb"
            subprocess.run(["dpkg-deb", "-b", tree, file], check=True, capture_output=True)
            files.append(file)
        yield files
