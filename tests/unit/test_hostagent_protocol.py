"""The channel: whatever comes in, an answer that says what was wrong, or a clean end; never a traceback."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import BOOT, Agent, Host, claim, host_in, until


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def answer_to(agent: Agent, line: bytes) -> dict:
    agent.send(line)
    return agent.read()


def test_hello_names_the_agent_and_the_boot(host: Host) -> None:
    hello = host.agent().hello
    assert hello["hello"] == "kexec-fleet-agent"
    assert (hello["protocol"], hello["boot_id"], len(hello["agent"])) == (1, BOOT, 64)
    assert set(hello) == {"hello", "agent", "protocol", "python", "boot_id", "pid", "uid"}


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\n",
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"{}\n",
        b'{"id": null, "op": "status"}\n',
        b'{"id": true, "op": "status"}\n',
        b'{"id": {}, "op": "status"}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_line_that_is_no_request_is_answered_and_survived(host: Host, line: bytes) -> None:
    agent = host.agent()
    answer = answer_to(agent, line)
    assert (answer["id"], answer["ok"], answer["error"]["code"]) == (None, False, "bad_request")
    assert agent.ask("status")["phase"] == "idle"


@pytest.mark.parametrize(
    "request_",
    [
        {"id": 1},
        {"id": 1, "op": 7},
        {"id": 1, "op": "status", "args": []},
        {"id": 1, "op": "status", "deadline": 0},
        {"id": 1, "op": "status", "deadline": -3},
        {"id": 1, "op": "status", "deadline": "soon"},
        {"id": 1, "op": "status", "deadline": True},
        {"id": 1, "op": "digest", "args": {"path": 5}},
        {"id": 1, "op": "digest", "args": {}},
        {"id": 1, "op": "resolve", "args": {"pattern": "relative*"}},
        {"id": 1, "op": "clock", "args": {"samples": 1}},
        {"id": 1, "op": "claim"},
        {"id": 1, "op": "claim", "claim": {"journal": "a"}},
    ],
)
def test_a_request_of_the_wrong_shape_is_answered_with_its_id(host: Host, request_: dict) -> None:
    answer = answer_to(host.agent(), json.dumps(request_).encode() + b"\n")
    assert (answer["id"], answer["ok"], answer["error"]["code"]) == (1, False, "bad_request")


def test_unknown_names_say_what_is_known(host: Host) -> None:
    agent = host.agent()
    assert agent.refused("dance")["code"] == "unknown_op"
    error = agent.refused("check", collector="dance")
    assert error["code"] == "unknown_collector"
    assert "identity" in error["detail"]["known"]


def test_a_line_without_end_ends_the_session(host: Host) -> None:
    agent = host.agent()
    answer = answer_to(agent, b"x" * ((1 << 20) + 70_000))
    assert answer["error"]["code"] == "bad_request"
    assert answer["error"]["detail"]["session_ends"] is True
    assert agent.end() == 0


def test_half_a_line_at_the_end_is_not_a_request(host: Host) -> None:
    agent = host.agent()
    agent.send(json.dumps({"id": 1, "op": "claim", "claim": claim()}).encode())
    assert agent.end() == 0
    assert not (host.root / "run/kexec-fleet").exists()
    assert agent.process.stderr and agent.process.stderr.read() == b""


def test_requests_sent_ahead_are_answered_one_by_one(host: Host) -> None:
    agent = host.agent()
    agent.send(b'{"id": "a", "op": "status"}\n{"id": "b", "op": "clock", "args": {"span": 0.01}}\n')
    assert [agent.read()["id"], agent.read()["id"]] == ["a", "b"]


def test_a_reading_request_is_cut_off_at_its_deadline(host: Host) -> None:
    agent = host.agent()
    start = time.monotonic()
    error = agent.refused("clock", deadline=0.3, span=30.0)
    assert error["code"] == "deadline"
    assert time.monotonic() - start < 5.0
    assert agent.ask("clock", span=0.01)["counter"] == "tsc"


def test_a_bug_is_an_answer_with_a_place(host: Host) -> None:
    (host.root / "behaviour.json").unlink()
    error = host.agent().refused("facts")
    assert error["code"] == "internal"
    assert "FileNotFoundError" in error["message"]
    assert any("<kexec-fleet-agent>/workers.hostagent" in place for place in error["detail"]["where"])


def test_a_stray_print_never_touches_the_protocol(host: Host) -> None:
    # systemctl prints on the stdout and stdin that it inherits.
    (host.root / "run/systemd/system").mkdir(parents=True)
    script = host.write("systemctl", "#!/bin/sh\ncat\necho running\necho noise >&2\n")
    script.chmod(0o755)
    agent = host.agent()
    assert agent.ask("status")["shutdown"]["under_way"] is False
    assert agent.ask("status")["phase"] == "idle"


def test_the_channel_closes_at_once_though_a_keeper_lives(host: Host) -> None:
    agent, mine = host.agent(), claim()
    host.behave(loading=True)
    agent.ask("claim", mine)
    agent.load(host, mine, deadline=2.0)
    agent.process.kill()
    assert agent.process.stdout and agent.process.stderr
    # The keeper holds neither pipe: sshd could close the channel while the load goes on.
    for pipe in (agent.process.stdout, agent.process.stderr):
        assert select.select([pipe], [], [], 10.0)[0]
        assert pipe.read() == b""
    assert host.calls("load_ended") == []
    host.behave()
    until(lambda: host.names() == ["load", "unload"], "the unload")


def test_a_session_that_ends_inside_a_load_does_not_wait_for_it(host: Host) -> None:
    host.behave(loading=True)
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.begin("load", mine, kernel=str(host.kernel), cmdline="", hold=30.0)
    until(lambda: host.calls("load"), "the load")
    assert agent.end() == 0
    assert host.calls("load_ended") == []
    host.behave()
    until(lambda: host.names() == ["load", "unload"], "the unload")
