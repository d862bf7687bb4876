"""A host as the drive sees it, for outcomes that no lab VM can be made to show on demand.

Stands in for SSH connection and agent client at once; tests/lab drives the real ones through the same drive.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.errors import HostLost, HostRefused, HostUnreachable
from tests.support import fakeplacement
from tests.support.images import RELEASE, bzimage
from workers.agentanswers import (
    AgentStatus,
    ArmAnswer,
    Claim,
    ClaimAnswer,
    Digest,
    Hello,
    LoadAnswer,
    Shutdown,
)
from workers.agentanswers import FileMatch as Match
from workers.agentimages import Derived
from workers.deadline import Deadline
from workers.outage import OutageRecord
from workers.power.base import PowerResult

TARGET = RELEASE
OLD = "6.12.0-old"
IMAGE_HEAD = base64.b64encode(bzimage()).decode()
STEADY = Shutdown(under_way=False, why="")


@dataclass
class FakeHost:
    """What the host is, and what it does when told to jump or load."""

    name: str = "web1"
    on_go: Callable[[FakeHost], None] = lambda host: host.kexec()
    loads: list[LoadAnswer | HostRefused] = field(default_factory=list)
    refuse_claim: list[HostRefused] = field(default_factory=list)
    too_late: int = 0
    reachable: bool = True
    knows_no_cma: bool = True
    release: str = OLD
    cmdline: str = "root=/dev/vda"
    boot: int = 1
    loaded: str | None = None
    jump_errno: int | None = None
    jumps: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    leaked_pages: int = 0  # what an unload does not give back
    misaligned: bool = False  # what a load into an empty CMA area is
    spacer_refused: bool = False
    readbacks: list[dict[str, Any]] = field(default_factory=list)  # what memory holds instead of the image
    derived: list[dict[str, Any]] = field(default_factory=list)
    default: str = "old"
    guards: list[str] = field(default_factory=list)
    watchdogs: list[float | None] = field(default_factory=list)
    powered: list[str] = field(default_factory=list)
    answers_network: bool = False
    on_cycle: Callable[[FakeHost], None] = lambda host: host.firmware_boot()
    breaks_at: dict[str, HostLost | HostRefused] = field(default_factory=dict)
    wrong_after_boot: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # of derived files, bytes
    holds_spacer: bool = False

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    # -- what may happen to it

    def kexec(self) -> None:
        assert self.loaded is not None
        self.jumps.append(self.loaded)
        self.boot += 1
        self.cmdline, self.release, self.loaded = self.loaded, TARGET, None

    def firmware_boot(self) -> None:
        self.boot += 1
        self.cmdline, self.release, self.loaded = "root=/dev/vda", OLD, None

    def stay(self) -> None:
        self.loaded = None

    def vanish(self) -> None:
        self.reachable = False

    # -- Connector and Connection

    def connect(self, host: Any, deadline: Deadline) -> FakeHost:
        if not self.reachable:
            raise HostUnreachable(self.name, "connect", "no answer", hint="plug it in")
        return self

    def close(self) -> None:
        """A session that ends before go unloads."""
        self.loaded = None

    # -- AgentClient

    @property
    def hello(self) -> Hello:
        return Hello("sha", 1, "3.11", self.boot_id, 1, 0)

    def _step(self, name: str) -> None:
        if (error := self.breaks_at.pop(name, None)) is not None:
            raise error

    def facts(self, deadline: Deadline) -> dict[str, Any]:
        self._step("facts")
        return {
            "boot_id": self.boot_id,
            "release": self.release,
            "machine": "x86_64",
            "cmdline": self.cmdline,
            "flags": {"no_cma": self.knows_no_cma, "debug": True},
            "cma": {**fakeplacement.counters(0), "boot_log": [fakeplacement.RESERVED_LINE]},
            "page_size": 4096,
        }

    def check(self, collector: str, deadline: Deadline) -> dict[str, Any]:
        return {"release": "wrong" if self.wrong_after_boot and self.boot > 1 else self.release,
                "boot_id": self.boot_id, "cmdline": self.cmdline}  # fmt: skip

    def clock(self, deadline: Deadline) -> dict[str, Any]:
        return {"counter": None, "pairs": []}

    def claim(self, claim: Claim, deadline: Deadline) -> ClaimAnswer:
        if self.refuse_claim:
            raise self.refuse_claim.pop(0)
        self.claims.append(claim)
        return ClaimAnswer("dead", self.loaded is not None, STEADY, None)

    def resolve(self, pattern: str, deadline: Deadline) -> tuple[Match, ...]:
        self._step("resolve")
        return (Match(pattern, 1, 0.0),)

    def digest(self, path: str, deadline: Deadline) -> Digest:
        return Digest("0" * 64, 1 << 20, IMAGE_HEAD)

    def load(self, claim: Claim, **words: Any) -> LoadAnswer:
        self._step("load")
        assert not words["flags"] & ~0x18, "as the agent does: DEBUG and NO_CMA, nothing else"
        self.flags.append(words["flags"])
        answer = self.loads.pop(0) if self.loads else self._placed(words)
        if isinstance(answer, HostRefused):
            raise answer
        self.loaded = words["cmdline"] if answer.state == "loaded" else None
        self.holds_spacer = self.loaded is not None and words["initrd"] is None
        return answer

    def _placed(self, words: dict[str, Any]) -> LoadAnswer | HostRefused:
        """As the kernel places: at an odd MiB where the area is empty, behind a spacer at an even one."""
        spacer = words["initrd"] is None
        if spacer and self.spacer_refused:
            return load_answer("refused", 12)
        odd = self.misaligned and not self.holds_spacer
        at = fakeplacement.AREA + (1 if odd or spacer else 2) * fakeplacement.MIB
        if words["flags"] & fakeplacement.NO_CMA:
            at = 0x7C200000
        size = self.sizes.get(words["kernel"], 1 << 20)
        initrd = 0 if spacer else self.sizes.get(words["initrd"], 1 << 20)
        memsz = fakeplacement.MIB if spacer else fakeplacement.INIT_SIZE
        return fakeplacement.loaded(words["flags"], at, size, initrd, memsz)

    def readback(self, segments: Any, deadline: Deadline) -> dict[str, Any]:
        self._step("readback")
        changes = self.readbacks.pop(0) if self.readbacks else {}
        return fakeplacement.read_back(segments, **changes)

    def derive(self, claim: Claim, **words: Any) -> Derived:
        self._step("derive")
        self.derived.append(words)
        path = f"/derived/{len(self.derived)}"
        self.sizes[path] = words["size"]
        return Derived(path, f"{len(self.derived):064d}", words["size"], 0.1)

    def evidence(self, nonce: str, deadline: Deadline) -> dict[str, Any]:
        return {"log": ["6,1,1,-;the old kernel's last words"], "pstore": [], "why_not": ""}

    def guard_install(self, claim: Claim, seconds: float, deadline: Deadline) -> dict[str, Any]:
        self.guards.append(f"install {claim.nonce} {seconds:g}")
        return {"installed": True, "detail": ""}

    def guard_confirm(self, claim: Claim, deadline: Deadline) -> dict[str, Any]:
        self.guards.append(f"confirm {claim.nonce}")
        return {"removed": []}

    def boot_default_set(self, claim: Claim, **words: Any) -> dict[str, Any]:
        self._step("boot_default_set")
        before, self.default = self.default, words["release"]
        return {"method": words["method"], "before": before, "after": self.default, "detail": ""}

    # -- power

    def cycle(self, deadline: Deadline) -> PowerResult:
        self.powered.append("cycle")
        if (error := self.breaks_at.pop("power", None)) is not None:
            raise error
        self.on_cycle(self)
        self.reachable = True
        return PowerResult("fake", "reset")

    def status(self, deadline: Deadline) -> Any:
        return AgentStatus(self.boot_id, "idle", 0, None, False, STEADY, {}, self.jump_errno, {})

    def load_wait(self, claim: Claim, deadline: Deadline) -> LoadAnswer:
        return self.loads.pop(0)  # type: ignore[return-value]

    def unload(self, claim: Claim, deadline: Deadline) -> dict[str, Any]:
        self.loaded = None
        self.holds_spacer = False
        return {"cma_after": fakeplacement.counters(self.leaked_pages)}

    def arm(
        self, claim: Claim, method: str, lead: float, deadline: Deadline, *, watchdog: float | None = None
    ) -> ArmAnswer:
        self._step("arm")
        self.watchdogs.append(watchdog)
        return ArmAnswer("direct", 100, None, lead, {"method": "direct", "counter": None, "appointment": 100})

    def go(self, claim: Claim, appointment: int, deadline: Deadline) -> dict[str, Any]:
        if self.too_late:
            self.too_late -= 1
            raise HostRefused(self.name, "go", "too late", code="too_late")
        self._step("go")
        self.on_go(self)
        return {"going": True}


class FakeProber:
    """Says at once that a login is worth trying, and measures nothing."""

    def __init__(self, host: Any) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def mark_jump(self, *, stays_s: float = 0.0) -> None:
        self.calls.append("mark")

    def wait_first_answer(self, deadline: Deadline) -> bool:
        return True

    def close(self) -> None:
        self.calls.append("close")

    def result(self) -> OutageRecord:
        return OutageRecord(
            source="fake",
            interval_s=1.0,
            last_success_before=None,
            first_failure=None,
            first_success_after=None,
            outage_s=None,
            resolution_s=None,
            probes_sent=0,
            answers=0,
            flaps=0,
            late_ticks=0,
            not_measured_reason="a fake host has no network",
        )


def load_answer(state: str, errno: int | None = None) -> LoadAnswer:
    return LoadAnswer(state, 1.0, errno, None, 0, (), True, {}, {}, int(state == "loaded"), {})


def nonces() -> Callable[[], str]:
    counter = itertools.count(1)
    return lambda: f"nonce{next(counter)}"
