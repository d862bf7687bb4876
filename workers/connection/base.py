"""What the rest of `workers` may ask of a connection to a host, whatever carries it.

`workers.connection.ssh` is the real one; tests of the layers above give a stand-in with the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.domain.inventory import Host
from workers.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran to its end. `stderr` is bounded: its last 64 KiB."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str


class Process(Protocol):
    """A program on the host with byte streams. Not thread safe, but `close` may come from any thread."""

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send all of `data` to stdin.

        Raises TransportError: not all of it was sent, so a request in it did not arrive whole.
        """

    def read(self, size: int, deadline: Deadline) -> bytes:
        """Up to `size` bytes of stdout as soon as some are there; b"" when the program closed it.

        Raises HostLost: the connection broke or the deadline passed.
        """

    def read_line(self, limit: int, deadline: Deadline) -> bytes:
        """One line of stdout with its newline; without newline at the end of the stream, b"" after it.

        Raises HostLost as `read` does, and HostRefused (code "line_too_long") past `limit` bytes.
        """

    def close_stdin(self) -> None:
        """End the program's input; never raises."""

    def exit_status(self, deadline: Deadline) -> int | None:
        """The exit status, or None when it did not come before the deadline or the connection broke."""

    @property
    def stderr(self) -> str:
        """The last 64 KiB that the program wrote to stderr so far."""

    def close(self) -> None:
        """Close the channel: whoever waits in another thread gets an error at once. Never raises."""


class Connection(Protocol):
    """An authenticated session with a host whose key was verified."""

    host: Host

    @property
    def server_version(self) -> str:
        """What the server calls itself: "SSH-2.0-OpenSSH_9.2p1 Debian-2"."""

    def open_process(self, argv: Sequence[str], deadline: Deadline, *, sudo: bool = False) -> Process:
        """Start `argv` on the host. Raises TransportError: it may not have started."""

    def run(self, argv: Sequence[str], deadline: Deadline, *, sudo: bool = False) -> Completed:
        """Run `argv` to its end, whatever its status.

        Raises TransportError before it was started, HostLost after, HostRefused when there is no such
        program (code "no_command", "no_python") or sudo said no (code "no_sudo").
        """

    def alive(self, deadline: Deadline) -> bool:
        """Ask the server for an answer. A session that gives none before the deadline is closed."""

    def close(self) -> None:
        """Close the session and the jump sessions under it. Never raises; may come from any thread."""


class Connector(Protocol):
    """Makes connections; safe to share between threads."""

    def connect(self, host: Host, deadline: Deadline) -> Connection:
        """Raises HostUnreachable, HostKeyRefused, LoginRefused or another TransportError."""
