"""Kernel image headers, payloads and build-ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.bootimage import HEAD_BYTES, BootHeader, ImageKind, parse_header
from orchestrator.domain.errors import BootImageError
from orchestrator.domain.payload import build_id, elf_build_id, unpack
from tests.support.images import BUILD_ID, PACKERS, RELEASE, VERSION, arm64_image, bzimage, elf


def test_header_tells_what_the_kernel_needs() -> None:
    image = bzimage()
    header = parse_header(image[:HEAD_BYTES], len(image))
    assert header == BootHeader(
        kind=ImageKind.BZIMAGE,
        machine="x86_64",
        protocol="2.15",
        setup_size=2048,
        kernel_alignment=2 << 20,
        init_size=60 << 20,
        cmdline_size=2047,
        payload_offset=2048 + 512,
        payload_length=len(image) - 2048 - 512,
        version=VERSION,
    )
    assert header.release == RELEASE


def test_setup_sects_zero_means_four() -> None:
    assert parse_header(bzimage(setup_sects=0)).setup_size == 5 * 512


def test_version_text_beyond_what_was_read_is_unknown_not_wrong() -> None:
    image = bzimage()
    assert parse_header(image[:0x300], len(image)).release is None
    assert parse_header(image[:0x304], len(image)).release is None, "a cut-off text is no release"
    assert parse_header(bzimage(kernel_version=0)).release is None
    assert parse_header(bzimage(kernel_version=0xFFFF)).release is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"boot_flag": 0}, "not a bzImage"),
        ({"protocol": 0x020B}, "refuses: boot protocol 2.11"),
        ({"loadflags": 0}, "refuses"),
        ({"relocatable": 0}, "refuses"),
        ({"xloadflags": 0}, "32-bit"),
        ({"kernel_alignment": 3 << 20}, "kernel_alignment"),
        ({"kernel_alignment": 0}, "kernel_alignment"),
        ({"kernel_alignment": 1 << 31}, "kernel_alignment"),
        ({"init_size": 0}, "init_size"),
        ({"init_size": 0xFFFFFFFF}, "init_size"),
        ({"cmdline_size": 0}, "cmdline_size"),
        ({"cmdline_size": 1 << 24}, "cmdline_size"),
        ({"payload_length": 1 << 30}, "payload ends"),
        ({"setup_sects": 255}, "setup part alone"),
    ],
)
def test_absurd_headers_are_refused(changes: dict[str, int], says: str) -> None:
    image = bzimage(**changes)
    with pytest.raises(BootImageError, match=says):
        parse_header(image, len(image))


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (elf(), "vmlinux"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"MZ\0\0zimg" + bytes(600), "zboot"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (b"", "name a kernel"),
        (b"hello\n" * 200, "name a kernel"),
    ],
)
def test_other_files_are_named_for_what_they_are(data: bytes, hint: str) -> None:
    with pytest.raises(BootImageError, match="not a bzImage") as caught:
        parse_header(data, len(data))
    assert hint in caught.value.hint


def test_header_cut_off_is_refused() -> None:
    with pytest.raises(BootImageError, match="ends inside its header"):
        parse_header(bzimage()[:0x240])


@given(st.binary(max_size=2048))
def test_any_bytes_are_a_header_or_a_boot_image_error(noise: bytes) -> None:
    image = bytearray(bzimage())
    image[0x1F0 : 0x1F0 + len(noise)] = noise
    image[0x1FE:0x206] = b"\x55\xaa\0\0HdrS"
    for data in (bytes(image), noise):
        try:
            header = parse_header(data, len(data))
        except BootImageError:
            continue
        unpack(data, header)


def test_arm64_image_is_recognised() -> None:
    header = parse_header(arm64_image())
    assert (header.kind, header.machine, header.kernel_alignment) == (ImageKind.ARM64, "aarch64", 2 << 20)
    assert header.init_size == 40 << 20
    assert build_id(arm64_image()) is None
    with pytest.raises(BootImageError, match="image_size"):
        parse_header(arm64_image(image_size=0))


@pytest.mark.parametrize("packer", list(PACKERS))
def test_build_id_through_every_packer(packer: str) -> None:
    image = bzimage(packer=packer)
    assert unpack(image, parse_header(image)) == elf()
    assert build_id(image) == BUILD_ID.hex()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x02\x21\x4c\x18lz4 is not unpacked here",
        b"\x28\xb5\x2f\xfd damaged zstd",
        b"\x1f\x8b damaged gzip",
        b"\xfd7zXZ\x00 damaged xz",
        b"",
    ],
)
def test_a_payload_that_cannot_be_unpacked_has_no_build_id(payload: bytes) -> None:
    assert build_id(bzimage(payload=payload)) is None


def test_no_note_no_build_id() -> None:
    assert elf_build_id(elf(build_id=None)) is None
    assert elf_build_id(b"\x7fELF") is None
    assert elf_build_id(elf()[:100]) is None
    assert elf_build_id(b"") is None


def test_a_bomb_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.domain.payload.MAX_UNPACKED", 4096)
    for packer in PACKERS:
        image = bzimage(packer=packer, vmlinux=elf() + bytes(10 << 20))
        unpacked = unpack(image, parse_header(image))
        assert unpacked is not None and len(unpacked) <= 4096, packer
