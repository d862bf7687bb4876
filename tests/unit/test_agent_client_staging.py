"""The agent client sends files: in chunks, resumed, skipped, and again when they arrived wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import HostRefused
from tests.support.agentclient import (
    CLAIM,
    FakeProcess,
    error,
    ok,
    soon,
    start,
)


class Store:
    """The agent's half of staging, in memory."""

    def __init__(self, have: bytes = b"", *, whole: bool = False) -> None:
        self.data = bytearray(have)
        self.whole = whole
        self.ops: list[str] = []
        self.mismatches = 0

    def __call__(self, request: dict[str, Any], payload: bytes) -> list[bytes]:
        op, args = request["op"], request["args"]
        self.ops.append(op)
        if op == "stage_begin":
            assert args["name"] == "kernel"
            return [ok(request, {"have": self.whole, "offset": len(self.data), "free": 1 << 40})]
        if op == "stage_chunk":
            assert (args["offset"], args["length"]) == (len(self.data), len(payload))
            self.data += payload
            return [ok(request, {"offset": len(self.data)})]
        if self.mismatches:
            self.mismatches -= 1
            self.data.clear()
            return [error(request, "hash_mismatch")]
        return [ok(request, {"path": "/var/x", "sha256": args["sha256"], "size": args["size"]})]


@pytest.fixture
def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("workers.agent.CHUNK", 1000)
    path = tmp_path / "blob"
    path.write_bytes(bytes(range(250)) * 10)
    yield path


def stage(store: Store, path: Path, size: int = 2500, **more: Any) -> Any:
    return start(FakeProcess(answer=store)).stage(CLAIM, path, "ab" * 32, size, "kernel", soon(), **more)


def test_stage_sends_chunks_and_reports_progress(blob: Path) -> None:
    store, seen = Store(), []
    result = stage(store, blob, progress=lambda done, size: seen.append((done, size)))
    assert bytes(store.data) == blob.read_bytes()
    assert (result.path, result.skipped, result.resumed_from, result.bytes_sent) == ("/var/x", False, 0, 2500)
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_stage_resumes_and_skips(blob: Path) -> None:
    half = Store(blob.read_bytes()[:1200])
    result = stage(half, blob)
    assert bytes(half.data) == blob.read_bytes()
    assert (result.skipped, result.resumed_from, result.bytes_sent) == (False, 1200, 1300)
    there = Store(blob.read_bytes(), whole=True)
    result = stage(there, blob)
    assert (result.skipped, result.bytes_sent, there.ops) == (True, 0, ["stage_begin", "stage_end"])


def test_a_resumed_file_that_is_wrong_is_sent_again_once(blob: Path) -> None:
    store = Store(b"garbage")
    store.mismatches = 1
    result = stage(store, blob)
    assert (result.resumed_from, result.bytes_sent) == (0, 2500)
    assert bytes(store.data) == blob.read_bytes()


def test_a_fresh_file_that_is_wrong_is_refused(blob: Path) -> None:
    store = Store()
    store.mismatches = 1
    with pytest.raises(HostRefused) as caught:
        stage(store, blob)
    assert caught.value.code == "hash_mismatch"
    assert store.ops.count("stage_end") == 1


def test_a_local_file_that_changed_is_not_sent(blob: Path) -> None:
    for path, size in ((blob, 2501), (blob.with_name("none"), 2500)):
        store = Store()
        with pytest.raises(HostRefused) as caught:
            stage(store, path, size)
        assert caught.value.code == "local_file"
        assert store.ops == ["stage_begin"]
