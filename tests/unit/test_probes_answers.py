"""Whether a host answers at all: asked before its power is cycled, so any sign of life counts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.domain.inventory import Host, Probe, ProbeKind
from workers import probes
from workers.probes import answers_within


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_LISTEN_S", 0.3)


@contextmanager
def server(banner: bytes) -> Iterator[int]:
    """A port that accepts, and says `banner`; with an empty one it stays silent, as a forwarder does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if banner:
                    connection.sendall(banner)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()
            thread.join(5)


def host(
    ssh: int, service: int | None = None, address: str = "127.0.0.1", proxy_jump: str | None = None
) -> Host:
    probe = None if service is None else Probe(kind=ProbeKind.BANNER, port=service)
    return Host(name="web1", address=address, port=ssh, probe=probe, proxy_jump=proxy_jump)


def test_sshd_counts_where_the_service_is_dead() -> None:
    with server(b"SSH-2.0-x\r\n") as ssh, server(b"") as service:
        assert answers_within(host(ssh, service), 2.0) is True


def test_the_service_counts_where_sshd_is_dead() -> None:
    with server(b"") as ssh, server(b"hello\n") as service:
        assert answers_within(host(ssh, service), 2.0) is True


def test_a_refused_connection_is_its_kernels_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert answers_within(host(port), 1.0) is True


def test_a_forwarder_that_accepts_for_a_dead_host_is_no_answer() -> None:
    with server(b"") as ssh, server(b"") as service:
        assert answers_within(host(ssh, service), 1.0) is False


def test_what_cannot_be_asked_is_not_called_silent() -> None:
    assert answers_within(host(22, proxy_jump="jump.example.net"), 1.0) is None
    assert answers_within(host(22, address="no-such-host.invalid"), 5.0) is None
