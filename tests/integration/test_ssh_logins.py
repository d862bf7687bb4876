"""Logins at a real OpenSSH server: keys that are refused, keys that cannot be used, and the ssh-agent's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.domain.errors import (
    LoginRefused,
)
from tests.support.sshd import Sshd, make_key
from tests.support.sshsessions import connected, refused, soon


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_key_that_the_host_does_not_know(sshd: Sshd, tmp_path: Path, kind: str) -> None:
    error = refused(sshd.host(key=str(make_key(tmp_path / "key", kind))), LoginRefused)
    assert error.code == "login_refused"


def test_keys_that_cannot_be_used(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted = make_key(tmp_path / "encrypted", passphrase="secret")
    assert refused(sshd.host(key=str(encrypted)), LoginRefused).code == "key_encrypted"
    assert refused(sshd.host(key=str(tmp_path / "none")), LoginRefused).code == "key_file"
    (tmp_path / "text").write_text("not a key\n")
    assert refused(sshd.host(key=str(tmp_path / "text")), LoginRefused).code == "key_file"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert refused(sshd.host(key=None), LoginRefused).code == "no_key"


def test_the_ssh_agent_is_asked_where_no_key_is_named(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        until = soon()
        while not sock.exists() and not until.expired:
            pass
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        monkeypatch.setenv("HOME", str(tmp_path))
        subprocess.run(["ssh-add", "-q", str(sshd.user_key)], check=True, capture_output=True)
        with connected(sshd.host(key=None)) as connection:
            assert connection.run(["true"], soon()).status == 0
    finally:
        agent.kill()
        agent.wait()
