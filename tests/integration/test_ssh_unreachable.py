"""Hosts with which no SSH session comes about: closed ports, silent ones, and ports of something else."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import (
    HostKeyRefused,
    HostUnreachable,
)
from tests.support.sshd import Sshd, free_port
from tests.support.sshsessions import refused
from workers.deadline import Deadline


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
