"""One session: hello, then one request and one answer at a time, until the worker's side ends."""

import os
import platform
import sys
import traceback
from typing import Any, Dict, Optional

from workers.hostagent import reading
from workers.hostagent.changing import Changing
from workers.hostagent.claims import ClaimStore
from workers.hostagent.deadline import interrupting
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError, SessionEnded
from workers.hostagent.processes import identity
from workers.hostagent.protocol import Channel, Request, parse

PROTOCOL = 1


class Session(object):
    def __init__(self, env: Environment, channel: Channel, agent: str) -> None:
        """`agent`: the SHA-256 of the agent's source text."""
        me = identity(env.pids, os.getpid())
        assert me is not None
        self._env = env
        self._channel = channel
        self._agent = agent
        self._store = ClaimStore(env)
        self._changing = Changing(env, self._store, channel, me)

    def serve(self) -> None:
        """Returns when the session is over. The keeper notices by itself that its socket has closed."""
        try:
            self._hello()
            while self._serve_one():
                pass
        except SessionEnded:
            pass

    def _hello(self) -> None:
        self._channel.send(
            {
                "hello": "kexec-fleet-agent",
                "agent": self._agent,
                "protocol": PROTOCOL,
                "python": platform.python_version(),
                "boot_id": self._env.boot_id(),
                "pid": os.getpid(),
                "uid": os.getuid(),
            }
        )

    def _serve_one(self) -> bool:
        """Handles one request; False when the session must end. Raises SessionEnded."""
        identifier: Any = None
        result: Optional[Dict[str, Any]] = None
        error: Optional[AgentError] = None
        try:
            line = self._next_line()
            identifier, raw = parse(line)
            result = self._perform(Request(raw))
        except AgentError as refusal:
            error = refusal
        except (SessionEnded, KeyboardInterrupt):
            raise
        except Exception as bug:
            error = _internal(bug)
        self._channel.answer(identifier, result, error)
        return error is None or not error.fatal

    def _next_line(self) -> bytes:
        """Waits for a request, and for the keeper's end: a killed keeper's image is unloaded at once."""
        while True:
            line = self._channel.take_line()
            if line is not None:
                return line
            keeper = self._changing.link
            others = [keeper.fileno()] if keeper is not None and not keeper.ended else []
            if set(self._channel.wait(others)) & set(others):
                self._changing.notice_keeper()

    def _perform(self, request: Request) -> Dict[str, Any]:
        assert request.op is not None
        if request.op in self._changing.operations:
            if not self._env.kernel.is_root():
                raise AgentError(
                    "not_root",
                    "the agent runs as user {}, not as root".format(os.getuid()),
                    "log in as root, or give the login a sudo that needs no password",
                )
            return self._changing.run(request)
        operation = reading.OPERATIONS.get(request.op)
        if operation is None:
            raise AgentError("unknown_op", "this agent does not know {!r}".format(request.op[:80]))
        with interrupting(request.deadline, request.op):
            return operation(self._env, self._store, request)


def _internal(bug: BaseException) -> AgentError:
    """A bug of ours: a code of its own, and the place, for the report."""
    frames = traceback.extract_tb(sys.exc_info()[2])[-4:]
    where = ["{}:{} {}".format(frame.filename, frame.lineno, frame.name) for frame in frames]
    return AgentError(
        "internal",
        "{}: {}".format(type(bug).__name__, bug),
        "this is a bug of the host agent",
        errno=getattr(bug, "errno", None) if isinstance(bug, OSError) else None,
        detail={"where": where},
    )
