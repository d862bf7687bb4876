"""JSON lines and raw bytes over two descriptors, every read with a deadline and a bound."""

import json
import os
import select
import time
from typing import Any, Dict, List, Optional, Tuple

from workers.hostagent.deadline import DEFAULT_SECONDS, Deadline
from workers.hostagent.errors import AgentError, SessionEnded
from workers.hostagent.files import write_all

# The longest request line: a request carries no bulk data, a kernel command line is at most some KiB.
MAX_LINE = 1 << 20
_READ = 1 << 16
# Not in every Python's select module; the number is Linux's on every machine but SPARC.
_RDHUP: int = getattr(select, "POLLRDHUP", 0x2000)
_HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL | _RDHUP


class Request(object):
    """One line from the worker: {"id", "op", "deadline", "claim", "args"}."""

    def __init__(self, raw: Dict[str, Any]) -> None:
        """Raises AgentError `bad_request`."""
        self.op = raw.get("op")
        args = raw.get("args", {})
        seconds = raw.get("deadline", DEFAULT_SECONDS)
        if not isinstance(self.op, str):
            raise AgentError("bad_request", "the request has no op")
        if not isinstance(args, dict):
            raise AgentError("bad_request", "args is not an object")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise AgentError("bad_request", "deadline is not a positive number of seconds")
        self.args: Dict[str, Any] = args
        self.claim = raw.get("claim")
        self.deadline = Deadline(float(seconds))

    def arg(self, name: str, kind: Any, default: Any = None) -> Any:
        """The argument, checked to be of `kind`; missing or null: `default`, an error where that is None."""
        value = self.args.get(name)
        if value is None:
            if default is None:
                raise AgentError("bad_request", "{}: the argument {!r} is missing".format(self.op, name))
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise AgentError("bad_request", "{}: the argument {!r} has the wrong type".format(self.op, name))
        return value


class Channel(object):
    """The worker's end is a pipe or socket pair of sshd: `incoming` and `outgoing` are its descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self._buffer = bytearray()
        self._ended = False

    def wait(self, others: List[int], seconds: Optional[float] = None) -> List[int]:
        """Waits for input on the channel or on `others`; -> the ready descriptors (the channel's first)."""
        if b"\n" in self._buffer or len(self._buffer) > MAX_LINE or self._ended:
            return [self.incoming]
        poller = select.poll()
        for descriptor in [self.incoming] + others:
            poller.register(descriptor, select.POLLIN)
        ready = [
            descriptor for descriptor, _ in poller.poll(None if seconds is None else int(seconds * 1000))
        ]
        if self.incoming in ready:
            self._fill()
        return sorted(ready, key=lambda descriptor: descriptor != self.incoming)

    def has_ended(self) -> bool:
        """True when the worker's side is gone, even if unread input is still buffered. Does not block."""
        poller = select.poll()
        poller.register(self.incoming, _RDHUP)
        return self._ended or any(event & _HANGUP for _, event in poller.poll(0))

    def _fill(self) -> None:
        data = os.read(self.incoming, _READ)
        if data:
            self._buffer += data
        else:
            self._ended = True

    def take_line(self) -> Optional[bytes]:
        """The next whole line, without its end, or None when there is none yet.

        Raises SessionEnded at the end of input (half a line there is dropped: it was never asked in full),
        AgentError `bad_request` (fatal) for a line without an end.
        """
        end = self._buffer.find(b"\n", 0, MAX_LINE + 1)
        if end >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            return line
        if len(self._buffer) > MAX_LINE:
            raise AgentError("bad_request", "a request line is over {} bytes".format(MAX_LINE), fatal=True)
        if self._ended:
            raise SessionEnded("end of input")
        return None

    def take_bytes(self, most: int, deadline: Deadline) -> bytes:
        """Between 1 and `most` raw bytes. Raises SessionEnded, AgentError `deadline` (fatal: out of step)."""
        while not self._buffer:
            if self._ended:
                raise SessionEnded("end of input inside raw bytes")
            poller = select.poll()
            poller.register(self.incoming, select.POLLIN)
            if not poller.poll(int(deadline.left() * 1000)):
                error = deadline.error("receiving the bytes of a chunk")
                error.fatal = True
                raise error
            self._fill()
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    def answer(self, identifier: Any, result: Optional[Dict[str, Any]], error: Optional[AgentError]) -> None:
        if error is None:
            self.send({"id": identifier, "ok": True, "result": result})
        else:
            self.send({"id": identifier, "ok": False, "error": error.as_dict()})

    def send(self, message: Dict[str, Any]) -> None:
        """Raises SessionEnded where nobody reads any more."""
        try:
            write_all(self.outgoing, json.dumps(message).encode("ascii") + b"\n")
        except OSError as error:
            raise SessionEnded("the answer could not be written: {}".format(error)) from error


def parse(line: bytes) -> Tuple[Any, Dict[str, Any]]:
    """(id, whole request object). Raises AgentError `bad_request` for what is no JSON object with an id."""
    try:
        raw = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise AgentError("bad_request", "a request line is no JSON: {}".format(error)) from error
    except RecursionError as error:
        raise AgentError("bad_request", "a request line is nested too deeply") from error
    if not isinstance(raw, dict):
        raise AgentError("bad_request", "a request is a JSON object")
    identifier = raw.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (int, str)):
        raise AgentError("bad_request", "a request has an id, a number or a string")
    return identifier, raw


class LineSocket(object):
    """JSON lines over one end of a socket pair: what session and keeper say to each other."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self._buffer = b""
        self.ended = False

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def send(self, message: Dict[str, Any], seconds: float = 10.0) -> bool:
        """False where the other side is gone or does not read: whoever sends then goes on alone."""
        self.sock.settimeout(seconds)
        try:
            self.sock.sendall(json.dumps(message).encode("ascii") + b"\n")
        except OSError:
            return False
        return True

    def receive(self, seconds: float) -> Optional[Dict[str, Any]]:
        """The next message, or None after `seconds` or at the end (then `ended` is True)."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer and not self.ended:
            poller = select.poll()
            poller.register(self.sock, select.POLLIN)
            if not poller.poll(max(0, int((end - time.monotonic()) * 1000))):
                return None
            try:
                data = self.sock.recv(_READ)
            except OSError:
                data = b""
            if data:
                self._buffer += data
            else:
                self.ended = True
        if b"\n" not in self._buffer:
            return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: Dict[str, Any] = json.loads(line.decode("ascii"))
        return message

    def hung_up(self) -> bool:
        """True when the other side is gone, even if messages of its are still unread. Does not block."""
        poller = select.poll()
        poller.register(self.sock, _RDHUP)
        return self.ended or any(event & _HANGUP for _, event in poller.poll(0))
