"""A program on the host over one paramiko channel: byte streams whose every wait ends at a deadline.

`Channel.recv_exit_status` is never called: it waits without a bound, and for ever when the host dies under
a proxy (pyinfra PR 1711). stderr is drained while stdout is waited for, or a chatty program would fill the
window they share.
"""

from __future__ import annotations

from collections.abc import Callable

import paramiko

from orchestrator.domain.errors import HostRefused
from workers.connection.errors import CAUGHT, Phase, translate
from workers.deadline import Deadline, cut_at

_STDERR_BYTES = 64 * 1024
_PACKET_BYTES = 32 * 1024  # the most that OpenSSH takes in one channel packet
_SLICE_S = 0.5  # how often stderr is drained while stdout is silent
_CLOSE_S = 5.0
_STEP = "ssh session"


class SshProcess:
    """See `workers.connection.base.Process`. `cut` closes the whole session, for waits that nothing else
    ends.
    """

    def __init__(self, channel: paramiko.Channel, host: str, cut: Callable[[], None]) -> None:
        self._channel = channel
        self._host = host
        self._cut = cut
        self._buffer = bytearray()
        self._stderr = bytearray()

    def write(self, data: bytes, deadline: Deadline) -> None:
        view = memoryview(data)
        with cut_at(deadline, self._cut) as cut:
            try:
                while view:
                    self._channel.settimeout(max(deadline.left(), 0.001))
                    sent = self._channel.send(bytes(view[:_PACKET_BYTES]))
                    if sent == 0:
                        raise EOFError
                    view = view[sent:]
                if not self._transport_active():
                    raise EOFError  # paramiko drops what is sent on a dead session, and says nothing
            except CAUGHT as error:
                seen = TimeoutError() if cut.made else error
                raise translate(seen, self._host, _STEP, Phase.REQUEST) from error

    def read(self, size: int, deadline: Deadline) -> bytes:
        if self._buffer:
            taken = bytes(self._buffer[:size])
            del self._buffer[:size]
            return taken
        return self._receive(size, deadline)

    def read_line(self, limit: int, deadline: Deadline) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0 and len(self._buffer) <= limit:
            searched = len(self._buffer)
            data = self._receive(_PACKET_BYTES, deadline)
            if not data:
                end = len(self._buffer) - 1  # the stream ended: what is left is the line
                break
            self._buffer += data
        if end >= limit or len(self._buffer) > limit > 0 > end:
            message = f"a line of more than {limit} bytes came"
            raise HostRefused(self._host, _STEP, message, code="line_too_long", hint="report this")
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line

    def _receive(self, size: int, deadline: Deadline) -> bytes:
        """Bytes from the channel itself; b"" at its end. Raises HostLost."""
        while True:
            self._drain_stderr()
            left = deadline.left()
            self._channel.settimeout(min(max(left, 0.001), _SLICE_S))
            try:
                data = self._channel.recv(size)
            except TimeoutError as error:
                if left > 0:
                    continue
                raise translate(TimeoutError(), self._host, _STEP, Phase.ANSWER) from error
            except CAUGHT as error:
                raise translate(error, self._host, _STEP, Phase.ANSWER) from error
            if not data:
                self._drain_stderr()
                if not self._channel.eof_received:
                    raise translate(EOFError(), self._host, _STEP, Phase.ANSWER)
            return data

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            data = self._channel.recv_stderr(_PACKET_BYTES)
            if not data:
                return
            self._stderr += data
            del self._stderr[:-_STDERR_BYTES]

    def _transport_active(self) -> bool:
        return self._channel.get_transport().is_active()

    def close_stdin(self) -> None:
        self._bounded(self._channel.shutdown_write)

    def exit_status(self, deadline: Deadline) -> int | None:
        while not self._channel.status_event.wait(min(deadline.left(), _SLICE_S)) and not deadline.expired:
            self._drain_stderr()
        # paramiko sets the event with -1 when the channel ends without a status.
        return self._channel.exit_status if self._channel.exit_status >= 0 else None

    @property
    def stderr(self) -> str:
        try:
            self._drain_stderr()
        except CAUGHT:
            pass  # what came before the session broke is still worth showing
        return self._stderr.decode("utf-8", "replace")

    def close(self) -> None:
        self._bounded(self._channel.close)

    def _bounded(self, call: Callable[[], object]) -> None:
        """Run a call that sends one small message; where even that is stuck, the session is dead and cut."""
        with cut_at(Deadline.after(_CLOSE_S), self._cut):
            try:
                call()
            except CAUGHT:
                pass  # the other side has closed the channel already, which is what was wanted
