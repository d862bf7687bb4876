"""Host keys of a real OpenSSH server: pinned, known, new, changed and refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestrator.domain.errors import (
    HostKeyRefused,
)
from tests.support.sshd import Sshd, make_key, public
from tests.support.sshsessions import connected, refused


def test_an_unknown_key_is_refused_before_any_login(own_sshd: Sshd) -> None:
    error = refused(own_sshd.host(host_key=None), HostKeyRefused)
    assert error.code == "host_key_unknown"
    key = own_sshd.host_keys["ed25519"]
    assert f'host_key: "{public(key)}"' in error.hint
    shown = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] in error.message
    assert "Accepted publickey" not in (own_sshd.where / "log").read_text()


def test_a_changed_key_is_another_error_than_an_unknown_one(own_sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    error = refused(own_sshd.host(host_key=public(other)), HostKeyRefused)
    assert error.code == "host_key_changed"
    # known_hosts says the same, also where new keys are accepted.
    known = tmp_path / "kh"
    known.write_text(f"[127.0.0.1]:{own_sshd.port} {public(other)}\n")
    accepting = own_sshd.host(host_key=None, known_hosts=str(known), host_key_policy="accept-new")
    assert refused(accepting, HostKeyRefused).code == "host_key_changed"
    assert known.read_text().count("\n") == 1
    assert "Accepted publickey" not in (own_sshd.where / "log").read_text()


def test_a_pinned_type_that_the_host_does_not_have(own_sshd: Sshd, tmp_path: Path) -> None:
    pin = public(make_key(tmp_path / "rsa", "rsa"))
    assert refused(own_sshd.host(host_key=pin), HostKeyRefused).code == "host_key_type"


def test_known_hosts_written_and_hashed_by_openssh(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "kh"
    command = ["ssh-keyscan", "-H", "-t", "rsa", "-p", str(sshd.port), "127.0.0.1"]
    known.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = [line for line in known.read_text().splitlines() if not line.startswith("#")]
    assert lines and all(line.startswith("|1|") for line in lines)
    with connected(sshd.host(host_key=None, known_hosts=str(known))) as connection:
        assert connection._transport.host_key_type.startswith("rsa-sha2-")


def test_accept_new_takes_the_key_up_and_ssh_can_read_it(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "dir" / "kh"
    host = sshd.host(host_key=None, known_hosts=str(known), host_key_policy="accept-new")
    with connected(host):
        pass
    with connected(host.model_copy(update={"host_key_policy": "strict"})):
        pass
    name = f"[127.0.0.1]:{sshd.port}"
    found = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", known], capture_output=True, text=True, check=True
    )
    assert public(sshd.host_keys["ed25519"]) in found.stdout
