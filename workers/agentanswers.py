"""What the host agent is asked with and what it answers, as values (docs/agent-protocol.md has the wire's
shapes).

Each `parse` takes the `result` object of an answer and raises KeyError, TypeError or ValueError where it is
not the promised shape; `workers.agent` turns those into one error. Keys beyond the promised ones are kept
in `raw` where there is one, and ignored elsewhere, so that an agent may say more than this side knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks for a change and what the journal has bound it to; the host refuses a lower fence or another
    boot.
    """

    journal: str
    rollout: str
    host: str
    attempt: int
    nonce: str
    fence: int
    boot_id: str

    @classmethod
    def parse(cls, raw: Raw) -> Claim:
        return cls(
            journal=str(raw["journal"]),
            rollout=str(raw["rollout"]),
            host=str(raw["host"]),
            attempt=int(raw["attempt"]),
            nonce=str(raw["nonce"]),
            fence=int(raw["fence"]),
            boot_id=str(raw["boot_id"]),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Hello:
    """The agent's first line. `agent` is the SHA-256 of its source, `python` the host's version."""

    agent: str
    protocol: int
    python: str
    boot_id: str
    pid: int
    uid: int

    @classmethod
    def parse(cls, raw: Raw) -> Hello:
        return cls(
            agent=str(raw["agent"]),
            protocol=int(raw["protocol"]),
            python=str(raw["python"]),
            boot_id=str(raw["boot_id"]),
            pid=int(raw["pid"]),
            uid=int(raw["uid"]),
        )


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Whether the host is going down, and how the agent knows."""

    under_way: bool
    why: str

    @classmethod
    def parse(cls, raw: Raw) -> Shutdown:
        return cls(bool(raw["under_way"]), str(raw.get("why") or ""))


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Who holds the host and how far they are. `kexec_loaded` None: the kernel has no kexec.

    `jump_errno` is the errno with which reboot(2) came back from a jump, None where none did.
    """

    boot_id: str
    phase: str
    kexec_loaded: int | None
    claim: Claim | None
    keeper_alive: bool
    shutdown: Shutdown
    fences: Mapping[str, int]
    jump_errno: int | None
    raw: Raw = field(repr=False)

    @classmethod
    def parse(cls, raw: Raw) -> AgentStatus:
        return cls(
            boot_id=str(raw["boot_id"]),
            phase=str(raw["phase"]),
            kexec_loaded=_optional_int(raw["kexec_loaded"]),
            claim=None if raw["claim"] is None else Claim.parse(raw["claim"]),
            keeper_alive=bool(raw["keeper_alive"]),
            shutdown=Shutdown.parse(raw["shutdown"]),
            fences={str(journal): int(fence) for journal, fence in raw["fences"].items()},
            jump_errno=_jump_errno(raw),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the last shutdown hook wrote: the counter, or None and the reason."""

    counter: int | None
    why_not: str


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """`jump` "dead": an earlier jump can no longer happen; "none": there was none. Only this answer may say
    so.

    `before` is what the agent found of an earlier claim ({"phase", "note", "nonce"}), None where nothing.
    """

    jump: str
    unloaded: bool
    shutdown: Shutdown
    before: Raw | None

    @property
    def shutdown_under_way(self) -> bool:
        return self.shutdown.under_way

    @classmethod
    def parse(cls, raw: Raw) -> ClaimAnswer:
        jump = str(raw["jump"])
        if jump not in ("none", "dead"):
            raise ValueError(f"jump is {jump!r}")
        return cls(jump, bool(raw["unloaded"]), Shutdown.parse(raw["shutdown"]), raw.get("before"))


@dataclass(frozen=True, slots=True)
class FileMatch:
    """A file on the host: size in bytes, mtime in seconds since 1970."""

    path: str
    size: int
    mtime: float

    @classmethod
    def parse(cls, raw: Raw) -> FileMatch:
        return cls(str(raw["path"]), int(raw["size"]), float(raw["mtime"]))


@dataclass(frozen=True, slots=True)
class Digest:
    """A file's SHA-256 (hex), size in bytes, and its first 131072 bytes in base64."""

    sha256: str
    size: int
    head: str

    @classmethod
    def parse(cls, raw: Raw) -> Digest:
        return cls(str(raw["sha256"]), int(raw["size"]), str(raw["head"]))


@dataclass(frozen=True, slots=True)
class StageResult:
    """A staged file's path on the host. `skipped`: it was there whole, nothing was sent."""

    path: str
    skipped: bool
    resumed_from: int
    bytes_sent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """`state` is "loaded", "refused" (errno says why) or "loading" (past its deadline: ask `load_wait`).

    While it is "loading", only `seconds` says anything. `log` holds raw kernel log records
    "prio,seq,usec,flags;text".
    """

    state: str
    seconds: float
    errno: int | None
    errname: str | None
    flags: int
    log: tuple[str, ...]
    log_complete: bool
    cma_before: Raw
    cma_after: Raw
    kexec_loaded: int | None
    raw: Raw = field(repr=False)

    @classmethod
    def parse(cls, raw: Raw) -> LoadAnswer:
        state = str(raw["state"])
        if state not in ("loaded", "refused", "loading"):
            raise ValueError(f"state is {state!r}")
        if state != "loading":
            _require(raw, "errno", "log", "log_complete", "cma_before", "cma_after", "kexec_loaded")
        return cls(
            state=state,
            seconds=float(raw["seconds"]),
            errno=_optional_int(raw.get("errno")),
            errname=None if raw.get("errname") is None else str(raw["errname"]),
            flags=int(raw.get("flags", 0)),
            log=tuple(str(line) for line in raw.get("log", ())),
            log_complete=bool(raw.get("log_complete", False)),
            cma_before=raw.get("cma_before") or {},
            cma_after=raw.get("cma_after") or {},
            kexec_loaded=_optional_int(raw.get("kexec_loaded")),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class ArmAnswer:
    """The appointment, in ticks of `counter` (ns of CLOCK_MONOTONIC_RAW where that is None).

    `raw` is the whole answer with the clock pairs and rates: what the journal keeps to compute the hot
    phase from.
    """

    method: str
    appointment: int
    counter: str | None
    lead_s: float | None
    raw: Raw = field(repr=False)

    @classmethod
    def parse(cls, raw: Raw) -> ArmAnswer:
        lead = raw.get("lead_s")
        return cls(
            method=str(raw["method"]),
            appointment=int(raw["appointment"]),
            counter=None if raw["counter"] is None else str(raw["counter"]),
            lead_s=None if lead is None else float(lead),
            raw=raw,
        )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _jump_errno(raw: Raw) -> int | None:
    """The agent records how a jump ended as the claim's note, in the phase "jump_refused"."""
    note = raw.get("note")
    return _optional_int(note.get("errno")) if isinstance(note, Mapping) else None


def _require(raw: Raw, *names: str) -> None:
    missing = [name for name in names if name not in raw]
    if missing:
        raise KeyError(", ".join(missing))
