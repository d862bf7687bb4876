"""The last fence: who may change this host, kept in /run/kexec-fleet and guarded by one flock.

    fence.lock    flock: held by whoever checks or changes the files here, and by the keeper from its last
    check
                  to reboot(2)
    fence.json    {"boot_id", "fences": {journal: highest fence seen}, "told": {journal: [nonces told to
    jump]}} claim.json    {"claim", "session", "keeper", "phase", "note"}: the last claim that was granted
    keeper.lock   flock: held by the keeper as long as it lives

All of it is about one boot; what another boot left behind counts as absent.
"""

import contextlib
import fcntl
import os
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from workers.hostagent import files, processes
from workers.hostagent.deadline import Deadline
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.processes import Identity

# Phases in which a keeper holds or may hold an image.
KEEPER_PHASES = ("loading", "loaded", "armed", "told", "systemd")
_POLL = 0.02


class Claim(NamedTuple):
    """Who asks: the journal that decides, and what it has bound this attempt to."""

    journal: str
    rollout: str
    host: str
    attempt: int
    nonce: str
    fence: int
    boot_id: str


def parse_claim(raw: Any) -> Claim:
    """The "claim" object of a request. Raises AgentError `bad_request`."""
    if not isinstance(raw, dict):
        raise AgentError("bad_request", "a changing request carries a claim")
    for name in ("journal", "rollout", "host", "nonce", "boot_id"):
        if not isinstance(raw.get(name), str):
            raise AgentError("bad_request", "the claim has no text {!r}".format(name))
    for name in ("attempt", "fence"):
        if isinstance(raw.get(name), bool) or not isinstance(raw.get(name), int):
            raise AgentError("bad_request", "the claim has no whole number {!r}".format(name))
    return Claim(*[raw[name] for name in Claim._fields])


class Record(NamedTuple):
    """claim.json. `note` says how a jump ended ({"errno", "errname", "why"}); empty before."""

    claim: Claim
    session: Identity
    keeper: Optional[Identity]
    phase: str
    note: Dict[str, Any]


class ClaimStore(object):
    """Reads need no lock (files are replaced whole); every write happens inside `locked`."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._fence_file = env.run_dir + "/fence.json"
        self._claim_file = env.run_dir + "/claim.json"
        self._keeper_lock = env.run_dir + "/keeper.lock"

    # -- the lock -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, deadline: Deadline) -> Iterator[None]:
        """Holds fence.lock. Raises AgentError `busy` when it is not free by the deadline, `not_root`."""
        descriptor = self._open_lock("fence.lock")
        try:
            while not _try_lock(descriptor):
                if deadline.passed():
                    raise self.busy("the host's fence is held by a keeper on its way out")
                time.sleep(_POLL)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        if not self._env.kernel.is_root():
            raise AgentError(
                "not_root",
                "the agent runs as user {}, not as root".format(os.getuid()),
                "log in as root, or give the host a sudo that needs no password",
            )
        os.makedirs(self._env.run_dir, 0o700, exist_ok=True)
        os.chmod(self._env.run_dir, 0o700)
        return os.open(self._env.run_dir + "/" + name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def keeper_alive(self) -> bool:
        """Whether a keeper lives: one that does holds keeper.lock."""
        try:
            descriptor = os.open(self._keeper_lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def take_keeper_lock(self) -> Optional[int]:
        """The descriptor that holds keeper.lock until it is closed, or None where another keeper lives."""
        descriptor = self._open_lock("keeper.lock")
        # A reader that looks whether a keeper lives holds it for an instant: try for a moment.
        for _ in range(50):
            if _try_lock(descriptor):
                return descriptor
            time.sleep(_POLL)
        os.close(descriptor)
        return None

    # -- what is remembered -------------------------------------------------------------------------------

    def _fence_data(self) -> Dict[str, Any]:
        data = files.read_json(self._fence_file)
        if not isinstance(data, dict) or data.get("boot_id") != self._env.boot_id():
            return {"boot_id": self._env.boot_id(), "fences": {}, "told": {}}
        return data

    def fences(self) -> Dict[str, int]:
        fences: Dict[str, int] = self._fence_data()["fences"]
        return fences

    def raise_fence(self, claim: Claim) -> None:
        data = self._fence_data()
        data["fences"][claim.journal] = max(claim.fence, data["fences"].get(claim.journal, claim.fence))
        files.write_json(self._fence_file, data)

    def was_told(self, claim: Claim) -> bool:
        """Whether a jump with this claim's nonce was told on this boot: then never again."""
        told: List[str] = self._fence_data()["told"].get(claim.journal, [])
        return claim.nonce in told

    def remember_told(self, claim: Claim) -> None:
        data = self._fence_data()
        data["told"].setdefault(claim.journal, []).append(claim.nonce)
        files.write_json(self._fence_file, data)

    def record(self) -> Optional[Record]:
        """The last claim granted on this boot, or None."""
        raw = files.read_json(self._claim_file)
        if not isinstance(raw, dict):
            return None
        try:
            claim = parse_claim(raw.get("claim"))
        except AgentError:
            return None
        session = processes.from_json(raw.get("session"))
        if session is None or claim.boot_id != self._env.boot_id():
            return None
        keeper = processes.from_json(raw.get("keeper"))
        return Record(claim, session, keeper, str(raw.get("phase")), dict(raw.get("note") or {}))

    def write(self, record: Record) -> None:
        files.write_json(
            self._claim_file,
            {
                "claim": dict(record.claim._asdict()),
                "session": processes.to_json(record.session),
                "keeper": processes.to_json(record.keeper),
                "phase": record.phase,
                "note": record.note,
            },
        )

    def forget(self) -> None:
        files.unlink_quietly(self._claim_file)

    # -- judging ------------------------------------------------------------------------------------------

    def session_alive(self, record: Record) -> bool:
        return processes.alive(self._env.pids, record.session)

    def live(self, record: Record) -> bool:
        """Whether a process still stands behind the claim."""
        return self.session_alive(record) or processes.alive(self._env.pids, record.keeper)

    def phase(self, record: Optional[Record]) -> str:
        """The phase as it is now: a phase whose process is gone has gone with it, except `systemd`, where the
        keeper may be stopped with the rest of the system while the jump is still to come."""
        if record is None:
            return "idle"
        keeper = self.keeper_alive()
        if record.phase in KEEPER_PHASES and record.phase != "systemd" and not keeper:
            return "claimed" if self.session_alive(record) else "idle"
        if record.phase == "claimed" and not self.session_alive(record):
            return "idle"
        return record.phase

    def busy(self, message: str) -> AgentError:
        record = self.record()
        phase = self.phase(record)
        return AgentError(
            "busy",
            "{} (phase {})".format(message, phase),
            "wait and ask again: a load or a jump that was told is never interrupted",
            detail={"phase": phase, "claim": dict(record.claim._asdict()) if record else None},
        )

    def check_fence(self, claim: Claim) -> None:
        """Raises `wrong_boot`, `claimed`, `stale_fence`. Call it inside `locked`."""
        boot_id = self._env.boot_id()
        if claim.boot_id != boot_id:
            raise AgentError(
                "wrong_boot",
                "the attempt is bound to boot {}, this is boot {}".format(claim.boot_id, boot_id),
                "judge the host as it is now: on another boot nothing is driven any further",
                detail={"boot_id": boot_id},
            )
        record = self.record()
        if record is not None and record.claim.journal != claim.journal and self.live(record):
            raise AgentError(
                "claimed",
                "journal {} has a live claim on this host".format(record.claim.journal),
                "let that rollout end, or stop its worker",
                detail={"claim": dict(record.claim._asdict()), "phase": self.phase(record)},
            )
        highest = self.fences().get(claim.journal, claim.fence)
        if highest > claim.fence:
            raise AgentError(
                "stale_fence",
                "fence {} has been overtaken by fence {}".format(claim.fence, highest),
                "stop driving this host: another worker holds its lease",
                detail={"fence": highest},
            )

    def require(self, claim: Claim, session: Identity) -> Record:
        """The record, when this session holds this very claim. Raises as check_fence does, `not_claimed`."""
        self.check_fence(claim)
        record = self.record()
        if record is None or record.claim != claim or record.session != session:
            raise AgentError(
                "not_claimed",
                "this session does not hold the claim it names",
                "send `claim` first, in the same session",
                detail={"claim": dict(record.claim._asdict()) if record else None},
            )
        return record


def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
