"""The session's end of the keeper: forks it, sends commands, notices its end."""

import os
import socket
from typing import Any, Callable, Dict, Optional

from workers.hostagent import keeper
from workers.hostagent.claims import Claim
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.processes import Identity
from workers.hostagent.protocol import LineSocket


class KeeperLink(object):
    """One keeper, from fork to end. `ended` with a `farewell` is an orderly end, without it was killed."""

    def __init__(self, line: LineSocket) -> None:
        self._line = line
        self._number = 0
        self.farewell: Optional[Dict[str, Any]] = None
        # The load that has been asked for and not yet answered, and the last one's answer.
        self.pending_load: Optional[int] = None
        self.load_answer: Optional[Dict[str, Any]] = None
        self.load_began = 0.0
        # go was accepted: from here on the keeper listens to nobody.
        self.told = False

    def fileno(self) -> int:
        return self._line.fileno()

    @property
    def ended(self) -> bool:
        return self._line.ended

    def send(self, command: str, args: Dict[str, Any]) -> int:
        """-> the number that the answer will carry; 0 where the keeper is gone."""
        self._number += 1
        sent = self._line.send({"n": self._number, "cmd": command, "args": args})
        return self._number if sent else 0

    def receive(self, seconds: float) -> Optional[Dict[str, Any]]:
        """The next answer or event, or None. A load's answer is also kept in `load_answer`."""
        message = self._line.receive(seconds)
        if message is None:
            return None
        if "event" in message:
            self.farewell = message
        elif message.get("result", {}).get("going"):
            self.told = True
        elif message["n"] == self.pending_load:
            self.pending_load = None
            self.load_answer = message
        return message

    def drain(self) -> None:
        """Takes what has arrived meanwhile, without waiting."""
        while self.receive(0.0) is not None:
            pass

    def wait(self, number: int, seconds: float, hung_up: Callable[[], None]) -> Optional[Dict[str, Any]]:
        """The answer; None after `seconds` or when the keeper ended. `hung_up` raises at a lost session."""
        left = seconds
        while True:
            piece = min(left, 0.25)
            message = self.receive(piece)
            if message is not None and message.get("n") == number:
                return message
            if message is None:
                if self.ended:
                    return None
                left -= piece
                hung_up()
                if left <= 0.0:
                    return None


def result_of(message: Dict[str, Any]) -> Dict[str, Any]:
    """The answer's result. Raises the AgentError that it carries instead."""
    if "error" in message:
        raise AgentError.from_dict(message["error"])
    result: Dict[str, Any] = message["result"]
    return result


def spawn(env: Environment, claim: Claim, session: Identity) -> KeeperLink:
    """Forks a keeper twice, so that it is nobody's child here. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            if os.fork() == 0:
                _detach(theirs.fileno())
                keeper.main(env, claim, session, LineSocket(theirs))
            status = 0
        finally:
            # Never back into the session's frames: there are two of us now.
            os._exit(status)
    theirs.close()
    os.waitpid(child, 0)
    return KeeperLink(LineSocket(ours))


def _detach(keep: int) -> None:
    """stdio to /dev/null, all else closed: sshd ends a channel only when nobody holds its pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor that listed the directory
    os.chdir("/")
