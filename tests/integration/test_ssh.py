"""SSH sessions with a real OpenSSH server, and with servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostLost,
    HostRefused,
    HostUnreachable,
    LoginRefused,
    TransportError,
)
from orchestrator.domain.inventory import Host
from tests.support.sshd import Sshd, free_port, make_key, public
from workers.connection.ssh import SshConnection, SshConnector
from workers.connection.userkeys import read_key
from workers.deadline import Deadline

LONG = 60.0


def soon() -> Deadline:
    """Generous: it bounds a test that hangs, no test is about how long it takes."""
    return Deadline.after(LONG)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), key_kinds=("ed25519", "rsa", "ecdsa")).start()
    yield server
    server.stop()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """One that a test may kill or stop."""
    server = Sshd(tmp_path / "own").start()
    yield server
    server.stop()


@contextlib.contextmanager
def connected(host: Host) -> Iterator[SshConnection]:
    connection = SshConnector().connect(host, soon())
    try:
        yield connection
    finally:
        connection.close()


def refused(host: Host, kind: type[HostError], deadline: Deadline | None = None) -> HostError:
    """The error of a connect that must fail, of exactly this kind."""
    with pytest.raises(HostError) as caught:
        SshConnector().connect(host, deadline or soon())
    assert type(caught.value) is kind, caught.value
    assert caught.value.host == host.name
    assert caught.value.hint
    return caught.value


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


# -- host keys ----------------------------------------------------------------------------------------


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
    assert known.read_text().startswith("|1|")
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


# -- logins -------------------------------------------------------------------------------------------


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


# -- hosts that cannot be reached ---------------------------------------------------------------------


def test_a_closed_port(sshd: Sshd) -> None:
    assert refused(sshd.host(port=free_port()), HostUnreachable).code == "refused"


def test_a_name_that_does_not_exist(sshd: Sshd) -> None:
    assert refused(sshd.host(address="no-such-host.invalid"), HostUnreachable).code == "name"


@contextlib.contextmanager
def listener(says: bytes | None, *, closes: bool = False) -> Iterator[int]:
    """A port that accepts; it sends `says`, and closes or keeps silent."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    if says:
                        client.sendall(says)
                    if closes:
                        # Read what the client sent, or the close becomes a reset that eats `says`.
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(1024):
                            pass
                        client.close()
                    else:
                        kept.append(client)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for client in kept:
        client.close()


@pytest.mark.parametrize(
    ("says", "closes", "code"),
    [
        (None, False, "no_banner"),
        (None, True, "closed_before_banner"),
        (b"Exceeded MaxStartups\r\n", True, "closed_before_banner"),
        (b"Not allowed at this time\r\n", True, "penalised"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "not_ssh"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", False, "deadline"),
        (b"SSH-2.0-OpenSSH_9.9\r\n" + b"\xff" * 600, True, "ssh"),
    ],
)
def test_a_port_that_is_no_answering_sshd(sshd: Sshd, says: bytes | None, closes: bool, code: str) -> None:
    with listener(says, closes=closes) as port:
        error = refused(sshd.host(port=port), HostUnreachable, Deadline.after(3))
        assert error.code == code


def test_a_black_hole_ends_at_the_deadline(sshd: Sshd) -> None:
    """A full backlog: the kernel answers no SYN any more, as a host that drops packets."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        deadline = Deadline.after(1.5)
        error = refused(sshd.host(port=port), HostUnreachable, deadline)
        assert error.code == "deadline"
        assert deadline.expired
        for filler in fillers:
            filler.close()


def test_sshd_turns_away_what_is_over_its_max_startups(tmp_path: Path) -> None:
    server = Sshd(tmp_path / "full", options=["MaxStartups 1", "LoginGraceTime 60"]).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as waiting:
            assert waiting.recv(100).startswith(b"SSH-")
            assert refused(server.host(), HostUnreachable).code == "closed_before_banner"
    finally:
        server.stop()


def test_nothing_is_printed_by_paramiko(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    refused(sshd.host(port=free_port()), HostUnreachable)
    with listener(b"garbage\r\n", closes=True) as port:
        refused(sshd.host(port=port), HostUnreachable)
    refused(sshd.host(host_key=None), HostKeyRefused)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("paramiko.transport").getEffectiveLevel() >= logging.CRITICAL


# -- sessions that break ------------------------------------------------------------------------------


def test_a_server_that_dies_while_a_command_runs(own_sshd: Sshd) -> None:
    with connected(own_sshd.host()) as connection:
        process = connection.open_process(["sh", "-c", "echo up; exec sleep 1000"], soon())
        assert process.read_line(100, soon()) == b"up\n"
        killer = threading.Timer(0.2, own_sshd.stop)
        killer.start()
        with pytest.raises(HostLost):
            process.read_line(100, soon())
        killer.join()
        assert process.exit_status(soon()) is None
        assert not connection.alive(soon())
        with pytest.raises(TransportError):
            connection.run(["true"], soon())


def test_run_says_lost_when_the_server_dies(own_sshd: Sshd) -> None:
    with connected(own_sshd.host()) as connection:
        killer = threading.Timer(0.5, own_sshd.stop)
        killer.start()
        with pytest.raises(HostLost):
            connection.run(["sleep", "1000"], soon())
        killer.join()


def test_a_frozen_server_is_noticed_at_the_deadline(own_sshd: Sshd) -> None:
    """The kernel still acknowledges every packet: only deadlines of our own notice this."""
    with connected(own_sshd.host()) as connection:
        process = connection.open_process(["cat"], soon())
        own_sshd.signal_sessions(signal.SIGSTOP)
        process.write(b"hello\n", soon())
        with pytest.raises(HostLost) as lost:
            process.read_line(100, Deadline.after(1.0))
        assert lost.value.code == "deadline"
        assert process.exit_status(Deadline.after(0.2)) is None
        with pytest.raises(TransportError) as full:  # more than window and socket buffers take
            process.write(bytes(64_000_000), Deadline.after(2.0))
        assert full.value.code == "deadline"


def test_a_program_cannot_be_started_on_a_frozen_server(own_sshd: Sshd) -> None:
    with connected(own_sshd.host()) as connection:
        own_sshd.signal_sessions(signal.SIGSTOP)
        with pytest.raises(TransportError) as caught:
            connection.open_process(["true"], Deadline.after(1.0))
        assert caught.value.code == "deadline"
        assert not isinstance(caught.value, HostLost)


def test_a_frozen_server_is_not_alive(own_sshd: Sshd) -> None:
    with connected(own_sshd.host()) as connection:
        assert connection.alive(soon())
        own_sshd.signal_sessions(signal.SIGSTOP)
        assert not connection.alive(Deadline.after(1.0))


@contextlib.contextmanager
def relay(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A TCP relay in front of `port`; while the event is set it reads from neither side: a network that
    stops.
    """
    stopped, over = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def serve() -> None:
            near, _ = server.accept()
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                others = {near: far, far: near}
                while not over.is_set():
                    if stopped.is_set():
                        over.wait(0.05)
                        continue
                    ready, _, _ = select.select([near, far], [], [], 0.05)
                    for sock in ready:
                        if not (data := sock.recv(4096)):
                            return
                        others[sock].sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], stopped
        over.set()
        thread.join(LONG)


def test_a_write_into_a_network_that_stopped_ends_at_the_deadline(own_sshd: Sshd) -> None:
    """Less than the channel's window, so paramiko sits in send(2) on the socket, where it has no time-out."""
    with relay(own_sshd.port) as (port, stopped), connected(own_sshd.host(port=port)) as connection:
        connection._transport.sock._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        process = connection.open_process(["cat"], soon())
        stopped.set()
        with pytest.raises(TransportError) as caught:
            process.write(bytes(1_500_000), Deadline.after(1.5))
        assert caught.value.code == "deadline"


class Mute(paramiko.ServerInterface):
    """Lets everyone in, opens channels, and never says whether the program was started."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._over.wait(100 * LONG)


def test_a_server_that_never_says_whether_it_started_the_program(sshd: Sshd, tmp_path: Path) -> None:
    over = threading.Event()
    key = make_key(tmp_path / "mute")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            transport = paramiko.Transport(server.accept()[0])
            transport.add_server_key(read_key(key))
            transport.start_server(server=Mute(over))

        threading.Thread(target=serve, daemon=True).start()
        with connected(sshd.host(port=server.getsockname()[1], host_key=public(key))) as connection:
            with pytest.raises(TransportError) as caught:
                connection.open_process(["true"], Deadline.after(1.5))
            assert caught.value.code == "deadline"
            over.set()


def test_close_from_another_thread_ends_a_wait(sshd: Sshd) -> None:
    with connected(sshd.host()) as connection:
        process = connection.open_process(["sleep", "1000"], soon())
        closer = threading.Timer(0.2, process.close)
        closer.start()
        with pytest.raises(HostLost):
            process.read_line(100, soon())
        closer.join()


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


# -- jump hosts ---------------------------------------------------------------------------------------


def test_through_a_jump_host_with_the_same_checks(sshd: Sshd, tmp_path: Path) -> None:
    jump = Sshd(tmp_path / "jump").start()
    try:
        key = str(sshd.user_key)
        (jump.where / "authorized_keys").write_text((sshd.where / "user_key.pub").read_text())
        known = tmp_path / "kh"
        host = sshd.host(proxy_jump=f"root@127.0.0.1:{jump.port}", known_hosts=str(known))
        error = refused(host, HostKeyRefused)  # the target is pinned, the jump host is not known
        assert (error.code, "jump host" in error.step) == ("host_key_unknown", True)
        known.write_text(f"[127.0.0.1]:{jump.port} {public(jump.host_keys['ed25519'])}\n")
        with connected(host) as connection:
            assert connection.run(["echo", "through"], soon()).stdout == b"through\n"
            assert jump.sessions()
        wrong = host.model_copy(update={"host_key": public(make_key(tmp_path / "wrong"))})
        assert refused(wrong, HostKeyRefused).code == "host_key_changed"
        closed = host.model_copy(update={"port": free_port()})
        assert refused(closed, HostUnreachable).code == "channel_refused"
        # By a name of the inventory: its own entry counts, pin and all.
        named = SshConnector({"bastion": jump.host(name="bastion", key=key)})
        by_name = named.connect(host.model_copy(update={"proxy_jump": "bastion"}), soon())
        assert by_name.run(["true"], soon()).status == 0
        by_name.close()
        # The jump host dies under the session.
        with connected(host) as connection:
            process = connection.open_process(["sleep", "1000"], soon())
            jump.stop()
            with pytest.raises(HostLost):
                process.read_line(100, soon())
    finally:
        jump.stop()


# -- servers that break the rules ---------------------------------------------------------------------


class Rude(asyncssh.SSHServer):
    """Accepts every key; what it does with programs is the test's."""

    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.contextmanager
def rude_server(where: Path, process: object) -> Iterator[Host]:
    """asyncssh as a server whose programs are the coroutine `process`."""
    key = make_key(where / "rude")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            Rude, "127.0.0.1", 0, server_host_keys=[str(key)], process_factory=process
        )

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(LONG)
    yield Host(name="rude", address="127.0.0.1", port=server.get_port(), host_key=public(key), key=str(key))

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(LONG)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LONG)


def test_a_server_that_never_gives_an_exit_status(tmp_path: Path) -> None:
    async def process(channel: asyncssh.SSHServerProcess[str]) -> None:
        channel.stdout.write("half")
        channel.stdout.write_eof()
        await asyncio.sleep(1000)

    with rude_server(tmp_path, process) as host, connected(host) as connection:
        with pytest.raises(HostLost) as caught:
            connection.run(["anything"], Deadline.after(2.0))
        assert caught.value.code == "deadline"


def test_a_server_that_hangs_up_after_the_request(tmp_path: Path) -> None:
    async def process(channel: asyncssh.SSHServerProcess[str]) -> None:
        channel.get_extra_info("connection").abort()

    with rude_server(tmp_path, process) as host, connected(host) as connection, pytest.raises(HostLost):
        connection.run(["anything"], soon())
