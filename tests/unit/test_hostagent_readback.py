"""Reading physical memory back: a small ELF core plays /proc/kcore, and the agent reads it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hostagent_harness import Agent, Host, host_in
from workers.hostagent import readback
from workers.hostagent.environment import Environment
from workers.hostagent.kexec import Kernel
from workers.hostagent.protocol import Request

BASE = 0x60C00000
NO_ADDRESS = (1 << 64) - 1
MIB = 1 << 20


def core(ranges: list[tuple[int, bytes]], nowhere: int = NO_ADDRESS) -> bytes:
    """As fs/proc/kcore.c makes it: a note first, then vmalloc (at no physical address), then RAM."""
    count = 2 + len(ranges)
    data = 64 + 56 * count
    table = [struct.pack("<IIQQQQQQ", 4, 0, data, 0, 0, 0, 0, 0)]
    table.append(struct.pack("<IIQQQQQQ", 1, 7, 1 << 45, 0xFFFFC90000000000, nowhere, 1 << 45, 1 << 45, 4096))
    for address, content in ranges:
        size = len(content)
        table.append(struct.pack("<IIQQQQQQ", 1, 7, data, 0, address, size, size, 4096))
        data += size
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + b"".join(table) + b"".join(content for _, content in ranges)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def segment(data: bytes = b"", **more: Any) -> dict[str, Any]:
    whole = {"index": 2, "address": BASE, "memsz": len(data), "bufsz": len(data), "file": None}
    return {**whole, **more}


def one(host: Host, memory: bytes | list[tuple[int, bytes]], **more: Any) -> dict[str, Any]:
    """The answer for one segment of a host whose RAM at BASE, or in the given ranges, is `memory`."""
    ranges = [(BASE, memory)] if isinstance(memory, bytes) else memory
    host.write("proc/kcore", core(ranges))
    answer = host.agent().ask("readback", segments=[segment(b"".join(data for _, data in ranges), **more)])
    assert answer["source"] == "kcore"
    (found,) = answer["segments"]
    return found


def test_a_segment_that_holds_its_file_and_zeros_behind_it(host: Host) -> None:
    setup, body = os.urandom(1536), os.urandom(2 * MIB + 12345)
    file = host.write("kernel", setup + body)
    memory = body + bytes(MIB)
    found = one(
        host, memory, bufsz=len(body), file=str(file), file_offset=1536, file_length=len(body),
        search=[body[MIB - 3 : MIB + 5].hex(), body[:1].hex(), os.urandom(16).hex()],
    )  # fmt: skip
    assert found == {
        "index": 2,
        "readable": True,
        "why_not": "",
        "bytes_read": len(memory),
        "body_compared": True,
        "body_differs": 0,
        "first_difference": None,
        "tail_nonzero": 0,
        "first_tail_nonzero": None,
        "found": [True, True, False],
    }


def test_what_differs_is_counted_and_its_first_place_named(host: Host) -> None:
    body = os.urandom(3 * MIB)
    file = host.write("initrd", body)
    memory = bytearray(body + bytes(8192))
    for place in (MIB + 7, MIB + 8, 2 * MIB, 3 * MIB - 1):
        memory[place] ^= 0x40
    memory[len(body) + 4095] = memory[len(body) + 5000] = 1
    found = one(host, bytes(memory), bufsz=len(body), file=str(file), file_length=len(body))
    assert (found["body_differs"], found["first_difference"]) == (4, MIB + 7)
    assert (found["tail_nonzero"], found["first_tail_nonzero"]) == (2, len(body) + 4095)


def test_a_file_of_another_length_is_a_difference(host: Host) -> None:
    file = host.write("initrd", b"abcdefgh")
    longer = one(host, b"abcdefgh\0\0\0\0", bufsz=10, file=str(file), file_length=8)
    assert (longer["body_differs"], longer["first_difference"]) == (2, 8)
    assert longer["why_not"] == "the segment holds 10 bytes, the file has 8 for it"
    shorter = one(host, b"abXdef\0\0", bufsz=6, file=str(file), file_length=8)
    assert (shorter["body_differs"], shorter["first_difference"], shorter["tail_nonzero"]) == (3, 2, 0)


def test_a_segment_without_a_file_is_read_and_not_compared(host: Host) -> None:
    found = one(host, b"purgatory" + bytes(100), bufsz=9, search=[b"gato".hex()])
    assert (found["readable"], found["body_compared"], found["why_not"]) == (True, False, "")
    assert (found["body_differs"], found["tail_nonzero"], found["found"]) == (None, 0, [True])


def test_a_file_that_cannot_be_compared_says_why(host: Host) -> None:
    gone = one(host, bytes(16), file=str(host.root / "gone"), file_length=16)
    assert (gone["readable"], gone["body_compared"], gone["tail_nonzero"]) == (True, False, 0)
    assert "gone: No such file" in gone["why_not"]
    short = one(host, bytes(16), file=str(host.write("short", bytes(15))), file_length=16)
    assert (short["readable"], short["body_compared"], short["body_differs"]) == (True, False, None)
    assert "fewer than 16 bytes" in short["why_not"]


def test_a_segment_over_two_headers_is_read_through_both(host: Host) -> None:
    data = os.urandom(20000)
    file = host.write("file", data)
    # Hotplugged memory has headers of its own, in any order.
    ranges = [(BASE + 12288, data[12288:]), (BASE, data[:12288])]
    found = one(host, ranges, file=str(file), file_length=len(data), search=[data[12280:12300].hex()])
    assert (found["body_compared"], found["body_differs"], found["found"]) == (True, 0, [True])


@pytest.mark.parametrize(
    ("ranges", "why", "read"),
    [
        ([(BASE, bytes(4096)), (BASE + 8192, bytes(4096))], f"holds physical address {BASE + 4096:#x}", 4096),
        ([(BASE + 1, bytes(8192))], f"holds physical address {BASE:#x}", 0),
    ],
)
def test_a_hole_is_unreadable(host: Host, ranges: list[tuple[int, bytes]], why: str, read: int) -> None:
    found = one(host, ranges, memsz=8192, bufsz=8192)
    assert (found["readable"], found["bytes_read"], found["tail_nonzero"]) == (False, read, None)
    assert why in found["why_not"]


def test_before_linux_4_11_kcore_names_no_physical_address(host: Host) -> None:
    host.write("proc/kcore", core([(0, bytes(4096))], nowhere=0))
    (found,) = host.agent().ask("readback", segments=[segment(bytes(64), address=512)])["segments"]
    assert (found["readable"], found["why_not"]) == (False, "kcore names no physical addresses")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "no 64-bit ELF core"),
        (b"\x7fELF\x01\x01".ljust(64, b"\0"), "no 64-bit ELF core"),
        (core([]), "names no physical addresses"),
        (core([])[:80], "names no physical addresses"),
        (core([(BASE, bytes(4096))])[:-100], "kcore ends at"),
    ],
)
def test_a_kcore_that_is_none_is_an_answer_with_its_reason(
    host: Host, content: bytes | None, why: str
) -> None:
    if content is not None:
        host.write("proc/kcore", content)
    agent = host.agent()
    answer = agent.ask("readback", segments=[segment(bytes(4096), search=["00"]), segment(b"x", index=3)])
    first, second = answer["segments"]
    assert (first["index"], first["readable"], second["index"]) == (2, False, 3)
    assert why in first["why_not"]
    assert agent.ask("status")["phase"] == "idle"


def test_lockdown_is_an_answer_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def locked_down(path: str, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("/kcore"):
            raise PermissionError(1, "Operation not permitted")
        return real(path, flags, mode)

    class Root(Kernel):
        def is_root(self) -> bool:
            return True

    monkeypatch.setattr(readback.os, "open", locked_down)
    request = Request({"op": "readback", "args": {"segments": [segment(b"x")]}})
    (found,) = readback.read(Environment(Root(), str(tmp_path)), request)["segments"]
    assert not found["readable"]
    assert found["why_not"].endswith("/proc/kcore: Operation not permitted")


def test_only_root_reads_memory(host: Host) -> None:
    host.behave(root=False)
    assert host.agent().refused("readback", segments=[segment(b"x")])["code"] == "not_root"


@pytest.mark.parametrize(
    "wrong",
    [
        "none",
        ["x"],
        [segment(b"x", address=-1)],
        [segment(b"x", address=True)],
        [segment(b"x", memsz=None)],
        [segment(b"x", bufsz=2)],
        [segment(b"x", address=1 << 63)],
        [segment(b"x", file=7)],
        [segment(b"x", file="relative")],
        [segment(b"x", file="/a\0b")],
        [segment(b"x", search="00")],
        [segment(b"x", search=["0g"])],
        [segment(b"x", search=[1])],
        [segment(b"x", search=[""])],
        [segment(b"x", search=["00" * 4097])],
        [segment(b"x")] * 17,
    ],
)
def test_what_is_no_segment_is_refused(host: Host, wrong: Any) -> None:
    host.write("proc/kcore", core([(BASE, b"x")]))
    assert host.agent().refused("readback", segments=wrong)["code"] == "bad_request"


def test_it_is_cut_off_at_its_deadline(host: Host) -> None:
    """A terabyte of RAM, nearly all of it a hole in the file: far more than the deadline lets be read."""
    size = 1 << 40
    made = bytearray(core([(BASE, b"")]))
    struct.pack_into("<QQ", made, 64 + 2 * 56 + 32, size, size)
    path = host.write("proc/kcore", bytes(made))
    os.truncate(path, size)
    agent = host.agent()
    whole = segment(memsz=size - MIB, bufsz=0)
    assert agent.refused("readback", deadline=0.5, segments=[whole])["code"] == "deadline"
    assert agent.ask("status")["phase"] == "idle"


class Direct:
    """The operation without a session: for many small examples."""

    def __init__(self, root: Path) -> None:
        class Root(Kernel):
            def is_root(self) -> bool:
                return True

        self.root = root
        (root / "proc").mkdir()
        self.env = Environment(Root(), str(root))

    def ask(self, memory: bytes, file: bytes, **more: Any) -> dict[str, Any]:
        (self.root / "proc/kcore").write_bytes(core([(BASE, memory)]))
        (self.root / "file").write_bytes(file)
        args = {"segments": [segment(memory, file=str(self.root / "file"), file_length=len(file), **more)]}
        (found,) = readback.read(self.env, Request({"op": "readback", "args": args}))["segments"]
        return dict(found)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Direct:
    return Direct(tmp_path_factory.mktemp("direct"))


@settings(deadline=None)
@given(data=st.data())
def test_any_memory_is_judged_as_a_plain_loop_would(direct: Direct, data: st.DataObject) -> None:
    small = st.binary(max_size=40).map(lambda raw: bytes(byte & 1 for byte in raw))
    memory, file = data.draw(small), data.draw(small)
    bufsz = data.draw(st.integers(0, len(memory)))
    wanted = data.draw(st.lists(small.filter(len), max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readback, "_CHUNK", data.draw(st.integers(1, 9)))
        found = direct.ask(memory, file, bufsz=bufsz, search=[text.hex() for text in wanted])
    common = min(bufsz, len(file))
    apart = [at for at in range(common) if memory[at] != file[at]]
    apart += range(common, max(bufsz, len(file)))
    tail = [at for at in range(bufsz, len(memory)) if memory[at]]
    count = min(len(apart), len(memory))
    assert (found["body_differs"], found["first_difference"]) == (count, min(apart, default=None))
    assert (found["tail_nonzero"], found["first_tail_nonzero"]) == (len(tail), min(tail, default=None))
    assert found["found"] == [text in memory for text in wanted]
    assert found["bytes_read"] == len(memory)


def test_it_needs_no_claim_and_changes_nothing(host: Host) -> None:
    host.write("proc/kcore", core([(BASE, b"x")]))
    agent: Agent = host.agent()
    before = sorted(host.root.rglob("*"))
    assert agent.ask("readback", segments=[])["segments"] == []
    assert sorted(host.root.rglob("*")) == before
