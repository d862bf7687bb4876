"""The initramfs: module order, an archive that cpio itself reads, padding, recovery of a damaged one."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest
import zstandard

from orchestrator.domain.errors import LabError
from orchestrator.lab import cpio
from orchestrator.lab.evidence import KernelCapabilities
from orchestrator.lab.initramfs import InitramfsStore, layout, padding
from orchestrator.lab.kernels import KernelSource, LabKernel
from orchestrator.lab.modules import load_order, read_depends
from tests.support.labkernels import make_module


def module_tree(root: Path, modules: dict[str, str], built_in: tuple[str, ...] = ()) -> Path:
    drivers = root / "kernel/drivers"
    drivers.mkdir(parents=True)
    for file, depends in modules.items():
        name = file.split(".")[0]
        content = make_module(name, depends)
        if file.endswith(".xz"):
            content = lzma.compress(content)
        elif file.endswith(".zst"):
            content = zstandard.ZstdCompressor().compress(content)
        elif file.endswith(".gz"):
            content = gzip.compress(content)
        (drivers / file).write_bytes(content)
    (root / "modules.builtin").write_text("".join(f"kernel/x/{name}.ko\n" for name in built_in))
    return root


def test_dependencies_come_first_whatever_the_packing(tmp_path: Path) -> None:
    tree = module_tree(
        tmp_path,
        {
            "virtio_net.ko.xz": "net_failover",
            "net_failover.ko.zst": "failover",
            "failover.ko.gz": "",
            "virtio_blk.ko": "",
            "virtio-rng.ko": "",
            "unrelated.ko": "",
        },
        built_in=("ext4", "virtio_pci"),
    )
    order = load_order(tree)
    names = [module.name for module in order]
    assert names == ["virtio_blk", "failover", "net_failover", "virtio_net", "virtio_rng"]
    assert all(module.content.startswith(b"\x7fELF") for module in order)


def test_what_is_built_in_is_not_needed(tmp_path: Path) -> None:
    assert load_order(module_tree(tmp_path, {}, built_in=("virtio-blk", "virtio_net"))) == []


def test_a_kernel_without_virtio_disks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="virtio_blk is neither built in"):
        load_order(module_tree(tmp_path, {"virtio_net.ko": ""}))


def test_a_missing_dependency_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="net_failover"):
        load_order(module_tree(tmp_path, {"virtio_blk.ko": "", "virtio_net.ko": "net_failover"}))


def test_a_circle_ends(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="circle"):
        load_order(module_tree(tmp_path, {"virtio_blk.ko": "a", "a.ko": "virtio_blk", "virtio_net.ko": ""}))


def test_depends_are_read_with_either_spelling() -> None:
    assert read_depends(b"\0license=GPL\0depends=a-b,c\0vermagic=x\0") == ["a_b", "c"]
    assert read_depends(b"\0depends=\0") == []
    assert read_depends(b"no section") == []


def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    data = cpio.archive(
        [cpio.directory("d"), cpio.file("d/hello", b"hello\n", 0o755), cpio.symlink("link", "d/hello")]
    )
    assert len(data) % 512 == 0
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "link").read_bytes() == b"hello\n"
    assert (tmp_path / "d/hello").stat().st_mode & 0o777 == 0o755


def test_the_console_device_is_in_it() -> None:
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet"],
        input=cpio.archive(layout(b"busybox", [])),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert any(
        line.startswith("crw") and "5,   1" in line and "dev/console" in line for line in listing.splitlines()
    )
    assert any(line.startswith("-rwx") and line.endswith(" init") for line in listing.splitlines())


def test_padding_is_as_large_as_asked_and_does_not_compress() -> None:
    data = padding(1 << 20)
    assert 1 << 20 <= len(data) < (1 << 20) + 2048
    assert len(gzip.compress(data)) > 1 << 20
    assert padding(1 << 20) == data


def store_with_busybox(tmp_path: Path) -> tuple[InitramfsStore, LabKernel]:
    store = InitramfsStore(tmp_path / "cache")
    busybox = tmp_path / "cache/busybox/busybox"
    busybox.parent.mkdir(parents=True)
    busybox.write_bytes(b"busybox")
    digest = subprocess.run(["sha256sum", busybox], capture_output=True, check=True).stdout.split()[0]
    busybox.with_suffix(".sha256").write_bytes(digest)
    modules = module_tree(tmp_path / "modules", {"virtio_blk.ko": "", "virtio_net.ko": ""})
    abilities = KernelCapabilities(kexec_file=None, cma=None, no_cma_flag=None)
    kernel = LabKernel("9.9.9", tmp_path / "vmlinuz", modules, None, "", abilities, KernelSource.FILE)
    return store, kernel


def test_a_damaged_initramfs_is_built_again(tmp_path: Path) -> None:
    store, kernel = store_with_busybox(tmp_path)
    built = store.build(kernel)
    sound = built.path.read_bytes()
    built.path.write_bytes(sound[:100])
    assert store.build(kernel) == built
    assert built.path.read_bytes() == sound
    assert gzip.decompress(sound)[:6] == b"070701"


def test_padding_makes_another_file(tmp_path: Path) -> None:
    store, kernel = store_with_busybox(tmp_path)
    plain, padded = store.build(kernel), store.build(kernel, 1 << 16)
    assert plain.path != padded.path
    assert padded.size - plain.size >= 1 << 16
    assert padded.path.read_bytes().startswith(plain.path.read_bytes())
