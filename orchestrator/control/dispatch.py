"""Handing hosts to whoever drives them: a bounded thread pool in this process, or Celery workers.

Delivery only: the journal says what is due, and a drive that comes twice, late or never is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from orchestrator.domain.errors import BrokerError, SetupError

DRIVE_TASK = "kexec_fleet.drive"
"""The one task; its arguments are ids: journal, rollout, host."""

QUEUE = "kexec-fleet"
"""The queue that workers listen on."""

REDISPATCH_SECONDS = 30.0
"""A message that nobody took up after this long is sent again: it may be lost, and twice does no harm."""


class Dispatcher(Protocol):
    """Gets hosts driven."""

    def dispatch(self, rollout: str, host: str) -> None:
        """Have the host driven; asking again while it is being driven changes nothing."""

    def in_flight(self) -> frozenset[str]:
        """Hosts that this process drives itself right now."""

    def wait(self, seconds: float) -> None:
        """Return when something may have changed, at the latest after `seconds`."""

    def failures(self) -> list[str]:
        """What broke outside any host's journal since the last call, as text."""

    def close(self) -> None:
        """Wait for what runs here, then let go."""


class ThreadDispatcher:
    """Drives hosts in threads of this process, at most `at_once` of them."""

    def __init__(self, drive: Callable[[str, str], bool], at_once: int) -> None:
        self._drive = drive
        self._pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="drive")
        self._running: dict[str, Future[bool]] = {}

    def dispatch(self, rollout: str, host: str) -> None:
        """Start a thread for the host unless it has one."""
        if host not in self._running:
            self._running[host] = self._pool.submit(self._drive, rollout, host)

    def in_flight(self) -> frozenset[str]:
        """Hosts whose thread has not ended."""
        return frozenset(host for host, future in self._running.items() if not future.done())

    def wait(self, seconds: float) -> None:
        """Until a thread ends, or the time is up."""
        running = [future for future in self._running.values() if not future.done()]
        if running:
            wait(running, timeout=seconds, return_when=FIRST_COMPLETED)
        else:
            time.sleep(min(seconds, 0.2))

    def failures(self) -> list[str]:
        """Exceptions that ended a drive; each is told once."""
        told = []
        for host, future in list(self._running.items()):
            if not future.done():
                continue
            del self._running[host]
            if (error := future.exception()) is not None:
                told.append(f"{host}: {type(error).__name__}: {error}")
        return told

    def close(self) -> None:
        """Wait for all threads."""
        self._pool.shutdown(wait=True)


def require_broker(url: str) -> None:
    """Raise SetupError unless a broker answers there: asked before anything is journaled."""
    try:
        with Connection(url, connect_timeout=5) as connection:  # type: ignore[no-untyped-call]
            masked = connection.as_uri()
            connection.ensure_connection(max_retries=1, timeout=10)
    except KeyError as error:
        example = "for instance redis://127.0.0.1:6379/0"
        raise SetupError(f"the broker's URL: {error.args[0]}", hint=example) from error
    except (OperationalError, OSError) as error:
        raise SetupError(
            f"no broker answers at {masked}: {error}", hint="start Redis, or correct the URL"
        ) from error


class CeleryDispatcher:
    """Sends one message per due host; workers that share the journal drive it."""

    def __init__(self, broker: str, journal_id: str) -> None:
        self._journal_id = journal_id
        self._sent_at: dict[str, float] = {}
        self._app = Celery("kexec-fleet", broker=broker)
        self._app.conf.update(task_ignore_result=True, task_serializer="json", accept_content=["json"])
        self._app.conf.update(task_default_queue=QUEUE)
        # The publisher's default retries for ever with no word; a broker that is gone must show.
        self._app.conf.update(broker_connection_timeout=5, task_publish_retry_policy={"max_retries": 2})

    def dispatch(self, rollout: str, host: str) -> None:
        """Send the message, and send it again when nobody has taken it up for a while."""
        now = time.monotonic()
        if now - self._sent_at.get(host, -REDISPATCH_SECONDS) < REDISPATCH_SECONDS:
            return
        try:
            self._app.send_task(DRIVE_TASK, args=[self._journal_id, rollout, host])
        except OperationalError as error:
            raise BrokerError(
                f"the broker at {self._app.connection_for_write().as_uri()} does not take messages: {error}",
                hint="start it, then `kexec-fleet rollout resume`; nothing is lost",
            ) from error
        self._sent_at[host] = now

    def in_flight(self) -> frozenset[str]:
        """None: workers drive, and the journal shows which hosts."""
        return frozenset()

    def wait(self, seconds: float) -> None:
        """Workers tell the journal alone, so this only sleeps."""
        time.sleep(min(seconds, 0.5))

    def failures(self) -> list[str]:
        """Workers' failures are in the journal."""
        return []

    def close(self) -> None:
        """Let go of the broker."""
        self._app.close()
