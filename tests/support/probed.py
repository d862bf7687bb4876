"""A service that a test can stop, hang and restart, and an outage prober that looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from orchestrator.domain.inventory import Host, Probe, ProbeKind
from workers.deadline import Deadline
from workers.outage import OutageProber, OutageRecord


class Service:
    """Listens on one port in a thread of its own. `mode` is what it does with a connection."""

    def __init__(self, mode: str = "banner") -> None:
        self.mode = mode
        self.connections = 0
        self.hanging = 0
        self.most_hanging = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.up()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def up(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=200)
            self.port = self._server.sockets[0].getsockname()[1]

        self._run(start())

    def down(self) -> None:
        """Nothing listens any more: connections are refused."""

        async def stop() -> None:
            assert self._server
            self._server.close()

        self._run(stop())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            if self.mode == "hang":
                self.hanging += 1
                self.most_hanging = max(self.most_hanging, self.hanging)
                await reader.read()
                self.hanging -= 1
            elif self.mode == "http":
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.0 503 Busy\r\n\r\n" if b"GET /up HTTP/1.0" in request else b"what?\r\n")
            elif self.mode == "banner":
                writer.write(b"SSH-2.0-service\r\n")
            await writer.drain()
        writer.close()

    def close(self) -> None:
        self.down()

        async def hang_up() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def host(service: Service, kind: ProbeKind = ProbeKind.BANNER, **more: Any) -> Host:
    probe = Probe(kind=kind, port=service.port, path="/up")
    return Host(**{"name": "web1", "address": "127.0.0.1", "port": service.port, "probe": probe, **more})


@contextlib.contextmanager
def probing(target: Host, **options: Any) -> Iterator[OutageProber]:
    prober = OutageProber(target, **options)
    prober.start()
    try:
        yield prober
    finally:
        prober.close()


def until(condition: Callable[[], Any], what: str) -> None:
    end = Deadline.after(60)
    while not condition():
        assert not end.expired, what
        time.sleep(0.005)


def more_answers(prober: OutageProber, count: int = 3) -> None:
    wanted = prober.result().answers + count
    until(lambda: prober.result().answers >= wanted, "answers")


def more_failures(prober: OutageProber, count: int = 5) -> None:
    def failures() -> int:
        record = prober.result()
        return record.probes_sent - record.answers

    wanted = failures() + count
    until(lambda: failures() >= wanted, "probes without an answer")


def unmeasured(record: OutageRecord) -> str:
    assert record.outage_s is None
    assert record.resolution_s is None
    assert record.not_measured_reason
    return record.not_measured_reason
