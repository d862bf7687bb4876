"""The agent client asks for derived files and for what memory holds."""

from __future__ import annotations

import pytest

from orchestrator.domain.errors import HostLost, HostRefused, TransportError
from tests.support.agentclient import CLAIM, FakeProcess, answering, error, soon, start

DERIVED = {"path": "/var/x", "sha256": "ab" * 32, "size": 4096, "seconds": 0.5}
SEGMENT = {"index": 2, "address": 0x60E00000, "memsz": 8192, "bufsz": 4096, "file": None}


def derive(process: FakeProcess) -> object:
    return start(process).derive(
        CLAIM, source="/boot/vmlinuz", expect=None, take=4096, size=8192, patches=[(0x260, b"\0\x10")],
        name="kernel", deadline=soon(),
    )  # fmt: skip


def test_derive_sends_its_recipe_under_the_claim_and_parses_the_answer() -> None:
    process = answering(DERIVED)
    answer = derive(process)
    assert (answer.path, answer.sha256, answer.size, answer.seconds) == ("/var/x", "ab" * 32, 4096, 0.5)
    ((request, _),) = process.requests
    assert (request["op"], request["claim"]["fence"]) == ("derive", 17)
    assert request["args"] == {
        "source": "/boot/vmlinuz",
        "expect": None,
        "take": 4096,
        "size": 8192,
        "patches": [[0x260, "0010"]],
        "name": "kernel",
    }


def test_readback_needs_no_claim_and_answers_for_each_segment() -> None:
    result = {"source": "kcore", "seconds": 1.5, "segments": [{"index": 2, "readable": True}]}
    process = answering(result)
    assert start(process).readback([SEGMENT], soon()) == result
    ((request, _),) = process.requests
    assert (request["op"], request["args"]) == ("readback", {"segments": [SEGMENT]})
    assert "claim" not in request


@pytest.mark.parametrize("result", [{}, {"segments": []}, {"segments": 7}, {"segments": ["x"]}])
def test_an_answer_of_another_shape_is_no_answer(result: dict[str, object]) -> None:
    with pytest.raises(TransportError) as caught:
        start(answering(result)).readback([SEGMENT], soon())
    assert caught.value.code == "protocol"
    with pytest.raises(TransportError):
        derive(answering(result))


def test_a_lost_readback_may_be_asked_again_a_lost_derive_may_have_happened() -> None:
    with pytest.raises(TransportError):
        start(FakeProcess()).readback([SEGMENT], soon())
    with pytest.raises(HostLost):
        derive(FakeProcess())


def test_a_refusal_keeps_its_code() -> None:
    process = FakeProcess(answer=lambda request, payload: [error(request, "disk_full")])
    with pytest.raises(HostRefused) as caught:
        derive(process)
    assert caught.value.code == "disk_full"
