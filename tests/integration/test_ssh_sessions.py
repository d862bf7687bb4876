"""SSH sessions with a real OpenSSH server: what works, and programs that cannot be run."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import (
    HostRefused,
    LoginRefused,
    TransportError,
)
from tests.support.sshd import Sshd, make_key, public
from tests.support.sshsessions import LONG, connected, refused, soon
from workers.connection.ssh import SshConnector

# -- what works ---------------------------------------------------------------------------------------


def test_a_pinned_host_runs_commands(sshd: Sshd) -> None:
    with connected(sshd.host()) as connection:
        assert connection.server_version.startswith("SSH-2.0-OpenSSH")
        script = 'cat; echo err >&2; echo "$1"; exit 3'
        done = connection.run(["sh", "-c", script, "sh", "a 'quoted' $word"], soon())
        assert (done.status, done.stdout, done.stderr) == (3, b"a 'quoted' $word\n", "err\n")
        assert connection.alive(soon())
    assert not connection.alive(soon())
    with pytest.raises(TransportError):
        connection.run(["true"], soon())


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_the_key_type_that_is_pinned_is_the_one_negotiated(sshd: Sshd, kind: str) -> None:
    with connected(sshd.host(host_key=public(sshd.host_keys[kind]))) as connection:
        assert connection.run(["true"], soon()).status == 0


def test_fast_ciphers_and_no_finite_field_key_exchange(sshd: Sshd) -> None:
    with connected(sshd.host()) as connection:
        transport = connection._transport
        assert transport.remote_cipher == "aes128-gcm@openssh.com"
        assert not [name for name in transport.get_security_options().kex if "diffie-hellman" in name]
        tcp = transport.sock._tcp
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_megabytes_of_stderr_and_stdout_do_not_stop_each_other(sshd: Sshd) -> None:
    big = "head -c 6000000 /dev/zero"
    script = f"{big} >&2; {big}; {big} >&2; echo END >&2"
    with connected(sshd.host()) as connection:
        done = connection.run(["sh", "-c", script], soon())
    assert len(done.stdout) == 6_000_000
    assert len(done.stderr) <= 64 * 1024
    assert done.stderr.endswith("END\n")


def test_a_process_streams_both_ways(sshd: Sshd) -> None:
    with connected(sshd.host()) as connection:
        process = connection.open_process(["cat"], soon())
        process.write(b"one\ntwo\nthree", soon())
        assert process.read_line(100, soon()) == b"one\n"
        assert process.read_line(100, soon()) == b"two\n"
        process.close_stdin()
        assert process.read_line(100, soon()) == b"three"
        assert process.read_line(100, soon()) == b""
        assert process.exit_status(soon()) == 0


def test_a_line_without_an_end_is_bounded(sshd: Sshd) -> None:
    with connected(sshd.host()) as connection:
        process = connection.open_process(["cat", "/dev/zero"], soon())
        with pytest.raises(HostRefused) as caught:
            process.read_line(100_000, soon())
        assert caught.value.code == "line_too_long"
        process.close()


def test_many_threads_share_one_connector(sshd: Sshd) -> None:
    connector = SshConnector()
    answers: list[bytes] = []

    def work(number: int) -> None:
        connection = connector.connect(sshd.host(), soon())
        answers.append(connection.run(["echo", str(number)], soon()).stdout.strip())
        connection.close()

    # Below sshd's MaxStartups (10:30:100), which is another test's subject.
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert sorted(answers) == sorted(str(number).encode() for number in range(8))


def test_no_file_of_this_machine_changes_how_a_host_is_reached(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / ".ssh"
    ssh.mkdir()
    (ssh / "config").write_text("Host *\n  HostName 192.0.2.1\n  User nobody\n  ProxyCommand false\n")
    (ssh / "config").write_text((ssh / "config").read_text() + f"  IdentityFile {sshd.user_key}\n")
    (tmp_path / ".fabric.yml").write_text("user: nobody\nconnect_kwargs: {password: x}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(sshd.host(key=str(make_key(tmp_path / "other"))), LoginRefused)  # no key but the one named
    with connected(sshd.host()) as connection:
        assert connection.run(["id", "-un"], soon()).stdout == b"root\n"


# -- programs that cannot be run ----------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bare_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """An sshd whose sessions have only sh, env and what a test puts into `bin`; a stand-in for sudo's
    words.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "env", "id"):
        (programs / name).symlink_to(os.path.realpath(f"/usr/bin/{name}"))
    server = Sshd(tmp_path / "bare", env={"PATH": str(programs)}).start()
    yield server
    server.stop()


def test_no_python_and_no_command(bare_sshd: Sshd) -> None:
    with connected(bare_sshd.host()) as connection:
        with pytest.raises(HostRefused) as python:
            connection.run(["python3", "-c", "1"], soon())
        with pytest.raises(HostRefused) as other:
            connection.run(["no-such-program"], soon())
    assert (python.value.code, other.value.code) == ("no_python", "no_command")


def test_sudo(bare_sshd: Sshd, tmp_path: Path) -> None:
    with connected(bare_sshd.host(sudo=True)) as connection:
        with pytest.raises(HostRefused) as missing:
            connection.run(["id", "-u"], soon(), sudo=True)
        assert missing.value.code == "no_sudo"
        # The words of sudo 1.9.16's plugins/sudoers/auth/sudo_auth.c.
        script(tmp_path / "bin/sudo", "echo 'sudo: a password is required' >&2; exit 1")
        with pytest.raises(HostRefused) as refusing:
            connection.run(["id", "-u"], soon(), sudo=True)
        assert refusing.value.code == "no_sudo"
        assert "a password is required" in refusing.value.message
        script(tmp_path / "bin/sudo", '[ "$1 $2 $LC_ALL" = "-n -- C" ] || exit 99; shift 2; exec "$@"')
        assert connection.run(["id", "-u"], soon(), sudo=True).stdout == b"0\n"
