"""The agent on a stock kernel: loading, unloading, dying and jumping, seen in the kernel's own counters.

The steps follow one another on one VM, each leaving nothing loaded; the jump comes last. The VM runs the
small init, so nothing here needs systemd.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.lab import console
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.spec import LabOptions, parse_hosts
from tests.unit.hostagent_harness import Agent
from workers.agentbundle import LOADER, bundle

HOST = "agent1"
PATIENCE = 600.0
DEADLINE = 180.0  # of one request, in an emulated guest on a busy machine
PAGE = 4096
NO_CMA = 0x10
SEGMENT = re.compile(r"segment\[\d+\]: buf=0x\w+ bufsz=0x\w+ mem=0x(\w+) memsz=0x(\w+)")
PLACED = re.compile(r"segment\[(\d+)\]: buf=0x\w+ bufsz=0x(\w+) mem=0x(\w+) memsz=0x(\w+)")
ALIGNMENT = 2 << 20  # what a bzImage asks for (header offset 0x230)
HEAD = re.compile(r"kexec_file_load: type:0, start:0x\w+ head:0x(\w+)")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabFleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        lab = LabFleet.open("test-hostagent")
        try:
            options = LabOptions(target="7.3", cma="256M", memory=1536 << 20)
            lab.up(parse_hosts(f"{HOST}=7.2"), options, lambda event: print(event.text))
            yield lab
        finally:
            lab.down()


class Guest:
    """The VM, its sessions, and the two files that every load uses."""

    def __init__(self, fleet: LabFleet) -> None:
        self.fleet = fleet
        self.fence = 0
        self.sessions: list[Agent] = []
        self.paths: dict[str, str] = {}
        self.hashes: dict[str, str] = {}

    def session(self) -> Agent:
        argv = self.fleet.ssh_command(HOST, ["python3 -I -c " + shlex.quote(LOADER)])
        agent = Agent(argv, bundle(), PATIENCE)
        self.sessions.append(agent)
        return agent

    def claimed(self) -> tuple[Agent, dict[str, Any]]:
        """A session of its own that holds the claim; older sessions have lost theirs."""
        agent = self.session()
        self.fence += 1
        nonce = f"lab-{self.fence}"
        claim = {
            "journal": "lab", "rollout": "r1", "host": HOST, "attempt": self.fence, "nonce": nonce,
            "fence": self.fence, "boot_id": agent.hello["boot_id"],
        }  # fmt: skip
        agent.ask("claim", claim, DEADLINE)
        return agent, claim

    def stage(self, agent: Agent, claim: dict[str, Any], kind: str, file: str) -> None:
        data = Path(file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        begun = agent.ask("stage_begin", claim, DEADLINE, sha256=digest, size=len(data), name=kind)
        for offset in range(begun["offset"], len(data), 4 << 20):
            answer = agent.chunk(claim, digest, offset, data[offset : offset + (4 << 20)])
            assert answer["ok"], answer
        self.paths[kind] = agent.ask("stage_end", claim, DEADLINE, sha256=digest, size=len(data))["path"]
        self.hashes[kind] = digest

    def begin_load(self, agent: Agent, claim: dict[str, Any], deadline: float, flags: int) -> None:
        words = agent.ask("check", collector="identity")["data"]["cmdline"].split()
        words += ["retain_initrd", "kexec-fleet.nonce=" + claim["nonce"]]
        agent.begin(
            "load", claim, deadline, **self.paths, cmdline=" ".join(words), flags=flags, debug=True,
            hold=600.0, expect=self.hashes,
        )  # fmt: skip

    def load(self, agent: Agent, claim: dict[str, Any], flags: int = 0) -> dict[str, Any]:
        self.begin_load(agent, claim, DEADLINE, flags)
        answer = agent.read()
        assert answer["ok"] and answer["result"]["state"] == "loaded", answer
        return answer["result"]

    def readback(self, agent: Agent, placed: list[dict[str, int]], **files: str) -> list[dict[str, Any]]:
        """The four segments of a load as memory holds them, beside the staged files or others."""
        setup = (Path(self.fleet.target.image).read_bytes()[0x1F1] + 1) * 512
        kernel, initrd = ({**self.paths, **files}[kind] for kind in ("kernel", "initrd"))
        body = int(self.call(f"stat -c %s {kernel}")) - setup
        named = [
            {"search": [struct.pack("<QQ", placed[2]["address"], placed[2]["memsz"]).hex()]},
            {},
            {"file": kernel, "file_offset": setup, "file_length": body},
            {"file": initrd, "file_length": int(self.call(f"stat -c %s {initrd}"))},
        ]
        asked = [{"file": None, **one, **more} for one, more in zip(placed, named, strict=True)]
        answer = agent.ask("readback", None, DEADLINE, segments=asked)
        print(f"{sum(one['bytes_read'] for one in answer['segments'])} bytes in {answer['seconds']} s")
        return answer["segments"]

    def call(self, command: str) -> str:
        done = subprocess.run(
            self.fleet.ssh_command(HOST, [command]),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def available(self) -> int:
        return int(self.call("cat /sys/kernel/mm/cma/reserved/available_pages"))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (answer := condition()):
            if time.monotonic() > end:
                tail = "\n".join(console.tail(self.fleet.vm(HOST).console_path, 40))
                pytest.fail(f"never: {what}\n{tail}")
            time.sleep(0.5)
        return answer

    def nothing_is_loaded(self) -> bool:
        return self.call("cat /sys/kernel/kexec_loaded") == "0"


@pytest.fixture(scope="module")
def guest(fleet: LabFleet) -> Iterator[Guest]:
    made = Guest(fleet)
    agent, claim = made.claimed()
    made.stage(agent, claim, "kernel", fleet.target.image)
    made.stage(agent, claim, "initrd", fleet.target.initrd)
    agent.kill()
    try:
        yield made
    finally:
        for session in made.sessions:
            session.kill()


def reserved(counters: dict[str, Any]) -> dict[str, int]:
    return counters["areas"]["reserved"]


def placed(answer: dict[str, Any]) -> list[dict[str, int]]:
    """Purgatory, boot parameters, kernel, initrd: in that order on x86_64."""
    found = [match for line in answer["log"] if (match := PLACED.search(line))]
    return [
        {"index": int(one[1]), "bufsz": int(one[2], 16), "address": int(one[3], 16), "memsz": int(one[4], 16)}
        for one in found
    ]


def test_facts_of_a_stock_kernel(guest: Guest) -> None:
    agent = guest.session()
    facts = agent.ask("facts", None, DEADLINE)
    assert facts["release"].startswith("7.2.")
    assert (facts["flags"], facts["flag_errnos"]) == (
        {"no_cma": True, "debug": True},
        {"no_cma": 9, "debug": 9},
    )
    assert facts["kexec"]["loaded"] == 0
    assert facts["cma"]["total_kb"] == 256 << 10
    assert reserved(facts["cma"])["total_pages"] == (256 << 20) // PAGE
    assert any(line.startswith("cma: Reserved 256 MiB at 0x") for line in facts["cma"]["boot_log"])
    assert "heap alloc:on" in facts["init_on_alloc"]["boot_log"]
    assert re.fullmatch("[0-9a-f]{40}", facts["notes_build_id"])
    assert facts["failed_units"] is None
    assert facts["net"]["eth0"]["driver"] == "virtio_net"
    assert facts["block"]["vda"]["driver"] == "virtio_blk"
    log = agent.ask("check", None, DEADLINE, collector="log")["data"]
    assert (log["first_seq"], log["wrapped"], log["complete"]) == (0, False, True)
    assert agent.ask("check", None, DEADLINE, collector="initrd")["data"]["sha256"] is None


def test_a_load_is_seen_in_the_log_and_in_the_counters_and_unloading_gives_all_back(guest: Guest) -> None:
    agent, claim = guest.claimed()
    free = guest.available()
    answer = guest.load(agent, claim)
    segments = [SEGMENT.search(line) for line in answer["log"]]
    pages = sum(int(found[2], 16) // PAGE for found in segments if found)
    heads = [found[1] for line in answer["log"] if (found := HEAD.search(line))]
    assert answer["log_complete"]
    assert len([found for found in segments if found]) == 4
    assert heads == ["4"]  # an empty copy list: all of it lies in CMA
    before, after = reserved(answer["cma_before"]), reserved(answer["cma_after"])
    assert before["available_pages"] - after["available_pages"] == pages
    assert after["alloc_pages_success"] - before["alloc_pages_success"] == pages
    assert not guest.nothing_is_loaded()
    gone = agent.ask("unload", claim, DEADLINE)
    assert gone["kexec_loaded"] == 0
    assert reserved(gone["cma_after"])["available_pages"] == free
    assert guest.nothing_is_loaded()


def test_no_cma_takes_nothing_from_the_area(guest: Guest) -> None:
    agent, claim = guest.claimed()
    answer = guest.load(agent, claim, NO_CMA)
    assert answer["flags"] == NO_CMA | 0x8
    before, after = reserved(answer["cma_before"]), reserved(answer["cma_after"])
    assert before["alloc_pages_success"] == after["alloc_pages_success"]
    heads = [found[1] for line in answer["log"] if (found := HEAD.search(line))]
    assert heads != ["4"]
    agent.ask("unload", claim, DEADLINE)


def test_a_refusal_of_the_kernel_comes_with_its_errno_and_its_words(guest: Guest) -> None:
    agent, claim = guest.claimed()
    answer = agent.ask(
        "load", claim, DEADLINE, kernel=guest.paths["initrd"], cmdline="", debug=True, hold=60.0
    )
    assert (answer["state"], answer["errname"], answer["kexec_loaded"]) == ("refused", "ENOEXEC", 0)
    assert any("bzImage" in line for line in answer["log"])


@pytest.mark.parametrize("victim", ["session", "keeper"])
def test_killing_either_process_leaves_nothing_loaded(guest: Guest, victim: str) -> None:
    agent, claim = guest.claimed()
    free = guest.available()
    guest.load(agent, claim)
    pid = agent.hello["pid"] if victim == "session" else agent.ask("status")["keeper"]["pid"]
    guest.call(f"kill -9 {pid}")
    guest.until(guest.nothing_is_loaded, "the unload")
    assert guest.available() == free


def test_a_session_killed_inside_a_load_leaks_nothing(guest: Guest) -> None:
    agent, claim = guest.claimed()
    free = guest.available()
    guest.begin_load(agent, claim, DEADLINE, 0)
    other = guest.session()
    guest.until(lambda: other.ask("status")["phase"] in ("loading", "loaded"), "the load")
    guest.call(f"kill -9 {agent.hello['pid']}")
    guest.until(lambda: not other.ask("status")["keeper_alive"], "the keeper's end")
    assert guest.nothing_is_loaded()
    assert guest.available() == free


def test_memory_holds_what_was_loaded_and_the_digest_that_will_check_it(guest: Guest) -> None:
    agent, claim = guest.claimed()
    segments = placed(guest.load(agent, claim))
    read = guest.readback(agent, segments)
    assert [(one["readable"], one["bytes_read"], one["why_not"]) for one in read] == [
        (True, segment["memsz"], "") for segment in segments
    ]
    assert [one["body_compared"] for one in read] == [False, False, True, True]
    assert [one["body_differs"] for one in read[2:]] == [0, 0]
    # init_on_alloc is Debian's default: the pages came zeroed, and Linux does not clear the tails itself.
    assert [one["tail_nonzero"] for one in read] == [0, 0, 0, 0]
    assert read[0]["found"] == [True]  # Linux 7.2 stores a digest wherever the segments lie
    # Beside another file the same memory differs in nearly every byte: equality above was no accident.
    wrong = guest.readback(agent, segments, kernel=guest.paths["initrd"], initrd=guest.paths["kernel"])
    assert all(one["body_differs"] > one["bytes_read"] // 8 for one in wrong[2:])
    agent.ask("unload", claim, DEADLINE)


def test_a_spacer_derived_on_the_host_moves_the_next_image_on(guest: Guest) -> None:
    agent, claim = guest.claimed()
    free = guest.available()
    plain = placed(guest.load(agent, claim))
    agent.ask("unload", claim, DEADLINE)
    head = Path(guest.fleet.target.image).read_bytes()[:0x400]
    take = (head[0x1F1] + 1) * 512 + PAGE
    recipe = {
        "source": guest.paths["kernel"], "expect": guest.hashes["kernel"], "take": take, "size": take,
        "patches": [[0x260, struct.pack("<I", 1 << 20).hex()]], "name": "kernel",
    }  # fmt: skip
    spacer = agent.ask("derive", claim, DEADLINE, **recipe)
    tiny = {"kernel": spacer["path"], "initrd": None, "cmdline": "", "debug": True, "hold": 600.0,
            "expect": {"kernel": spacer["sha256"]}}  # fmt: skip
    loaded = agent.ask("load", claim, DEADLINE, **tiny)
    assert loaded["state"] == "loaded", loaded
    assert placed(loaded)[2]["address"] == plain[2]["address"]
    assert placed(loaded)[2]["memsz"] == 1 << 20
    moved = placed(guest.load(agent, claim))
    assert moved[2]["address"] == plain[2]["address"] + (1 << 20)
    assert (plain[2]["address"] % ALIGNMENT, moved[2]["address"] % ALIGNMENT) == (1 << 20, 0)
    assert [one["body_differs"] for one in guest.readback(agent, moved)[2:]] == [0, 0]
    agent.ask("unload", claim, DEADLINE)
    assert guest.available() == free
    # A load that the kernel refuses takes the spacer with it.
    agent.ask("load", claim, DEADLINE, **tiny)
    refused = agent.ask("load", claim, DEADLINE, **{**tiny, "kernel": guest.paths["initrd"], "expect": {}})
    assert (refused["state"], refused["errname"], refused["kexec_loaded"]) == ("refused", "ENOEXEC", 0)
    assert guest.available() == free


def test_a_jump_that_the_kernel_refuses_is_told_with_its_errno(guest: Guest) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim)
    armed = agent.ask("arm", claim, DEADLINE, lead=20.0, span=0.5)
    # Somebody takes the image away: there is nothing left to jump into.
    guest.call(
        "python3 -c 'import ctypes; n = ctypes.c_long(-1); z = ctypes.c_long(0);"
        " ctypes.CDLL(None).syscall(ctypes.c_long(320), n, n, z, None, ctypes.c_long(1))'"
    )
    assert agent.ask("go", claim, DEADLINE, appointment=armed["appointment"])["going"] is True
    status = guest.until(
        lambda: (found := agent.ask("status"))["phase"] == "jump_refused" and found, "the refusal"
    )
    assert status["note"]["errname"] == "EINVAL"
    assert status["boot_id"] == claim["boot_id"]
    later, _ = guest.claimed()
    assert later.ask("status")["phase"] == "claimed"


def test_the_jump_comes_at_its_appointment_and_the_counter_bridges_it(guest: Guest) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, NO_CMA)
    armed = agent.ask("arm", claim, DEADLINE, lead=3.0, span=2.0)
    assert (armed["counter"], armed["lead_s"]) == ("tsc", 3.0)
    assert 0 < armed["rate_rel_error"] < 1e-3
    assert agent.ask("go", claim, DEADLINE, appointment=armed["appointment"]) == {"going": True}
    agent.kill()  # the jump needs no session any more
    vm = guest.fleet.vm(HOST)
    guest.until(lambda: (vm.ask_service() or claim["boot_id"]) != claim["boot_id"], "another boot")
    back = guest.session()
    identity = back.ask("check", None, DEADLINE, collector="identity")["data"]
    assert f"kexec-fleet.nonce={claim['nonce']}" in identity["cmdline"].split()
    assert identity["release"] == guest.fleet.target.release
    assert identity["boot_id"] not in ("", claim["boot_id"])
    initrd = back.ask("check", None, DEADLINE, collector="initrd")["data"]
    assert initrd["sha256"] == guest.hashes["initrd"]
    # The new kernel's clock began at counter value `zero`: some time after the appointment, before we came.
    clock = back.ask("clock", None, DEADLINE, span=2.0)
    (first, at), (last, then) = clock["pairs"][0], clock["pairs"][-1]
    rate = (last - first) / (then - at)
    assert rate * 1e9 == pytest.approx(armed["rate_hz"], rel=0.01)
    zero = first - at * rate
    hot = (zero - armed["appointment"]) / armed["rate_hz"]
    print(f"hot phase {hot:.3f} s without CMA, at {armed['rate_hz'] / 1e6:.3f} MHz")
    assert 0.05 < hot < 300.0
    # On the new boot the old claim drives nothing.
    assert back.refused("claim", claim)["code"] == "wrong_boot"
    status = back.ask("status")
    assert (status["phase"], status["kexec_loaded"], status["fences"]) == ("idle", 0, {})
