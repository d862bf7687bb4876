"""Derived images: cut, padded and patched on the host, named by their hash, and never in a source's way."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hostagent_harness import Agent, Host, bzimage, claim, host_in, load_args, sha256, until
from workers.hostagent import derive as module
from workers.hostagent.derive import derive
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.kexec import Kernel
from workers.hostagent.protocol import Request
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


def files_in(host: Host) -> set[str]:
    found = artifacts(host).iterdir() if artifacts(host).exists() else ()
    return {path.name for path in found} - {"index.json"}


def stage(agent: Agent, data: bytes, name: str, fence: int = 17) -> str:
    digest = sha256(data)
    begun = agent.ask("stage_begin", claim(fence), sha256=digest, size=len(data), name=name)
    if not begun["have"]:
        assert agent.chunk(claim(fence), digest, 0, data)["ok"]
    return str(agent.ask("stage_end", claim(fence), sha256=digest, size=len(data))["path"])


def recipe(source: str | Path, size: int, **more: Any) -> dict[str, Any]:
    return {"source": str(source), "expect": None, "take": None, "size": size, "patches": [],
            "name": "kernel", **more}  # fmt: skip


def test_a_padded_file_is_its_source_and_zeros_under_its_own_hash(host: Host, agent: Agent) -> None:
    data = os.urandom(2 * (1 << 20) + 777)
    source = stage(agent, data, "initrd")
    size = 3 * (1 << 20) + 4096
    made = agent.ask("derive", claim(), **recipe(source, size, expect=sha256(data), name="initrd"))
    wanted = data.ljust(size, b"\0")
    assert made["seconds"] >= 0
    assert (made["sha256"], made["size"]) == (sha256(wanted), size)
    path = artifacts(host) / sha256(wanted)
    assert made["path"] == str(path)
    assert path.read_bytes() == wanted
    assert path.stat().st_mode & 0o777 == 0o600
    assert Path(source).read_bytes() == data
    # Once more it answers the same; a copy that was damaged is a good one again.
    path.write_bytes(b"rotten")
    again = agent.ask("derive", claim(), **recipe(source, size, expect=sha256(data), name="initrd"))
    assert (again["path"], path.read_bytes()) == (str(path), wanted)


def test_a_spacer_is_cut_off_a_kernel_patched_and_loaded(host: Host, agent: Agent) -> None:
    kernel = bytearray(bzimage(init_size=64 << 20))
    kernel[0x1F1] = 3  # setup_sects
    source = host.write("boot/kernel", bytes(kernel))
    take = (3 + 1) * 512 + 4096
    patch = [0x260, struct.pack("<I", 1 << 20).hex()]
    made = agent.ask("derive", claim(), **recipe(source, take, take=take, patches=[patch]))
    spacer = Path(made["path"]).read_bytes()
    assert spacer == bytes(kernel[:0x260]) + struct.pack("<I", 1 << 20) + bytes(kernel[0x264:take])
    # Its own figures count for the checks, not those of the kernel that it was cut off.
    expect = {"kernel": made["sha256"]}
    answer = agent.load(host, claim(), kernel=made["path"], initrd=None, expect=expect)
    assert (answer["state"], answer["sizes"]["estimate"]) == ("loaded", (1 << 20) + (1 << 20))
    assert answer["flags"] & 0x4
    tiny = host.write("boot/one-byte", b"\0")
    assert agent.load(host, claim(), kernel=made["path"], initrd=str(tiny), expect={})["state"] == "loaded"
    # The image itself comes through the same keeper while the spacer is there; a refusal takes both away.
    host.behave(load_errno=12)
    assert agent.load(host, claim())["errname"] == "ENOMEM"
    assert not host.loaded()
    assert host.names() == ["load", "load", "load", "unload"]


def test_a_refused_spacer_is_reported_and_nothing_stays(host: Host, agent: Agent) -> None:
    host.behave(load_errno=8)
    made = agent.ask("derive", claim(), **recipe(host.kernel, 8192, take=8192))
    answer = agent.load(host, claim(), kernel=made["path"], initrd=None, expect={})
    assert (answer["state"], answer["errname"], answer["kexec_loaded"]) == ("refused", "ENOEXEC", 0)
    assert agent.ask("status")["phase"] == "claimed"


@pytest.mark.parametrize("take", [None, 100])
def test_another_source_than_expected_derives_nothing(host: Host, agent: Agent, take: int | None) -> None:
    data = bytearray(os.urandom(3 << 20))
    source = host.write("boot/kernel", bytes(data))
    digest = sha256(bytes(data))
    assert (
        agent.ask("derive", claim(), **recipe(source, 4 << 20, take=take, expect=digest))["size"] == 4 << 20
    )
    before = files_in(host)
    data[-1] ^= 1  # also what is not taken is part of what was expected
    source.write_bytes(bytes(data))
    error = agent.refused("derive", claim(), **recipe(source, 4 << 20, take=take, expect=digest))
    assert (error["code"], error["detail"]["sha256"]) == ("hash_mismatch", sha256(bytes(data)))
    assert files_in(host) == before
    assert source.exists()


@pytest.mark.parametrize("behind", [b"", b"\0", b"\0\0\0"])
def test_a_bootconfig_at_an_initrds_end_is_not_hidden_by_padding(
    host: Host, agent: Agent, behind: bytes
) -> None:
    data = bytes(5000) + b"kernel.x = 1" + struct.pack("<II", 12, 0) + b"#BOOTCONFIG\n" + behind
    path = stage(agent, data, "initrd")
    told = recipe(path, 8192, name="initrd")
    assert agent.refused("derive", claim(), **told)["code"] == "bootconfig"
    assert agent.ask("derive", claim(), **{**told, "size": len(data)})["size"] == len(data)


def test_a_full_disk_is_refused_with_the_figures(host: Host, agent: Agent) -> None:
    host.behave(free_bytes=(32 << 20) + 99_999)
    error = agent.refused("derive", claim(), **recipe(host.kernel, 100_000))
    assert (error["code"], error["errno"]) == ("disk_full", 28)
    assert (error["detail"]["needed"], error["detail"]["free"]) == ((32 << 20) + 100_000, (32 << 20) + 99_999)
    assert files_in(host) == set()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    direct = Direct(tmp_path)
    monkeypatch.setattr(module.files, "write_all", full)
    with pytest.raises(AgentError) as raised:
        direct.ask(b"x", size=4096)
    assert (raised.value.code, raised.value.errno) == ("disk_full", 28)
    assert list((tmp_path / "var/lib/kexec-fleet/artifacts").iterdir()) == []


def test_it_stops_at_its_deadline_and_leaves_nothing(host: Host, agent: Agent) -> None:
    size = 2 << 30
    error = agent.refused("derive", claim(), deadline=0.2, **recipe(host.kernel, size))
    assert error["code"] == "deadline"
    assert files_in(host) == set()
    assert agent.ask("status")["phase"] == "claimed"


def test_a_lost_session_ends_it_and_what_is_loaded(host: Host, agent: Agent) -> None:
    agent.load(host, claim())
    agent.begin("derive", claim(), **recipe(host.kernel, 2 << 30))
    until(lambda: "derived.partial" in files_in(host), "the derived file's beginning")
    assert agent.end() == 0
    assert files_in(host) == set()
    until(lambda: not host.loaded(), "the unload")


def test_derived_files_take_no_sources_place(host: Host, agent: Agent) -> None:
    """Two newest kernels and initrds stay, as without derived files; of those only this session's."""
    kernels = [Path(stage(agent, f"kernel{number}".encode(), "kernel")) for number in range(3)]
    initrds = [Path(stage(agent, f"initrd{number}".encode(), "initrd")) for number in range(2)]
    derived = [
        Path(agent.ask("derive", claim(), **recipe(kernels[0], 4096 * more))["path"]) for more in range(1, 5)
    ]
    # What is derived into its own source stays what it was.
    same = agent.ask("derive", claim(), **recipe(kernels[1], 7))
    assert same["path"] == str(kernels[1])
    for number, path in enumerate([*kernels, *initrds, *derived]):
        os.utime(path, (1000.0 + number, 1000.0 + number))
    stage(agent, initrds[0].read_bytes(), "initrd")
    assert all(path.exists() for path in [*kernels, *initrds, *derived])
    (artifacts(host) / "derived.partial").write_bytes(b"left by an agent that was killed")
    agent.end()
    later = host.agent()
    later.ask("claim", claim(18))
    new = Path(later.ask("derive", claim(18), **recipe(kernels[0], 9))["path"])
    # The source is this session's now, though it was the oldest; beside it the newest one stays.
    assert files_in(host) == {path.name for path in [kernels[0], kernels[2], *initrds, new]}
    third = Path(stage(later, b"kernel2", "kernel", 18))
    assert files_in(host) == {path.name for path in [kernels[0], *initrds, new, third]}


def test_a_symbolic_link_is_never_followed(host: Host, agent: Agent) -> None:
    elsewhere = host.write("elsewhere", b"precious")
    agent.ask("derive", claim(), **recipe(host.kernel, 1 << 20))
    link = artifacts(host) / "derived.partial"
    link.symlink_to(elsewhere)
    agent.ask("derive", claim(), **recipe(host.kernel, 1 << 20))
    assert elsewhere.read_bytes() == b"precious"
    assert not link.is_symlink()


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "relative"},
        {"source": 7},
        {"name": "dtb"},
        {"size": 0},
        {"size": (2 << 30) + 1},
        {"size": 9},  # smaller than what is taken
        {"take": -1},
        {"take": 1 << 30},
        {"take": "all"},
        {"expect": 7},
        {"patches": "none"},
        {"patches": [[0]]},
        {"patches": [[-1, "00"]]},
        {"patches": [[True, "00"]]},
        {"patches": [["0", "00"]]},
        {"patches": [[0, "0g"]]},
        {"patches": [[0, 7]]},
        {"patches": [[(1 << 20) - 1, "0000"]]},
        {"patches": [[0, "00" * 4097]]},
        {"patches": [[0, "00"]] * 17},
    ],
)
def test_what_is_no_recipe_is_refused(host: Host, agent: Agent, wrong: dict[str, Any]) -> None:
    error = agent.refused("derive", claim(), **{**recipe(host.kernel, 1 << 20), **wrong})
    assert error["code"] == "bad_request", error
    assert files_in(host) == set()


def test_it_wants_a_claim_and_a_source(host: Host, agent: Agent) -> None:
    assert agent.refused("derive", claim(16), **recipe(host.kernel, 1 << 20))["code"] == "stale_fence"
    assert agent.refused("derive", None, **recipe(host.kernel, 1 << 20))["code"] == "bad_request"
    for path in (host.root / "gone", host.root, "/dev/null"):
        assert agent.refused("derive", claim(), **recipe(path, 4096))["code"] == "no_file"
    os.mkfifo(host.root / "fifo")
    assert agent.refused("derive", claim(), **recipe(host.root / "fifo", 4096))["code"] == "no_file"
    assert load_args(host)["kernel"] == str(host.kernel)


class Direct:
    """The operation without a session: for many small examples."""

    def __init__(self, root: Path) -> None:
        class Disk(Kernel):
            def free_bytes(self, path: str) -> int:
                return 1 << 40

        self.source = root / "source"
        self.staging = Staging(Environment(Disk(), str(root)))

    def ask(self, source: bytes, size: int, **more: Any) -> dict[str, Any]:
        self.source.write_bytes(source)
        args = recipe(self.source, size, expect=sha256(source), **more)
        return derive(self.staging, Request({"op": "derive", "args": args}), lambda: None)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Direct:
    return Direct(tmp_path_factory.mktemp("direct"))


@settings(deadline=None)
@given(data=st.data())
def test_any_recipe_gives_what_a_plain_loop_would(direct: Direct, data: st.DataObject) -> None:
    source = data.draw(st.binary(max_size=40))
    take = data.draw(st.none() | st.integers(0, len(source)))
    taken = source if take is None else source[:take]
    size = data.draw(st.integers(max(len(taken), 1), 60))
    texts = st.binary(max_size=12)
    patches = [
        (data.draw(st.integers(0, size - len(text))), text)
        for text in data.draw(st.lists(texts, max_size=4))
        if len(text) <= size
    ]
    wanted = bytearray(taken.ljust(size, b"\0"))
    for offset, text in patches:
        wanted[offset : offset + len(text)] = text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", data.draw(st.integers(1, 9)))
        asked = [[offset, text.hex()] for offset, text in patches]
        made = direct.ask(source, size, take=take, patches=asked)
    assert Path(made["path"]).read_bytes() == bytes(wanted)
    assert made["sha256"] == sha256(bytes(wanted))
