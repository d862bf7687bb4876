"""The root image: owners survive its making, as root and as anybody, and the recipe names it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from orchestrator.lab import image, keys
from orchestrator.lab.run import find_tool


def make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, owner, mode in (
            ("./etc/secret", 0, 0o600),
            ("./var/served", 33, 0o644),
            ("./dev/null", 0, 0o666),
        ):
            member = tarfile.TarInfo(name)
            member.uid = member.gid = owner
            member.mode, member.size = mode, 5
            archive.addfile(member, io.BytesIO(b"12345"))


@pytest.mark.parametrize("user", [0, 1000])
def test_owners_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    """Who is not root goes through fakeroot; that path is taken here whoever runs the test."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    make_tar(tmp_path / "root.tar")
    image._make_file_system(tmp_path, tmp_path / "root.tar", tmp_path / "root.ext4")

    def ask(request: str) -> str:
        words = [find_tool("debugfs"), "-R", request, str(tmp_path / "root.ext4")]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert "User:     0   Group:     0" in ask("stat /etc/secret")
    assert "Mode:  0600" in ask("stat /etc/secret")
    assert "User:    33   Group:    33" in ask("stat /var/served")
    assert "null" not in ask("ls /dev"), "the kernel brings its own device nodes"


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.recipe_hash()
    assert image.recipe_hash() == before
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "hello"))
    assert image.recipe_hash() != before


def test_an_image_that_is_there_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_scratch: Path, _tar: Path) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(image, "_bootstrap", build)
    there = tmp_path / "images" / f"root-{image.recipe_hash()}.ext4"
    there.parent.mkdir()
    there.touch()
    assert image.ImageStore(tmp_path).root_image() == there


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(scratch: Path, tar: Path) -> None:
        tar.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "_bootstrap", build)
    stale = tmp_path / "images/.build-killed"
    stale.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        image.ImageStore(tmp_path).root_image()
    assert list((tmp_path / "images").iterdir()) == []


def test_identity_holds_what_makes_a_host_itself(tmp_path: Path) -> None:
    public = keys.make_key(tmp_path / "key", "web1")
    assert keys.make_key(tmp_path / "key", "web1") == public, "a key that is there is kept"
    data = keys.identity_archive("web1", tmp_path / "key", "ssh-ed25519 AAAAclient")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        authorized = archive.extractfile("root/.ssh/authorized_keys")
        assert authorized is not None
        assert authorized.read() == b"ssh-ed25519 AAAAclient\n"
    assert members["etc/ssh/ssh_host_ed25519_key"].mode == 0o600
    assert members["root/.ssh"].mode == 0o700
    assert all(member.uid == 0 for member in members.values())
    assert len(data) % 512 == 0, "it is read as a disk"
