"""Private keys as ssh-keygen and OpenSSL write them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import paramiko
import pytest

from tests.support.sshd import make_key, public
from workers.connection.errors import KeyFileProblem
from workers.connection.userkeys import read_key


def text(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


@pytest.mark.parametrize("number", range(12))
def test_ecdsa_keys_without_a_comment(tmp_path: Path, number: int) -> None:
    """paramiko's own parser refuses about every second one of them."""
    path = make_key(tmp_path / "key", "ecdsa")
    assert text(read_key(path)) == public(path)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
@pytest.mark.parametrize("form", ["OpenSSH", "PEM"])
def test_every_type_in_both_formats_signs(tmp_path: Path, kind: str, form: str) -> None:
    path = make_key(tmp_path / "key", kind)
    if form == "PEM":  # for ed25519 this leaves OpenSSH's form, as ssh-keygen does
        subprocess.run(
            ["ssh-keygen", "-p", "-m", "PEM", "-N", "", "-f", path], check=True, capture_output=True
        )
    key = read_key(path)
    assert text(key) == public(path)
    algorithm = "rsa-sha2-512" if kind == "rsa" else None
    signature = paramiko.Message(key.sign_ssh_data(b"data", algorithm).asbytes())
    verifier = paramiko.PKey.from_type_string(key.get_name(), key.asbytes())
    assert verifier.verify_ssh_sig(b"data", signature)


def test_a_certificate_beside_the_key_is_taken_along(tmp_path: Path) -> None:
    path, authority = make_key(tmp_path / "key"), make_key(tmp_path / "ca")
    command = ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", "root", path.with_name("key.pub")]
    subprocess.run(command, check=True)
    blob = read_key(path).public_blob
    assert blob and blob.key_type == "ssh-ed25519-cert-v01@openssh.com"


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(paramiko.PasswordRequiredException):
        read_key(make_key(tmp_path / "encrypted", passphrase="secret"))
    with pytest.raises(KeyFileProblem, match="No such file"):
        read_key(tmp_path / "none")
    (tmp_path / "text").write_text("no key\n")
    with pytest.raises(KeyFileProblem, match="not a private key"):
        read_key(tmp_path / "text")
    command = ["openssl", "genpkey", "-algorithm", "ed448", "-out", str(tmp_path / "ed448")]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(KeyFileProblem, match="cannot be used"):
        read_key(tmp_path / "ed448")
