"""One request and one answer at a time with the host agent, and what each way of failing means.

before the request was sent whole    TransportError    it did not run
sent, the answer is an error         HostRefused       the agent said no, with its code
sent, no answer, it only reads       TransportError    nothing changed, ask again on a new session
sent, no answer, it may change       HostLost          look at the host before anything else
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from orchestrator.domain.errors import HostError, HostLost, HostRefused, TransportError
from workers.agentanswers import Claim
from workers.connection.base import Process
from workers.deadline import Deadline

# The longest answer: facts or a kernel log of some MiB. What is longer is no answer of ours.
MAX_LINE = 32 * 1024 * 1024
# The agent is given a little less time than we have, so that its "deadline" answer still reaches us.
_MARGIN_S = 2.0
_MARGIN_SHARE = 0.2

Parsed = TypeVar("Parsed")


class AgentChannel:
    """Requests and answers over the agent's stdin and stdout. One thread only, except for `close`."""

    def __init__(self, process: Process, host: str) -> None:
        self._process = process
        self._host = host
        self._last_id = 0
        self._over = ""  # why no further request can be sent

    def ask(
        self,
        op: str,
        args: Mapping[str, Any],
        deadline: Deadline,
        *,
        claim: Claim | None = None,
        payload: bytes = b"",
    ) -> dict[str, Any]:
        """The `result` object of the answer. `payload` follows the request line as raw bytes.

        Raises HostRefused with the agent's code; TransportError or HostLost as the module's table says:
        HostLost where there is a claim, which all requests that may change the host have, and only they.
        """
        if self._over:
            raise TransportError(self._host, op, f"the session is over: {self._over}", code="session_over")
        if deadline.expired:
            raise TransportError(self._host, op, "the deadline passed before it was asked", code="deadline")
        self._last_id += 1
        request: dict[str, Any] = {"id": self._last_id, "op": op, "deadline": _share(deadline), "args": args}
        if claim is not None:
            request["claim"] = claim.as_json()
        try:
            self._process.write(json.dumps(request).encode() + b"\n" + payload, deadline)
        except HostError as error:
            self._over = error.message
            raise TransportError(
                self._host, op, f"not sent: {error.message}", hint=error.hint, code=error.code
            ) from error
        return self._outcome(op, self._answer(op, deadline, unknown=claim is not None))

    def _answer(self, op: str, deadline: Deadline, *, unknown: bool) -> dict[str, Any]:
        """The answer to the last request; later ones to requests that were given up are skipped."""
        while True:
            try:
                line = self._process.read_line(MAX_LINE, deadline)
            except HostError as error:
                if (
                    error.code != "deadline"
                ):  # after a deadline the session lives on, and the late answer is skipped
                    self._over = error.message
                raise self._no_answer(op, error.message, error.code, unknown=unknown) from error
            if not line.endswith(b"\n"):
                self._over = self._how_it_ended()
                raise self._no_answer(op, self._over, "agent_ended", unknown=unknown)
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            identifier = answer.get("id", 0) if isinstance(answer, dict) else 0
            # null: the agent could not read the id of a request, and there is only this one.
            if identifier is None or identifier == self._last_id:
                return dict(answer)
            if not (isinstance(identifier, int) and 0 < identifier < self._last_id):
                self._over = f"the agent wrote something that is no answer: {line[:80]!r}"
                raise self._no_answer(op, self._over, "protocol", unknown=unknown)

    def _outcome(self, op: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        result, error = answer.get("result"), answer.get("error")
        if answer.get("ok") is True and isinstance(result, dict):
            return result
        if not isinstance(error, dict):
            error = {
                "code": "protocol",
                "message": f"an answer without result and error: {str(answer)[:200]}",
            }
        detail = error.get("detail")
        if isinstance(detail, dict) and detail.get("session_ends"):
            self._over = str(error.get("message"))
        errno = error.get("errno")
        refused = HostRefused(
            self._host,
            op,
            str(error.get("message")),
            hint=str(error.get("hint") or ""),
            code=str(error.get("code")),
            errno=errno if isinstance(errno, int) else None,
        )
        if isinstance(detail, dict) and detail.get("unknown"):
            # The agent itself does not know whether its keeper did it.
            raise HostLost(self._host, op, refused.message, hint=refused.hint, code=refused.code) from refused
        raise refused

    def _no_answer(self, op: str, message: str, code: str, *, unknown: bool) -> HostError:
        if unknown:
            hint = "it is not known whether it ran: the host is looked at first"
            return HostLost(self._host, op, f"no answer: {message}", hint=hint, code=code)
        return TransportError(self._host, op, f"no answer: {message}", code=code)

    def _how_it_ended(self) -> str:
        status = self._process.exit_status(Deadline.after(2.0))
        last = self._process.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return f"the agent ended (exit status {status}): {last[0]}"

    def close(self) -> None:
        """End the session from any thread: a request under way in another one fails at once."""
        self._process.close()


def _share(deadline: Deadline) -> float:
    left = deadline.left()
    return max(left - min(_MARGIN_S, left * _MARGIN_SHARE), 0.05)


def parsed(
    host: str, op: str, parse: Callable[[Mapping[str, Any]], Parsed], answer: Mapping[str, Any]
) -> Parsed:
    """The answer as a value. Raises TransportError with code "protocol" where it has another shape."""
    try:
        return parse(answer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"the agent's answer does not have the promised shape ({type(error).__name__}: {error})"
        raise TransportError(host, op, message, code="protocol", hint="report this") from error
