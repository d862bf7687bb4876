"""From files on the host to an image that may be jumped to: load, read back, audit, repair, load again.

Nothing here decides what a hazard is or how it is repaired (orchestrator.domain.audit and .repair); nothing
stays loaded when this raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.domain.audit import audit
from orchestrator.domain.errors import HostLost, HostRefused
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.hazards import Audit, AuditVerdict, Strength
from orchestrator.domain.ladder import Load, LoadPath
from orchestrator.domain.placement import EMPTY_COPY_LIST, Placement, free_pages, parse_placement, with_digest
from orchestrator.domain.playbook import Deadlines
from orchestrator.domain.policy import AuditMode, Cma, CmaPolicy
from orchestrator.domain.raw import mapping_of
from orchestrator.domain.rehearsal import Rehearsal, parse_rehearsal, readback_segments
from orchestrator.domain.repair import NoRepair, Repair, Try, plan_repair, signed_only
from workers.agent import LoadAnswer
from workers.deadline import Deadline
from workers.drive.bench import Bench
from workers.drive.repairfiles import repaired, spacer_files
from workers.drive.target import Target

STILL_LOADING_FACTOR = 5
"""A load past its deadline is waited for this many deadlines more: killing it leaks CMA until a reboot."""

DIED = "died"
"""State of a load whose process was killed: nobody knows how far it came."""

AFTER_LOAD, BEFORE_JUMP = "after the load", "before the jump"


class LoadRefused(Exception):
    """The kernel did not take the image; nothing is loaded. `answer` says what it said.

    `leaked`: pages of the CMA area that did not come back (kernel/kexec_file.c, Linux 7.3: a load that fails
    or is killed after its segments were placed never frees them).
    """

    def __init__(self, answer: LoadAnswer, leaked: int) -> None:
        super().__init__(
            said(answer) + (f"; {leaked} pages of CMA leaked until the next boot" if leaked else "")
        )
        self.answer = answer
        self.leaked = leaked


class RepairFailed(Exception):
    """A file of the repair could not be made or was not loaded; nothing is loaded."""


class AuditRefused(Exception):
    """The placement is hazardous and cannot be repaired; the image is unloaded."""

    def __init__(self, placed: Placed, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.placed = placed
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Placed:
    """One loaded image: where it lies, what was read back, what is to be said of it.

    `target`: the files as they were loaded, padding included.
    """

    answer: LoadAnswer
    placement: Placement
    rehearsal: Rehearsal | None
    audit: Audit
    repair: Repair | None
    target: Target
    before: Mapping[str, Any] | None = None  # the area's counters before the repair's first spacer

    def text(self, when: str) -> str:
        """The audit in one line, for those who watch."""
        found, how = self.audit, "" if self.repair is None else f", {self.repair.reason}"
        proof = " by read-back" if found.strength is Strength.READ_BACK else ""
        reason = f": {found.reason}" if found.reason else ""
        return f"{when}: {found.verdict}{proof}{how}{reason}"

    def as_dict(self, number: int, when: str = AFTER_LOAD) -> dict[str, Any]:
        """For the journal, as an AUDITED event."""
        return {
            "number": number,
            "when": when,
            "text": self.text(when),
            "audit": self.audit.as_dict(),
            "repair": repair_text(self.repair),
            "placement": asdict(self.placement),
            "rehearsal": None if self.rehearsal is None else asdict(self.rehearsal),
            "load": load_dict(self.answer),
        }


@dataclass
class Placer:
    """Everything that one image on one host is placed with. `hold`: how long it may stay loaded, seconds."""

    bench: Bench
    facts: HostFacts
    target: Target
    line: str
    step: Load
    cma: Cma
    deadlines: Deadlines
    hold: float
    record: Callable[[Mapping[str, Any]], None]

    def __post_init__(self) -> None:
        area = self.facts.default_area
        # Free pages of the area before anything of ours was loaded, and when nothing of ours was last.
        self._baseline = self._free = None if area is None else area.available_pages
        self._holds = False  # something of ours is loaded

    def place(self) -> Placed:
        """Load until the audit is content, repairing in between.

        Raises LoadRefused, AuditRefused, and HostError where the host has to be looked at.
        """
        placed = self._first_load()
        tries = [Try(repair=None, audit=placed.audit, placement=placed.placement)]
        signed = signed_only(self.facts)
        while True:
            self.record(placed.as_dict(len(tries)))
            if not (why := self.blocked(placed)):
                return placed
            plan = self._plan(tries, signed)
            if isinstance(plan, NoRepair):
                return self._refuse(placed, why, plan)
            self.bench.check_stop()
            self.unload()
            try:
                placed, spacers = self._load_repaired(plan)
            except RepairFailed as failed:
                self.bench.note(f"the repair ({plan.reason}) did not work: {failed}")
                if signed:
                    return self._refuse(placed, why, NoRepair(reason=f"it did not load: {failed}"))
                signed = True  # a kernel that takes no file of our making may still take the real one twice
                continue
            tries.append(Try(repair=plan, audit=placed.audit, placement=placed.placement, spacers=spacers))

    def _first_load(self) -> Placed:
        """The image as it is, beginning with nothing loaded.

        Where the witnesses of a load into CMA do not agree it is loaded once more: a driver may have taken or
        given back pages of the area meanwhile.
        """
        if self.facts.kexec_loaded:
            self.bench.note("an image that was loaded before is unloaded: it would lie in the image's way")
            self.unload()
            self._baseline = self._free
        placed = self._audited(self._load(self.target), self.target)
        if self.step.path is LoadPath.CMA and not placed.placement.known:
            self.bench.note(f"placement unknown, loading once more: {placed.placement.why_unknown}")
            self.unload()
            placed = self._audited(self._load(self.target), self.target)
        return placed

    def rehearse_again(self, placed: Placed, number: int) -> None:
        """Read the image back once more, right before the jump. Raises AuditRefused, HostError."""
        if placed.rehearsal is None:
            return
        again = self._audited(placed.answer, placed.target, placed.repair, placed.before)
        self.record(again.as_dict(number, BEFORE_JUMP))
        if (why := self.blocked(again)) and self.cma.audit is AuditMode.ENFORCE:
            self.unload()
            reason = f"changed between the load and the jump: {why}"
            raise AuditRefused(again, reason, "something writes into memory that the kernel believes its own")

    def blocked(self, placed: Placed) -> str:
        """Why this image is not to be jumped to; empty where it may be.

        Outside CMA nothing but a hazard that was found speaks against what kernels have always done.
        """
        found, placement = placed.audit, placed.placement
        if found.verdict is AuditVerdict.HAZARDOUS:
            return found.reason
        in_cma = self.step.path is LoadPath.CMA or placement.head == EMPTY_COPY_LIST
        if found.verdict is AuditVerdict.UNKNOWN and in_cma:
            return found.reason
        if self.cma.use is CmaPolicy.REQUIRE and placement.wholly_in_cma is not True:
            return f"only {placement.bytes_in_cma} of {placement.bytes_total} bytes lie in CMA"
        return ""

    def unload(self) -> int:
        """Unload; the number of the area's pages that are not free again: a leak, which is noted."""
        answer = self.bench.agent.unload(self.bench.claim(), Deadline.after(self.deadlines.load))
        self._holds = False
        self._free = free_pages(mapping_of(answer.get("cma_after")), self.facts)
        if self._baseline is None or self._free is None or self._free >= self._baseline:
            return 0
        gone = self._baseline - self._free
        self.bench.note(
            f"{gone} pages of the CMA area are not free again after the unload: leaked until the next boot, "
            f"or taken by somebody else",
            leaked_pages=gone,
        )
        return gone

    def _plan(self, tries: Sequence[Try], signed: bool) -> Repair | NoRepair:
        if self.step.path is not LoadPath.CMA:
            return NoRepair(reason="outside CMA there is nothing to move")
        if not self.cma.repair:
            return NoRepair(reason="repair is switched off", hint="`cma: {repair: true}`")
        sizes = self.target.kernel_size, self.target.initrd_size
        return plan_repair(tries, self.facts, self.target.header, *sizes, signed_only=signed)

    def _refuse(self, placed: Placed, why: str, no_repair: NoRepair) -> Placed:
        """Raise AuditRefused; where the audit is only to report, go on with what is loaded."""
        reason = f"{why}; no repair: {no_repair.reason}"
        if self.cma.audit is AuditMode.REPORT:
            self.bench.note(f"jumping all the same, the audit only reports: {reason}")
            if not self._holds:  # a repair that failed has left nothing loaded
                placed = self._audited(self._load(self.target), self.target)
            return placed
        self.unload()
        raise AuditRefused(placed, reason, no_repair.hint)

    # -- one load

    def _load_repaired(self, repair: Repair) -> tuple[Placed, tuple[Placement, ...]]:
        """Load the spacers, then the image as the repair wants it. Raises RepairFailed: nothing is loaded."""
        deadline = Deadline.after(self.deadlines.stage)
        spacers: list[Placement] = []
        # The image's pages are counted from where nothing of ours was loaded: a spacer's go in the same load.
        before: Mapping[str, Any] | None = None
        try:
            target = repaired(self.bench, self.target, repair, deadline)
            for spacer in repair.spacers:
                files = spacer_files(self.bench, self.target, spacer, deadline)
                if spacer.alone and spacers:
                    self.unload()
                    before = None
                answer = self._load(files)
                before = before or answer.cma_before
                spacers.append(self._parse(answer, files, before))
                self.bench.note("a spacer is loaded", log=list(answer.log), seconds=answer.seconds)
            placed = self._audited(self._load(target), target, repair, before)
        except LoadRefused as refused:
            raise RepairFailed(str(refused)) from refused
        except HostRefused as error:
            self.unload()
            raise RepairFailed(f"{error.step}: {error.message}") from error
        return placed, tuple(spacers)

    def _parse(
        self, answer: LoadAnswer, target: Target, before: Mapping[str, Any] | None = None
    ) -> Placement:
        return parse_placement(
            answer.log,
            self.facts,
            kernel_alignment=target.header.kernel_alignment,
            before=before or answer.cma_before,
            after=answer.cma_after,
            log_complete=answer.log_complete,
        )

    def _audited(
        self,
        answer: LoadAnswer,
        target: Target,
        repair: Repair | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> Placed:
        placement = self._parse(answer, target, before)
        rehearsal = self._rehearse(placement, target)
        if rehearsal is not None:
            placement = with_digest(placement, rehearsal.digest_stored)
        return Placed(
            answer=answer,
            placement=placement,
            rehearsal=rehearsal,
            audit=audit(
                placement,
                self.facts,
                target.header,
                rehearsal=rehearsal,
                cma_before=self._free,
                cma_baseline=self._baseline,
                target_release=target.release,
                no_cma=self.step.path is LoadPath.NO_CMA,
            ),
            repair=repair,
            target=target,
            before=before,
        )

    def _rehearse(self, placement: Placement, target: Target) -> Rehearsal | None:
        """Read what lies in CMA back, and compare; None where nothing of the image lies there."""
        segments = readback_segments(
            placement,
            target.header,
            target.kernel,
            target.kernel_size,
            target.initrd,
            target.initrd_size,
        )
        if not segments:
            return None
        try:
            raw = self.bench.agent.readback(segments, Deadline.after(self.deadlines.audit))
        except HostRefused as error:
            # Also a read that took too long: then the image was not compared, and the verdict says so.
            raw = {"why_not": f"{error.code}: {error.message}"}
        return parse_rehearsal(raw, placement)

    def _load(self, target: Target) -> LoadAnswer:
        """One kexec_file_load. Raises LoadRefused; HostLost where it never comes back."""
        try:
            answer = self._asked(target)
        except HostRefused as error:
            if error.code != "keeper_died":
                raise
            answer = LoadAnswer(DIED, 0.0, None, None, self.step.flags, (), False, {}, {}, None, {})
        if answer.state != "loaded":
            raise LoadRefused(answer, self.unload())
        self._holds = True
        return answer

    def _asked(self, target: Target) -> LoadAnswer:
        """The load's answer, waited for past its deadline: killing it would leak CMA."""
        agent, claim, wait = self.bench.agent, self.bench.claim, self.deadlines.load
        answer = agent.load(
            claim(),
            kernel=target.kernel,
            initrd=target.initrd,
            cmdline=self.line,
            flags=self.step.flags,
            expect={"kernel": target.kernel_sha256, "initrd": target.initrd_sha256},
            hold=self.hold,
            deadline=Deadline.after(wait),
        )
        patience = Deadline.after(wait * STILL_LOADING_FACTOR)
        while answer.state == "loading":
            self.bench.note(
                "the load is past its deadline and still running; waiting for it", seconds=answer.seconds
            )
            if patience.expired:
                raise HostLost(
                    self.bench.host,
                    "load",
                    f"kexec_file_load has not come back for {answer.seconds:.0f} s",
                    hint="the load must not be killed: it would leak CMA memory; look at the host's console",
                    code="still_loading",
                )
            answer = agent.load_wait(claim(), patience.sooner(wait))
        return answer


def load_dict(answer: LoadAnswer) -> dict[str, Any]:
    """A load's answer for the journal."""
    return {
        "state": answer.state,
        "errno": answer.errno,
        "errname": answer.errname,
        "seconds": answer.seconds,
        "flags": answer.flags,
        "log": list(answer.log),
        "log_complete": answer.log_complete,
        "cma_before": answer.cma_before,
        "cma_after": answer.cma_after,
    }


def said(answer: LoadAnswer) -> str:
    """What the kernel answered, and the last thing that it logged about the load."""
    if answer.state == DIED:
        return "the process inside kexec_file_load was killed"
    log = answer.log
    last = log[-1].partition(";")[2] or log[-1] if log else "the kernel logged nothing"
    return f"kexec_file_load: {answer.errname or answer.errno}: {last}"


def repair_text(repair: Repair | None) -> dict[str, Any] | None:
    """A repair for the journal."""
    if repair is None:
        return None
    return {
        "reason": repair.reason,
        "spacers": len(repair.spacers),
        "padded": [one.role for one in (repair.kernel, repair.initrd) if one is not None],
        "expected_kernel_address": repair.expected_kernel_address,
    }
