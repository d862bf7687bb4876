"""`host doctor` on one host: load a kernel, audit it, repair it, unload it, and say what was seen. No jump.

The loop is the rollouts' own (workers.drive.place). What was loaded is unloaded on every exit: here, and by
the host's keeper where the session ends before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.domain.advice import advice
from orchestrator.domain.bootimage import BootHeader, Images
from orchestrator.domain.errors import (
    HostError,
    HostRefused,
    TransportError,
)
from orchestrator.domain.facts import HostFacts, parse_facts
from orchestrator.domain.inventory import Host
from orchestrator.domain.ladder import GiveUp, Load, LoadPath, PastAttempt, next_step
from orchestrator.domain.placement import Placement, Role, free_pages
from orchestrator.domain.playbook import (
    AfterFailure,
    CommandLine,
    Deadlines,
    Kernel,
    Playbook,
)
from orchestrator.domain.policy import AuditMode, Cma
from orchestrator.domain.raw import mapping_of
from orchestrator.domain.repair import signed_only
from orchestrator.domain.rollout import Outcome
from orchestrator.domain.values import Value
from workers.agent import AgentClient, AgentStatus, Claim
from workers.agentbundle import AgentBundle
from workers.connection.base import Connector
from workers.deadline import Deadline
from workers.diagnosis import Diagnosis, Health, Left, ability
from workers.drive.bench import Bench
from workers.drive.context import Stopped
from workers.drive.place import AuditRefused, LoadRefused, Placer, said
from workers.drive.preload import command_line, never_load
from workers.drive.reach import Session
from workers.drive.target import Target, bring
from workers.hostlook import check_power, own_kernel, watchdog_of
from workers.power.base import PowerDriver


class Question(Value):
    """What every host is asked. `kernel` None: the host's running one, by its files under /boot."""

    kernel: Kernel | None = None
    images: Images = Images()
    release: str | None = None
    cmdline: CommandLine = CommandLine()
    cma: Cma = Cma()
    attempts: int = 3
    after_failure: AfterFailure = AfterFailure.RETRY
    deadlines: Deadlines = Deadlines()
    force: bool = False  # also where that unloads somebody else's image, or uses up a limit of loads

    @classmethod
    def of(cls, playbook: Playbook, images: Images, release: str | None) -> Question:
        """What a rollout of that playbook would load."""
        return cls(
            kernel=playbook.kernel,
            images=images,
            release=release,
            cmdline=playbook.cmdline,
            cma=playbook.cma,
            attempts=playbook.attempts,
            after_failure=playbook.after_failure,
            deadlines=playbook.deadlines,
        )


@dataclass(frozen=True)
class Means:
    """How hosts are reached. `claim` gives a claim under a fence of its own for (host, boot_id).

    It raises HostRefused where somebody else is at work there. `tell` takes (host, one line) as it happens.
    """

    connector: Connector
    bundle: AgentBundle
    power: Callable[[Host], PowerDriver | None]
    claim: Callable[[str, str], Claim]
    stopping: Callable[[], bool]
    tell: Callable[[str, str], None]


def examine(host: Host, question: Question, means: Means, meant: Callable[[HostFacts], bool]) -> Diagnosis:
    """Look at one host; `meant` says with its facts whether the selector means it. Raises no HostError."""
    visit = _Visit(host, question, means)
    try:
        visit.check_stop()
        visit.learn(power=check_power(host, means.power(host)))
        deadlines = question.deadlines
        connection = means.connector.connect(host, Deadline.after(deadlines.connect))
        try:
            agent = AgentClient.start(connection, host, means.bundle, Deadline.after(deadlines.facts))
        except BaseException:
            connection.close()
            raise
        with Session(connection, agent) as session:
            visit.run(session.agent, meant)
    except Stopped:
        visit.end(Health.STOPPED, "stopped on request")
    except HostRefused as error:
        visit.end(Health.REFUSED, f"{error.step}: {error.message}", error.hint)
    except HostError as error:
        away = visit.found.ability is None and isinstance(error, TransportError)
        hint = error.hint or "check the host's console, address and port"
        if visit.claimed:
            hint += "; what was loaded is unloaded by the host itself when the session has ended"
        visit.end(Health.UNREACHABLE if away else Health.LOST, f"{error.step}: {error.message}", hint)
    return visit.found


class _Visit:
    """One host while it is looked at. `found` grows; `claimed`: from then on something may be loaded."""

    def __init__(self, host: Host, question: Question, means: Means) -> None:
        self.host, self.question, self.means = host, question, means
        self.claimed = False
        console = None if host.console is None else host.console.file
        there = console is not None and Path(console).is_file()
        self.found = Diagnosis(host=host.name, console=console, console_there=there)

    def learn(self, **changes: object) -> None:
        self.found = replace(self.found, **changes)  # type: ignore[arg-type]

    def end(self, health: Health, reason: str = "", hint: str = "") -> None:
        self.learn(health=health, reason=reason, hint=hint)

    def check_stop(self) -> None:
        if self.means.stopping():
            raise Stopped

    def note(self, text: str, **data: object) -> None:
        self.learn(notes=(*self.found.notes, {"text": text, **data}))
        self.means.tell(self.host.name, text)

    def record(self, data: Mapping[str, object]) -> None:
        self.learn(tries=(*self.found.tries, data))
        self.means.tell(self.host.name, f"load {data['number']}: {data['text']}")

    def run(self, agent: AgentClient, meant: Callable[[HostFacts], bool]) -> None:
        """Facts, then the loads, then advice. Raises HostError, Stopped."""
        deadlines = self.question.deadlines
        facts = parse_facts(dict(agent.facts(Deadline.after(deadlines.facts))))
        self.learn(ability=ability(facts))
        if not meant(facts):
            self.end(Health.LEFT_OUT, "its facts do not match the selector")
            return
        self.learn(watchdog=watchdog_of(agent, Deadline.after(deadlines.facts)))
        status = agent.status(Deadline.after(deadlines.facts))
        step = next_step(
            facts, self.question.cma.use, (), self.question.attempts, self.question.after_failure
        )
        if isinstance(step, Load):
            self.learn(step=step)
        if why := self._why_not_load(facts, status):
            self.end(*why)
        elif not isinstance(step, Load):
            self.end(Health.REFUSED, step.reason, step.hint if isinstance(step, GiveUp) else "")
        else:
            facts = self._load_and_unload(agent, facts, step, replace_image=bool(status.kexec_loaded))
        self._advise(facts)

    def _why_not_load(self, facts: HostFacts, status: AgentStatus) -> tuple[Health, str, str] | None:
        """Reasons that need no load to be seen; None: go on."""
        can = self.found.ability
        assert can is not None
        if not can.may_load:
            return Health.REFUSED, can.why_not, "this host takes no new kernel by kexec as it is"
        if status.shutdown.under_way:
            return Health.SKIPPED, f"the host is going down: {status.shutdown.why}", "ask again when it is up"
        if self.question.force:
            return None
        if status.kexec_loaded:
            whose = f" ({_whose(status)})" if status.claim is not None else ""
            return (
                Health.SKIPPED,
                f"an image is loaded already{whose}, and our load would replace it: nothing was loaded",
                "`kexec -u` there if nobody needs it, or --force: it is unloaded and not loaded again",
            )
        if can.load_limit is not None:
            return (
                Health.SKIPPED,
                f"kernel.kexec_load_limit_reboot leaves {can.load_limit} calls, which our loads would use "
                "up: nothing was loaded",
                "--force loads all the same",
            )
        return None

    # -- loading

    def _load_and_unload(
        self, agent: AgentClient, facts: HostFacts, step: Load, replace_image: bool
    ) -> HostFacts:
        """Everything that needs the claim; the facts with nothing loaded. Raises HostError, Stopped."""
        question, deadlines = self.question, self.question.deadlines
        claim = self.means.claim(self.host.name, agent.hello.boot_id)
        agent.claim(claim, Deadline.after(deadlines.load))
        self.claimed = True
        bench = Bench(self.host.name, agent, lambda: claim, self.note, self.check_stop)
        try:
            if replace_image:
                agent.unload(claim, Deadline.after(deadlines.load))
                self.note("the image that somebody had loaded is unloaded (--force)")
                facts = parse_facts(dict(agent.facts(Deadline.after(deadlines.facts))))
            kernel = question.kernel or own_kernel(
                agent, self.host.name, facts, Deadline.after(deadlines.facts)
            )
            target = bring(bench, kernel, question.images, question.release, Deadline.after(deadlines.stage))
            self.learn(target=target)
            self._place(bench, facts, target, step)
        except HostRefused as error:
            self.end(Health.REFUSED, f"{error.step}: {error.message}", error.hint)
        except BaseException:
            with suppress(HostError):
                self._leave(agent, claim, facts)
            raise
        self._leave(agent, claim, facts)
        return facts

    def _place(self, bench: Bench, facts: HostFacts, target: Target, step: Load) -> None:
        """Load and audit until the image is sound or nothing helps any more. Raises HostError, Stopped."""
        if why := never_load(facts, target):
            self.end(Health.REFUSED, why)
            return
        deadlines = self.question.deadlines
        placer = Placer(
            bench=bench,
            facts=facts,
            target=target,
            line=command_line(
                self.host.name, facts, self.question.cmdline, target, step.level, bench.claim().nonce
            ),
            step=step,
            # `report` is about the jump, which a doctor never makes.
            cma=self.question.cma.model_copy(update={"audit": AuditMode.ENFORCE}),
            deadlines=deadlines,
            hold=deadlines.load + deadlines.audit * 2 + deadlines.facts,
            record=self.record,
        )
        self.check_stop()
        try:
            placed = placer.place()
        except LoadRefused as refused:
            hint = "only signed images load here" if signed_only(facts) else "see the host's kernel log"
            self.learn(fallback=self._fallback(facts, step, None, Outcome.LOAD_REFUSED))
            self.end(Health.REFUSED, said(refused.answer), hint)
            return
        except AuditRefused as refused:
            placed, health = refused.placed, Health(refused.placed.audit.verdict)
            # Sound, and outside CMA where the playbook wants nothing else: no hazard, and no jump either.
            health = Health.REFUSED if health is Health.SOUND else health
            self.end(health, refused.reason, refused.hint)
        else:
            self.end(Health.SOUND if placed.repair is None else Health.REPAIRED, placed.audit.reason)
            if placed.repair is not None:
                self.end(Health.REPAIRED, placed.repair.reason)
        self.learn(
            placed=placed, fallback=self._fallback(facts, step, placed.placement, Outcome.AUDIT_REFUSED)
        )

    def _fallback(self, facts: HostFacts, step: Load, placement: Placement | None, outcome: Outcome) -> str:
        """What a rollout would do after such an outcome, in words: nothing of it is loaded here."""
        if step.path is not LoadPath.CMA:
            return ""
        question = self.question
        past = [PastAttempt(path=step.path, outcome=outcome)]
        follow = next_step(facts, question.cma.use, past, question.attempts, question.after_failure)
        if not isinstance(follow, Load):
            hint = f" ({follow.hint})" if isinstance(follow, GiveUp) and follow.hint else ""
            return f"none: {follow.reason}{hint}"
        cost = ""
        if placement is not None and placement.bytes_total is not None:
            hashed = sum(one.memsz for one in placement.segments if one.role is not Role.PURGATORY)
            also = f" and {hashed:,} hashed" if facts.machine == "x86_64" else ""
            cost = f"{placement.bytes_total:,} bytes copied{also} while the host is down; "
        return f"{follow.path}: {cost}{follow.risk}"

    def _leave(self, agent: AgentClient, claim: Claim, facts: HostFacts) -> None:
        """Unload, and see that nothing is left. Raises HostError."""
        deadlines = self.question.deadlines
        answer = agent.unload(claim, Deadline.after(deadlines.load))
        loaded = agent.status(Deadline.after(deadlines.facts)).kexec_loaded
        area = facts.default_area
        left = Left(
            kexec_loaded=loaded,
            pages_before=None if area is None else area.available_pages,
            pages_after=free_pages(mapping_of(answer.get("cma_after")), facts),
            page_size=facts.page_size or 4096,
        )
        self.learn(left=left)
        if loaded:
            raise HostRefused(
                self.host.name,
                "unload",
                "an image is still loaded after the unload",
                hint="`kexec -u` there before anybody reboots it: a reboot would run that image",
                code="unload_failed",
            )

    def _advise(self, facts: HostFacts) -> None:
        sizes = self._sizes()
        if sizes is None:
            return
        header, kernel_size, initrd_size = sizes
        placed = self.found.placed
        found = advice(
            facts,
            None if placed is None else placed.placement,
            header,
            kernel_size,
            initrd_size,
            signed_only=signed_only(facts),
            power_control=bool(self.found.power.works),
            watchdog=self.found.watchdog.present,
        )
        self.learn(advice=found)

    def _sizes(self) -> tuple[BootHeader, int, int] | None:
        """Header and file sizes of the image, where it is known without a load."""
        target, images = self.found.target, self.question.images
        if target is not None:
            return target.header, target.kernel_size, target.initrd_size
        if images.kernel is None:
            return None
        return images.kernel.header, images.kernel.size, 0 if images.initrd is None else images.initrd.size


def _whose(status: AgentStatus) -> str:
    claim = status.claim
    alive = "alive" if status.keeper_alive else "gone"
    phase = status.raw.get("recorded_phase") or status.phase
    return f"last claim: journal {claim.journal if claim else '?'}, phase {phase}, its keeper is {alive}"
