"""Artifacts: resumable, hashed on the host, bounded, and never on a disk that is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import Agent, Host, bzimage, claim, host_in, sha256
from workers.hostagent import files
from workers.hostagent.deadline import Deadline
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.kexec import Kernel
from workers.hostagent.protocol import Channel
from workers.hostagent.staging import Staging


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


@pytest.fixture
def agent(host: Host) -> Agent:
    agent = host.agent()
    agent.ask("claim", claim())
    return agent


def artifacts(host: Host) -> Path:
    return host.root / "var/lib/kexec-fleet/artifacts"


def stage(agent: Agent, data: bytes, name: str = "kernel") -> dict:
    digest = sha256(data)
    begun = agent.ask("stage_begin", claim(), sha256=digest, size=len(data), name=name)
    if not begun["have"]:
        assert agent.chunk(claim(), digest, begun["offset"], data[begun["offset"] :])["ok"]
    return agent.ask("stage_end", claim(), sha256=digest, size=len(data))


def test_a_file_arrives_in_chunks_under_its_hash(host: Host, agent: Agent) -> None:
    data = os.urandom(300_000)
    digest = sha256(data)
    begun = agent.ask("stage_begin", claim(), sha256=digest, size=len(data), name="kernel")
    assert (begun["have"], begun["offset"], begun["free"]) == (False, 0, 10**12)
    for offset in range(0, len(data), 100_000):
        answer = agent.chunk(claim(), digest, offset, data[offset : offset + 100_000])
        assert answer["result"] == {"offset": offset + 100_000}
    path = artifacts(host) / digest
    assert agent.ask("stage_end", claim(), sha256=digest, size=len(data)) == {
        "path": str(path),
        "sha256": digest,
        "size": len(data),
    }
    assert path.read_bytes() == data
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # Staged twice it is there already, and ending twice says the same.
    assert agent.ask("stage_begin", claim(), sha256=digest, size=len(data), name="kernel")["have"] is True
    assert agent.ask("stage_end", claim(), sha256=digest, size=len(data))["path"] == str(path)


def test_a_broken_transfer_goes_on_where_it_stopped(host: Host, agent: Agent) -> None:
    data = os.urandom(200_000)
    digest = sha256(data)
    agent.ask("stage_begin", claim(), sha256=digest, size=len(data), name="initrd")
    agent.begin("stage_chunk", claim(), sha256=digest, offset=0, length=len(data))
    agent.send(data[:70_000])
    agent.end()  # inside the raw bytes
    again = host.agent()
    again.ask("claim", claim(18))
    begun = again.ask("stage_begin", claim(18), sha256=digest, size=len(data), name="initrd")
    assert begun["offset"] == 70_000
    early = again.refused("stage_end", claim(18), sha256=digest, size=len(data))
    assert (early["code"], early["detail"]["offset"]) == ("incomplete", 70_000)
    wrong = again.chunk(claim(18), digest, 0, data)
    assert (wrong["error"]["code"], wrong["error"]["detail"]) == ("bad_offset", {"offset": 70_000})
    assert again.chunk(claim(18), digest, 70_000, data[70_000:])["ok"]
    again.ask("stage_end", claim(18), sha256=digest, size=len(data))
    assert (artifacts(host) / digest).read_bytes() == data


def test_wrong_bytes_are_deleted(host: Host, agent: Agent) -> None:
    digest = sha256(b"right")
    agent.ask("stage_begin", claim(), sha256=digest, size=5, name="kernel")
    assert agent.chunk(claim(), digest, 0, b"wrong")["ok"]
    error = agent.refused("stage_end", claim(), sha256=digest, size=5)
    assert (error["code"], error["detail"]["sha256"]) == ("hash_mismatch", sha256(b"wrong"))
    assert [path.name for path in artifacts(host).iterdir()] == ["index.json"]


def test_a_partial_file_that_is_too_long_begins_anew(host: Host, agent: Agent) -> None:
    digest = sha256(b"right")
    host.write(f"var/lib/kexec-fleet/artifacts/{digest}.partial", b"much too long")
    assert agent.ask("stage_begin", claim(), sha256=digest, size=5, name="kernel")["offset"] == 0


def test_a_full_disk_is_refused_with_the_figures(host: Host, agent: Agent) -> None:
    host.behave(free_bytes=(32 << 20) + 999)
    error = agent.refused("stage_begin", claim(), sha256="0" * 64, size=1000, name="kernel")
    assert (error["code"], error["errno"]) == ("disk_full", 28)
    assert error["detail"]["needed"] == (32 << 20) + 1000
    assert error["detail"]["free"] == (32 << 20) + 999
    # What is there already need not fit once more.
    host.write(f"var/lib/kexec-fleet/artifacts/{'0' * 64}.partial", b"x")
    assert agent.ask("stage_begin", claim(), sha256="0" * 64, size=1000, name="kernel")["offset"] == 1


def test_a_disk_that_fills_up_meanwhile_keeps_the_channel_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk(Kernel):
        def free_bytes(self, path: str) -> int:
            return 1 << 30

    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    outside, inside = os.pipe()
    channel = Channel(outside, inside)
    staging = Staging(Environment(Disk(), str(tmp_path)))
    digest = sha256(b"x")
    staging.begin(digest, 5, "kernel")
    monkeypatch.setattr(files, "write_all", full)
    os.write(inside, b"12345next")
    with pytest.raises(AgentError) as raised:
        staging.chunk(channel, digest, 0, 5, Deadline(5.0))
    assert (raised.value.code, raised.value.errno) == ("disk_full", 28)
    assert channel.take_bytes(100, Deadline(5.0)) == b"next"


def test_a_symbolic_link_is_never_followed(host: Host, agent: Agent) -> None:
    digest = sha256(b"x")
    elsewhere = host.write("elsewhere", b"")
    agent.ask("stage_begin", claim(), sha256=digest, size=9, name="kernel")
    (artifacts(host) / f"{digest}.partial").symlink_to(elsewhere)
    assert agent.chunk(claim(), digest, 0, b"123456789")["error"]["code"] == "io_error"
    assert elsewhere.read_bytes() == b""
    assert agent.ask("status")["phase"] == "claimed"


def test_refused_chunks_are_taken_off_the_channel(host: Host, agent: Agent) -> None:
    data = b'{"id": 1, "op": "clean"}\n' * 9000
    for wrong, code in (
        (claim(16), "stale_fence"),
        (claim(boot_id="other"), "wrong_boot"),
        ({"journal": "a"}, "bad_request"),
    ):
        assert agent.chunk(wrong, "0" * 64, 0, data)["error"]["code"] == code
    assert agent.chunk(claim(), "0" * 64, 0, data)["error"]["code"] == "bad_request"  # no stage_begin
    assert agent.chunk(claim(), "../../../../etc/passwd", 0, data)["error"]["code"] == "bad_request"
    assert agent.ask("status")["phase"] == "claimed"


@pytest.mark.parametrize("length", [-1, "many", None, 1 << 40, True])
def test_a_chunk_whose_length_is_unknown_ends_the_session(agent: Agent, length: object) -> None:
    error = agent.refused("stage_chunk", claim(), sha256="0" * 64, offset=0, length=length)
    assert (error["code"], error["detail"]["session_ends"]) == ("bad_request", True)
    assert agent.end() == 0


def test_a_chunk_that_does_not_come_ends_the_session_at_its_deadline(host: Host, agent: Agent) -> None:
    digest = sha256(b"right")
    agent.ask("stage_begin", claim(), sha256=digest, size=5, name="kernel")
    agent.begin("stage_chunk", claim(), deadline=0.3, sha256=digest, offset=0, length=5)
    agent.send(b"ri")
    error = agent.read()["error"]
    assert (error["code"], error["detail"]["session_ends"]) == ("deadline", True)
    assert agent.end() == 0


def test_only_the_newest_two_of_a_kind_stay(host: Host, agent: Agent) -> None:
    old = []
    for number in range(4):
        for name in ("kernel", "initrd"):
            data = f"{name}{number}".encode()
            path = Path(stage(agent, data, name)["path"])
            os.utime(path, (1000.0 + number, 1000.0 + number))
            old.append((name, number, path))
    # One session's own files are never taken from it.
    assert all(path.exists() for _, _, path in old)
    agent.end()
    later = host.agent()
    later.ask("claim", claim(18))
    new = os.urandom(9)
    later.ask("stage_begin", claim(18), sha256=sha256(new), size=9, name="kernel")
    left = sorted((name, number) for name, number, path in old if path.exists())
    assert left == [("initrd", 2), ("initrd", 3), ("kernel", 3)]


def test_a_loaded_file_is_hashed_before_the_kernel_sees_it(host: Host, agent: Agent) -> None:
    kernel = bzimage()
    path = Path(stage(agent, kernel)["path"])
    path.write_bytes(kernel[:-1] + bytes([kernel[-1] ^ 1]))
    args = {"kernel": str(path), "cmdline": "", "hold": 30.0, "expect": {"kernel": sha256(kernel)}}
    error = agent.refused("load", claim(), **args)
    assert error["code"] == "hash_mismatch"
    assert host.names() == []
    # Our own copy was damaged: gone, so that staging sends it again.
    assert not path.exists()
    assert agent.refused("load", claim(), **args)["code"] == "no_file"
    wrong = {**args, "kernel": str(host.kernel)}
    assert agent.refused("load", claim(), **wrong)["code"] == "hash_mismatch"
    assert host.kernel.exists()
