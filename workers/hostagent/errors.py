"""The one exception that becomes an error answer, and names for errno values."""

import errno as _errno
from typing import Any, Dict, Optional


class AgentError(Exception):
    """A refusal with a code of docs/agent-protocol.md.

    `fatal` means that the channel is out of step (raw bytes or a line that cannot be found the end of): the
    session answers and then ends.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        errno: Optional[int] = None,
        detail: Optional[Dict[str, Any]] = None,
        fatal: bool = False,
    ) -> None:
        super(AgentError, self).__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.errno = errno
        self.detail = detail or {}
        self.fatal = fatal

    def as_dict(self) -> Dict[str, Any]:
        """-> {"code", "message", "hint", "errno", "detail"} as the protocol has it."""
        detail = dict(self.detail)
        if self.fatal:
            detail["session_ends"] = True
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "errno": self.errno,
            "detail": detail,
        }

    @classmethod
    def from_dict(cls, raw: Dict[str, Any]) -> "AgentError":
        """The same error on the other side of the socket between keeper and session."""
        return cls(raw["code"], raw["message"], raw["hint"], raw["errno"], raw["detail"])


class SessionEnded(Exception):
    """The channel to the worker is gone: the session must end, whatever it was doing."""


def errname(number: Optional[int]) -> Optional[str]:
    """ "EINVAL" for 22; None for None; the number as text where it has no name."""
    if number is None:
        return None
    return _errno.errorcode.get(number, str(number))
