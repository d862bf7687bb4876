"""Reaching a host: one SSH connection with an agent on it, and trying again until a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostRefused,
    HostUnreachable,
    LoginRefused,
    TransportError,
)
from workers.agent import AgentClient
from workers.connection.base import Connection
from workers.deadline import Deadline
from workers.drive.context import HostDrive

RETRY_SECONDS = 2.0
"""Pause between two tries to log in. sshd (OpenSSH 9.8) penalises a source for each connection that leaves
without authenticating; one try in two seconds stays far below its limit."""

ONE_TRY_SECONDS = 60.0
"""The longest that one login may take before the next is tried."""


@dataclass
class Session:
    """An agent on a host, and the connection that carries it."""

    connection: Connection
    agent: AgentClient

    @property
    def boot_id(self) -> str:
        """Which boot of the host answers."""
        return self.agent.hello.boot_id

    def close(self) -> None:
        """End the agent and the connection; what the agent holds is unloaded by itself."""
        self.agent.close()
        self.connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    drive: HostDrive,
    deadline: Deadline,
    connect_seconds: float = ONE_TRY_SECONDS,
    connected: Callable[[], None] = lambda: None,
) -> Session:
    """Connect once, in at most `connect_seconds`, and start the agent. Raises HostError.

    `connected` is called when the login has succeeded, whatever becomes of the agent.
    """
    connection = drive.tools.connector.connect(drive.host, deadline.sooner(connect_seconds))
    connected()
    try:
        agent = AgentClient.start(connection, drive.host, drive.tools.bundle, deadline)
    except BaseException:
        connection.close()
        raise
    return Session(connection, agent)


def reach(drive: HostDrive, deadline: Deadline, *, stoppable: Callable[[], None] | None = None) -> Session:
    """Connect and start the agent, trying again until the deadline.

    What will not change by waiting (a refused key, login or missing python3) is raised at once, and so is
    the last error when the deadline has passed. `stoppable` is called between tries and may raise.
    """
    while True:
        try:
            return open_session(drive, deadline)
        except (HostKeyRefused, LoginRefused, HostRefused):
            raise
        except TransportError as error:
            if deadline.left() <= RETRY_SECONDS:
                raise HostUnreachable(
                    error.host,
                    error.step,
                    f"not reached within the deadline; last: {error.message}",
                    hint=error.hint or "check the host's console, address and port",
                ) from error
        except HostError:
            if deadline.left() <= RETRY_SECONDS:
                raise
        pause(RETRY_SECONDS, stoppable)


def pause(seconds: float, stoppable: Callable[[], None] | None) -> None:
    """Sleep, waking often enough that a request to stop is heard at once."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stoppable is not None:
            stoppable()
        time.sleep(min(left, 0.2))
