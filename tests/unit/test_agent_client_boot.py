"""The agent client's requests around a boot: what goes out, and answers that are not what was promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orchestrator.domain.errors import HostLost, HostRefused, TransportError
from tests.support.agentclient import ARMED, CLAIM, FakeProcess, answering, error, soon, start
from workers.agent import AgentClient

SHOWN = {"method": "none", "default": None, "detail": ""}
SET = {"method": "grub", "before": None, "after": "x>y", "detail": ""}
EVIDENCE = {"log": ["6,1,2,-;x"], "pstore": [], "why_not": "pstore kept nothing"}


def set_default(client: AgentClient) -> Mapping[str, Any]:
    return client.boot_default_set(
        CLAIM,
        method="command",
        release="7.3",
        kernel="/boot/vmlinuz-7.3",
        entry=None,
        command=("sh", "-c", "true"),
        deadline=soon(),
    )


CASES: list[tuple[Callable[[AgentClient], Mapping[str, Any]], str, dict[str, Any], dict[str, Any], bool]] = [
    (
        lambda client: client.guard_install(CLAIM, 600.0, soon()),
        "guard_install",
        {"nonce": CLAIM.nonce, "seconds": 600.0},
        {"installed": False, "detail": "no init"},
        True,
    ),
    (
        lambda client: client.guard_confirm(CLAIM, soon()),
        "guard_confirm",
        {"nonce": CLAIM.nonce},
        {"removed": ["/etc/kexec-fleet/guard"], "detail": ""},
        True,
    ),
    (
        set_default,
        "boot_default_set",
        {
            "method": "command",
            "release": "7.3",
            "kernel": "/boot/vmlinuz-7.3",
            "entry": None,
            "command": ["sh", "-c", "true"],
        },
        SET,
        True,
    ),
    (lambda client: client.boot_default_show(soon()), "boot_default_show", {}, SHOWN, False),
]


@pytest.mark.parametrize(("ask", "op", "args", "result", "changes"), CASES, ids=[case[1] for case in CASES])
def test_each_request_has_its_arguments_and_gives_its_answer(
    ask: Callable[[AgentClient], Mapping[str, Any]],
    op: str,
    args: dict[str, Any],
    result: dict[str, Any],
    changes: bool,
) -> None:
    process = answering(result)
    assert dict(ask(start(process))) == result
    [(request, _)] = process.requests
    assert (request["op"], request["args"], "claim" in request) == (op, args, changes)
    with pytest.raises(TransportError) as caught:
        ask(start(answering({"something": "else"})))
    assert caught.value.code == "protocol"


def test_evidence_is_a_collectors_and_asked_by_its_nonce() -> None:
    process = answering({"collector": "evidence", "data": EVIDENCE, "seconds": 0.1})
    assert dict(start(process).evidence("n", soon())) == EVIDENCE
    [(request, _)] = process.requests
    assert (request["op"], request["args"]) == ("check", {"collector": "evidence", "args": {"nonce": "n"}})
    for damaged in ({"data": []}, {"data": {"log": None}}, {}):
        with pytest.raises(TransportError) as caught:
            start(answering(damaged)).evidence("n", soon())
        assert caught.value.code == "protocol"


def test_a_watchdog_is_asked_for_only_where_it_is_wanted() -> None:
    process = answering(ARMED)
    start(process).arm(CLAIM, "direct", 3.0, soon(), watchdog=60.0)
    assert process.requests[0][0]["args"] == {"method": "direct", "lead": 3.0, "watchdog": 60.0}


def test_a_refusal_keeps_its_code() -> None:
    refused = FakeProcess(answer=lambda request, _payload: [error(request, "grub_not_saved")])
    with pytest.raises(HostRefused) as caught:
        set_default(start(refused))
    assert caught.value.code == "grub_not_saved"


def test_a_lost_answer_to_a_change_is_not_known() -> None:
    process = FakeProcess(answer=lambda _request, _payload: [])
    client = start(process)
    process.read_error = HostLost("web1", "ssh session", "gone", code="closed")
    with pytest.raises(HostLost):
        client.guard_install(CLAIM, 60.0, soon())
