"""An agent that says what the test tells it to, behind a connection that is none: for the agent client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from orchestrator.domain.errors import HostError
from orchestrator.domain.inventory import Host
from workers.agent import AgentClient, Claim
from workers.agentbundle import AgentBundle
from workers.connection.base import Completed
from workers.deadline import Deadline

BUNDLE = AgentBundle(b"source of the agent", "ab" * 32)
HELLO = {
    "hello": "kexec-fleet-agent",
    "agent": BUNDLE.sha256,
    "protocol": 1,
    "python": "3.11.2",
    "boot_id": "boot",
    "pid": 1,
    "uid": 0,
}
CLAIM = Claim(journal="j", rollout="r", host="web1", attempt=2, nonce="n", fence=17, boot_id="boot")
LOADED = {
    "state": "loaded",
    "errno": None,
    "errname": None,
    "seconds": 0.5,
    "flags": 8,
    "log": ["6,1,2,-;kexec_file: x"],
    "log_complete": True,
    "cma_before": {"areas": {}},
    "cma_after": {"areas": {}},
    "kexec_loaded": 1,
}
ARMED = {"method": "direct", "counter": "tsc", "appointment": 2**60 + 1, "lead_s": 3.0, "rate_hz": 1e9}
STATUS = {
    "boot_id": "boot",
    "phase": "idle",
    "kexec_loaded": None,
    "claim": None,
    "keeper_alive": False,
    "shutdown": {"under_way": False, "why": ""},
    "fences": {"j": 17},
}

Answer = Callable[[dict[str, Any], bytes], list[bytes]]


class FakeProcess:
    """A Process whose other side answers with what `answer(request, payload)` returns, line by line."""

    def __init__(self, hello: list[bytes] | None = None, answer: Answer | None = None) -> None:
        self.lines = [json.dumps(HELLO).encode() + b"\n"] if hello is None else hello
        self.answer = answer or (lambda request, payload: [])
        self.requests: list[tuple[dict[str, Any], bytes]] = []
        self.started = False
        self.closed = threading.Event()
        self.stderr = ""
        self.status: int | None = 0
        self.write_error: HostError | None = None
        self.read_error: HostError | None = None

    def write(self, data: bytes, deadline: Deadline) -> None:
        if self.write_error:
            raise self.write_error
        if not self.started:
            assert data == BUNDLE.header + BUNDLE.source
            self.started = True
            return
        line, _, payload = data.partition(b"\n")
        request = json.loads(line)
        self.requests.append((request, payload))
        self.lines += self.answer(request, payload)

    def read(self, size: int, deadline: Deadline) -> bytes:
        raise AssertionError("the client reads lines")

    def read_line(self, limit: int, deadline: Deadline) -> bytes:
        if self.lines:
            return self.lines.pop(0)
        if self.read_error:
            raise self.read_error
        return b""

    def close_stdin(self) -> None: ...

    def exit_status(self, deadline: Deadline) -> int | None:
        return self.status

    def close(self) -> None:
        self.closed.set()


class FakeConnection:
    """A Connection that can start one process."""

    host = Host(name="web1", address="web1")
    server_version = "SSH-2.0-fake"

    def __init__(self, process: FakeProcess) -> None:
        self.process = process
        self.started: tuple[list[str], bool] | None = None

    def open_process(self, argv: Any, deadline: Deadline, *, sudo: bool = False) -> FakeProcess:
        self.started = (list(argv), sudo)
        return self.process

    def run(self, argv: Any, deadline: Deadline, *, sudo: bool = False) -> Completed:
        raise AssertionError("the client starts the agent and nothing else")

    def alive(self, deadline: Deadline) -> bool:
        return True

    def close(self) -> None: ...


def soon() -> Deadline:
    return Deadline.after(60)


def start(process: FakeProcess, **host: Any) -> AgentClient:
    return AgentClient.start(
        FakeConnection(process), Host(name="web1", address="web1", **host), BUNDLE, soon()
    )


def ok(request: dict[str, Any], result: dict[str, Any]) -> bytes:
    return json.dumps({"id": request["id"], "ok": True, "result": result}).encode() + b"\n"


def error(request: dict[str, Any], code: str, **more: Any) -> bytes:
    whole = {"code": code, "message": "no", "hint": "do", "errno": None, "detail": {}, **more}
    return json.dumps({"id": request["id"], "ok": False, "error": whole}).encode() + b"\n"


def answering(result: dict[str, Any]) -> FakeProcess:
    return FakeProcess(answer=lambda request, payload: [ok(request, result)])
