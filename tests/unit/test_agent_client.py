"""The agent client's side of the protocol, against an agent that says what the test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.errors import HostError, HostLost, HostRefused, TransportError
from orchestrator.domain.inventory import Host
from tests.support.agentclient import (
    ARMED,
    BUNDLE,
    CLAIM,
    HELLO,
    LOADED,
    STATUS,
    FakeConnection,
    FakeProcess,
    answering,
    error,
    ok,
    soon,
    start,
)
from workers.agent import AgentClient
from workers.deadline import Deadline

# -- start --------------------------------------------------------------------------------------------


def test_start_skips_what_the_login_shell_prints() -> None:
    noise = [b"Welcome!\n", b"\xff\xfe\n", b'{"hello": "somebody"}\n', b"[]\n", b"\n"]
    client = start(FakeProcess([*noise, json.dumps(HELLO).encode() + b"\n"]))
    assert (client.hello.boot_id, client.hello.python) == ("boot", "3.11.2")


def test_start_uses_an_isolated_python_and_sudo_where_the_inventory_says_so() -> None:
    for sudo in (False, True):
        connection = FakeConnection(FakeProcess())
        AgentClient.start(connection, Host(name="web1", address="web1", sudo=sudo), BUNDLE, soon())
        assert connection.started
        assert connection.started[0][:3] == ["python3", "-I", "-c"]
        assert connection.started[1] is sudo


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"protocol": 2}, "protocol"), ({"agent": "cd"}, "protocol"), ({"uid": 1000}, "not_root")],
)
def test_start_refuses_another_agent(changed: dict[str, Any], code: str) -> None:
    process = FakeProcess([json.dumps({**HELLO, **changed}).encode() + b"\n"])
    with pytest.raises(HostRefused) as caught:
        start(process)
    assert caught.value.code == code
    assert process.closed.is_set()


@pytest.mark.parametrize(
    ("status", "stderr", "sudo", "kind", "code"),
    [
        (127, "sh: 1: python3: not found", False, HostRefused, "no_python"),
        (1, "sudo: a password is required", True, HostRefused, "no_sudo"),
        (1, "Traceback\nValueError: x", False, HostRefused, "agent_failed"),
        (
            69,
            "kexec-fleet loader: needs Python 3.6 or later, this is 2.7.18",
            False,
            HostRefused,
            "agent_failed",
        ),
        (None, "", False, TransportError, "closed"),
    ],
)
def test_start_says_why_there_is_no_hello(
    status: int | None, stderr: str, sudo: bool, kind: type[HostError], code: str
) -> None:
    process = FakeProcess([])
    process.status, process.stderr = status, stderr
    # A shell without python3 ends before it has taken the source: that must not hide the reason.
    process.write_error = TransportError("web1", "ssh session", "the connection was closed", code="closed")
    with pytest.raises(HostError) as caught:
        start(process, sudo=sudo)
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert stderr.splitlines()[-1:] == [] or stderr.splitlines()[-1] in caught.value.message
    assert process.closed.is_set()


def test_a_session_lost_before_the_hello_changed_nothing() -> None:
    process = FakeProcess([])
    process.read_error = HostLost("web1", "ssh session", "gone", code="closed")
    with pytest.raises(TransportError):
        start(process)


def test_a_shell_that_never_stops_printing() -> None:
    with pytest.raises(HostRefused) as caught:
        start(FakeProcess([b"noise\n"] * 1000))
    assert caught.value.code == "agent_failed"


# -- requests and answers -----------------------------------------------------------------------------


def test_a_request_carries_id_deadline_claim_and_arguments() -> None:
    process = answering({"jump": "dead", "unloaded": True, "shutdown": {"under_way": True, "why": "x"}})
    client = start(process)
    answer = client.claim(CLAIM, Deadline.after(50))
    assert (answer.jump, answer.unloaded, answer.shutdown_under_way) == ("dead", True, True)
    client.claim(CLAIM, Deadline.after(50))
    (first, _), (second, _) = process.requests
    assert (first["op"], first["args"], second["id"]) == ("claim", {}, first["id"] + 1)
    assert first["claim"] == {
        "journal": "j",
        "rollout": "r",
        "host": "web1",
        "attempt": 2,
        "nonce": "n",
        "fence": 17,
        "boot_id": "boot",
    }
    # The agent's own "deadline" answer must still reach us.
    assert 40 < first["deadline"] <= 48


def test_reading_requests_carry_no_claim() -> None:
    process = answering(STATUS)
    status = start(process).status(soon())
    assert (status.phase, status.claim, status.kexec_loaded, status.jump_errno) == ("idle", None, None, None)
    assert "claim" not in process.requests[0][0]


def test_the_errno_of_a_refused_jump_is_in_the_status() -> None:
    raw = {**STATUS, "claim": CLAIM.as_json(), "note": {"errno": 22, "errname": "EINVAL"}}
    status = start(answering(raw)).status(soon())
    assert (status.claim, status.jump_errno) == (CLAIM, 22)


def test_an_error_of_the_agent() -> None:
    process = FakeProcess(answer=lambda request, payload: [error(request, "stale_fence", errno=16)])
    with pytest.raises(HostRefused) as caught:
        start(process).release(CLAIM, soon())
    refused = caught.value
    assert (refused.host, refused.step, refused.code) == ("web1", "release", "stale_fence")
    assert (refused.message, refused.hint, refused.errno) == ("no", "do", 16)


def test_an_agent_that_does_not_know_whether_it_happened_means_lost() -> None:
    process = FakeProcess(
        answer=lambda request, payload: [error(request, "deadline", detail={"unknown": True})]
    )
    with pytest.raises(HostLost):
        start(process).go(CLAIM, 5, soon())


def test_a_fatal_error_ends_the_session() -> None:
    process = FakeProcess(
        answer=lambda request, payload: [error(request, "bad_request", detail={"session_ends": True})]
    )
    client = start(process)
    with pytest.raises(HostRefused):
        client.facts(soon())
    with pytest.raises(TransportError) as caught:
        client.facts(soon())
    assert caught.value.code == "session_over"
    assert len(process.requests) == 1


def test_a_late_answer_to_a_request_that_was_given_up_is_skipped() -> None:
    process = FakeProcess()
    client = start(process)
    process.read_error = HostLost("web1", "ssh session", "the deadline passed", code="deadline")
    with pytest.raises(TransportError):
        client.facts(soon())
    late = ok({"id": 1}, {"late": True})
    process.answer = lambda request, payload: [late, ok(request, {"late": False})]
    assert client.facts(soon()) == {"late": False}


@pytest.mark.parametrize(
    "line", [b"noise\n", b"[]\n", b'{"id": 99, "ok": true, "result": {}}\n', b'{"id": "1"}\n']
)
def test_what_is_no_answer_ends_the_session(line: bytes) -> None:
    client = start(FakeProcess(answer=lambda request, payload: [line]))
    with pytest.raises(HostLost) as caught:
        client.unload(CLAIM, soon())
    assert caught.value.code == "protocol"
    with pytest.raises(TransportError) as over:
        client.status(soon())
    assert over.value.code == "session_over"


def test_an_error_without_an_id_belongs_to_the_only_request() -> None:
    client = start(FakeProcess(answer=lambda request, payload: [error({"id": None}, "bad_request")]))
    with pytest.raises(HostRefused):
        client.facts(soon())


@pytest.mark.parametrize(
    ("raw", "ask"),
    [
        ({"state": "exploded", "seconds": 1}, lambda c: c.load_wait(CLAIM, soon())),
        ({"state": "loaded", "seconds": 1}, lambda c: c.load_wait(CLAIM, soon())),
        ({"jump": "perhaps", "unloaded": False}, lambda c: c.claim(CLAIM, soon())),
        ({}, lambda c: c.status(soon())),
        ({"matches": None}, lambda c: c.resolve("/x", soon())),
        ({"collector": "log", "data": []}, lambda c: c.check("log", soon())),
    ],
)
def test_an_answer_of_the_wrong_shape(raw: dict[str, Any], ask: Callable[[AgentClient], Any]) -> None:
    with pytest.raises(TransportError) as caught:
        ask(start(answering(raw)))
    assert caught.value.code == "protocol"


# -- what is known when no answer comes ---------------------------------------------------------------


def test_nothing_is_sent_after_the_deadline() -> None:
    process = answering({})
    with pytest.raises(TransportError) as caught:
        start(process).go(CLAIM, 5, Deadline.after(-1))
    assert not isinstance(caught.value, HostLost)
    assert process.requests == []


def test_a_request_that_was_not_sent_whole_did_not_run() -> None:
    process = FakeProcess()
    client = start(process)
    process.write_error = TransportError("web1", "ssh session", "broken", code="reset")
    with pytest.raises(HostError) as caught:
        client.go(CLAIM, 5, soon())
    assert type(caught.value) is TransportError
    process.write_error = None
    with pytest.raises(TransportError) as over:  # half a request is in the channel: nothing may follow it
        client.status(soon())
    assert over.value.code == "session_over"


@pytest.mark.parametrize("code", ["deadline", "closed"])
def test_no_answer_to_a_change_means_lost_to_a_question_it_does_not(code: str) -> None:
    process = FakeProcess()
    client = start(process)
    process.read_error = HostLost("web1", "ssh session", "gone", code=code)
    with pytest.raises(HostError) as changing:
        client.go(CLAIM, 5, soon())
    assert type(changing.value) is HostLost
    assert changing.value.step == "go"
    client = start(process := FakeProcess())
    process.read_error = HostLost("web1", "ssh session", "gone", code=code)
    with pytest.raises(HostError) as reading:
        client.facts(soon())
    assert type(reading.value) is TransportError


def test_an_agent_that_ends_says_its_last_words() -> None:
    process = FakeProcess()
    process.status, process.stderr = 1, "Traceback\nMemoryError\n"
    with pytest.raises(HostLost) as caught:
        start(process).unload(CLAIM, soon())
    assert "MemoryError" in caught.value.message
    assert "exit status 1" in caught.value.message


# -- answers ------------------------------------------------------------------------------------------


def test_load_and_arm() -> None:
    client = start(answering(LOADED))
    answer = client.load(
        CLAIM,
        kernel="/k",
        initrd=None,
        cmdline="x",
        flags=8,
        expect={"kernel": "a", "initrd": None},
        hold=60.0,
        deadline=soon(),
    )
    assert (answer.state, answer.errno, answer.kexec_loaded) == ("loaded", None, 1)
    assert answer.log == ("6,1,2,-;kexec_file: x",)
    assert start(answering({"state": "loading", "seconds": 3.5})).load_wait(CLAIM, soon()).state == "loading"
    process = answering(ARMED)
    armed = start(process).arm(CLAIM, "direct", 3.0, soon())
    assert armed.appointment == 2**60 + 1
    assert dict(armed.raw) == ARMED
    assert process.requests[0][0]["args"] == {"method": "direct", "lead": 3.0}
