"""The controller's kernel and initrd files: hashes, formats, and what is refused before a host is touched."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.bootimage import Images
from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.initrd import archive_formats
from orchestrator.domain.inventory import Inventory
from orchestrator.loading.images import inspect_images
from orchestrator.loading.playbook import load_playbook
from tests.support.images import BUILD_ID, RELEASE, bzimage, cpio

NO_HOSTS = Inventory(hosts={})
PACKED = {
    "gzip": gzip.compress(cpio("init")),
    "xz": lzma.compress(cpio("init")),
    "zstd": zstandard.ZstdCompressor().compress(cpio("init")),
    "bzip2": bz2.compress(cpio("init")),
    "lzma": lzma.compress(cpio("init"), format=lzma.FORMAT_ALONE),
    "lz4": b"\x02\x21\x4c\x18rest",
    "lzo": b"\x89LZO\x00rest",
}


def inspect(folder: Path, **kernel: str) -> Images:
    """Images of a playbook with these keys under `on_controller`, one a line from line 4 on."""
    path = folder / "playbook.yaml"
    lines = "".join(f"    {key}: {value}\n" for key, value in kernel.items())
    path.write_text(f"name: x\nkernel:\n  on_controller:\n{lines}")
    return inspect_images(load_playbook(path, NO_HOSTS))


def refused(folder: Path, line: int, **kernel: str) -> InputError:
    with pytest.raises(InputError) as caught:
        inspect(folder, **kernel)
    key = list(kernel)[line - 4]
    assert caught.value.position == SourcePosition(str(folder / "playbook.yaml"), line, 7 + len(key))
    assert caught.value.hint
    return caught.value


def put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return name


def test_hash_size_header_and_build_id(tmp_path: Path) -> None:
    kernel, initrd = bzimage(), cpio("early") + PACKED["zstd"]
    put(tmp_path, "vmlinuz", kernel)
    put(tmp_path, "initrd", initrd)
    digests = {
        "image_sha256": hashlib.sha256(kernel).hexdigest().upper(),
        "initrd_sha256": hashlib.sha256(initrd).hexdigest(),
    }
    images = inspect(tmp_path, image="vmlinuz", initrd="initrd", **digests)
    assert images.kernel is not None and images.initrd is not None
    assert images.kernel.path == str(tmp_path / "vmlinuz")
    assert images.kernel.size == len(kernel)
    assert images.kernel.sha256 == hashlib.sha256(kernel).hexdigest()
    assert images.kernel.header.release == RELEASE
    assert images.kernel.build_id == BUILD_ID.hex()
    assert (images.initrd.size, images.initrd.formats) == (len(initrd), ("cpio", "zstd"))
    assert Images.model_validate_json(images.model_dump_json()) == images


def test_files_on_the_hosts_are_not_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "playbook.yaml"
    path.write_text("name: x\nkernel: {on_host: {image: /nowhere/vmlinuz}}\n")
    assert inspect_images(load_playbook(path, NO_HOSTS)) == Images()


def test_missing_kernel(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path, 4, image="vmlinuz").message


def test_missing_initrd(tmp_path: Path) -> None:
    put(tmp_path, "vmlinuz", bzimage())
    error = refused(tmp_path, 5, image="vmlinuz", initrd="initrd")
    assert f"cannot read {tmp_path / 'initrd'}: No such file" in error.message


def test_not_a_bzimage(tmp_path: Path) -> None:
    put(tmp_path, "vmlinuz", b"\x7fELF" + bytes(10_000))
    error = refused(tmp_path, 4, image="vmlinuz")
    assert "vmlinuz: not a bzImage" in error.message
    assert "vmlinux" in error.hint


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100), cpio("init") + b"junk"])
def test_initrd_that_is_no_archive(tmp_path: Path, data: bytes) -> None:
    put(tmp_path, "vmlinuz", bzimage())
    put(tmp_path, "initrd", data)
    assert "not an initrd archive" in refused(tmp_path, 5, image="vmlinuz", initrd="initrd").message


def test_wrong_hashes(tmp_path: Path) -> None:
    put(tmp_path, "vmlinuz", bzimage())
    put(tmp_path, "initrd", cpio("init"))
    error = refused(tmp_path, 5, image="vmlinuz", image_sha256="0" * 64)
    assert f"not {'0' * 64}" in error.message
    refused(tmp_path, 6, image="vmlinuz", initrd="initrd", initrd_sha256="f" * 64)


def test_another_release_than_the_playbooks(tmp_path: Path) -> None:
    put(tmp_path, "vmlinuz", bzimage())
    path = tmp_path / "playbook.yaml"
    path.write_text("name: x\nkernel:\n  release: 7.3.5\n  on_controller: {image: vmlinuz}\n")
    with pytest.raises(InputError, match=r"is 7\.3\.5, and .* is 7\.3\.4") as caught:
        inspect_images(load_playbook(path, NO_HOSTS))
    assert caught.value.position == SourcePosition(str(path), 3, 12)


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vmlinuz")
    assert "not a regular file" in refused(tmp_path, 4, image="vmlinuz").message


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").mkdir()
    assert "not a regular file" in refused(tmp_path, 4, image="vmlinuz").message


@pytest.mark.parametrize(
    ("data", "formats"),
    [
        *((data, (name,)) for name, data in PACKED.items()),
        (cpio("init"), ("cpio",)),
        (cpio("init") + bytes(4096), ("cpio",)),
        (bytes(512) + cpio("init"), ("cpio",)),
        (cpio("microcode") + bytes(300) + PACKED["gzip"], ("cpio", "gzip")),
        (cpio("microcode") + cpio("init"), ("cpio", "cpio")),
        (cpio("init").replace(b"070701", b"070702"), ("cpio",)),
    ],
    # Not pytest's own, which have the bytes in them: gzip's hold the time.
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else f"{len(value)} bytes",
)
def test_archives_as_the_kernel_sees_them(data: bytes, formats: tuple[str, ...]) -> None:
    assert archive_formats(data) == formats


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (bytes(5000), "nothing but zeros"),
        (b"070707" + bytes(100), "old format"),
        (b"\0" + cpio("init"), "begins with b'070701'"),
        (b"#!/bin/sh", "begins with b'#!/bin'"),
        (cpio("init", trailer=False), "no trailer before it"),
        (cpio("init")[:50], "no member at byte 0"),
        (cpio("init") + b"\0\0\0junk", "at byte 251, behind cpio"),
        (cpio("init").replace(b"0000000B", b"0000zz0B"), "damaged"),
    ],
)
def test_what_the_kernel_would_choke_on(data: bytes, says: str) -> None:
    with pytest.raises(InputError) as caught:
        archive_formats(data)
    assert says in caught.value.message


@given(st.binary(max_size=300))
def test_any_bytes_are_an_archive_or_an_input_error(noise: bytes) -> None:
    for data in (noise, cpio("init")[:-8] + noise, b"070701" + noise):
        try:
            assert archive_formats(data)
        except InputError as error:
            assert error.hint
