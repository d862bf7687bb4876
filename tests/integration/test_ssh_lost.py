"""SSH sessions that break: servers that die or freeze, networks that stop, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

from orchestrator.domain.errors import (
    HostLost,
    TransportError,
)
from orchestrator.domain.inventory import Host
from tests.support.sshd import Sshd, make_key, public
from tests.support.sshsessions import LONG, connected, soon
from workers.connection.userkeys import read_key
from workers.deadline import Deadline

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
