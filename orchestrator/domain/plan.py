"""What a rollout would do, before it does anything: waves, and per host the way to the target or why none.

Without facts the plan rests on inventory and playbook alone; with facts it says what the ladder, the kernel's
own limits and what the host runs make of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from orchestrator.domain.bootimage import Images
from orchestrator.domain.cmdline import command_line_limit, new_command_line
from orchestrator.domain.errors import CommandLineTooLong, InputError
from orchestrator.domain.facts import HostFacts, selector_facts
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.ladder import Load, PastAttempt, Step, next_step
from orchestrator.domain.playbook import Playbook
from orchestrator.domain.policy import AuditMode, CmaPolicy
from orchestrator.domain.rollout import Outcome
from orchestrator.domain.selector import Match, Selection, Selector, select
from orchestrator.domain.strategy import waves
from orchestrator.domain.values import Value

# As long as a real nonce, for measuring a command line.
_SAMPLE_NONCE = "0" * 32


class Action(StrEnum):
    """What would become of a host."""

    JUMP = "jump"
    SKIP = "skip"  # nothing would be done, and that is fine
    REFUSE = "refuse"  # it would fail before anything is loaded
    LEAVE_OUT = "leave out"  # it is no part of this rollout


class HostPlan(Value):
    """One host. `wave` counts from 1; `steps` are the attempts, each for when those before it fail."""

    host: str
    address: str
    wave: int | None
    action: Action
    reason: str = ""
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Plan(Value):
    """A whole rollout on paper."""

    playbook: str
    target: str
    jump: str
    waves: tuple[tuple[str, ...], ...]
    at_once: int
    may_fail: int
    hosts: tuple[HostPlan, ...]
    with_facts: bool


def choose_hosts(
    playbook: Playbook,
    inventory: Inventory,
    limit: str | None = None,
    facts: Mapping[str, HostFacts] | None = None,
) -> Selection:
    """The playbook's hosts, less those that `limit` (a selector, --limit) leaves out.

    Raises InputError where either selector is wrong or nothing is left.
    """
    known = {name: selector_facts(host_facts) for name, host_facts in (facts or {}).items()}
    chosen = select(playbook.hosts, inventory, known, position=playbook.written_at("hosts"))
    if limit is None:
        return chosen
    try:
        within = select(limit, inventory, known)
    except InputError as error:
        raise InputError(f"--limit: {error.message}", hint=error.hint) from None
    hosts = tuple(name for name in chosen.hosts if name in within.hosts)
    if not hosts:
        raise InputError(
            f"--limit `{limit}` leaves none of the playbook's hosts",
            hint=f"the playbook's `{playbook.hosts}` are: {', '.join(chosen.hosts[:12])}",
        )
    return Selection(hosts, (chosen.undecided | within.undecided) & frozenset(hosts))


def check_command_line(playbook: Playbook, images: Images) -> None:
    """That the playbook's own words leave room for any. Raises CommandLineTooLong at `append`.

    The whole line is known only with the host's running one.
    """
    if images.kernel is None:
        return
    limit = command_line_limit(images.kernel.header.cmdline_size)
    try:
        new_command_line("", playbook.cmdline, _SAMPLE_NONCE, (), limit)
    except CommandLineTooLong as error:
        position = playbook.written_at("cmdline", "append")
        raise CommandLineTooLong(error.message, hint="append less", position=position) from None


def make_plan(
    playbook: Playbook,
    inventory: Inventory,
    images: Images,
    *,
    limit: str | None = None,
    facts: Mapping[str, HostFacts] | None = None,
    unasked: Mapping[str, str] | None = None,
) -> Plan:
    """The plan. Raises InputError as choose_hosts does.

    `facts` by host name, None when no host was asked; `unasked` says why those of other hosts are not there.
    """
    selection = choose_hosts(playbook, inventory, limit, facts)
    cut = waves(selection.hosts, playbook.waves)
    wave_of = {name: number for number, wave in enumerate(cut, 1) for name in wave}
    planner = _Planner(playbook, images, selection, facts or {}, unasked or {})
    return Plan(
        playbook=playbook.name,
        target=describe_target(playbook, images),
        jump=playbook.jump,
        waves=tuple(tuple(wave) for wave in cut),
        at_once=playbook.at_once,
        may_fail=playbook.failure_budget.limit(len(selection.hosts)),
        hosts=tuple(planner.plan(host, wave_of.get(name)) for name, host in inventory.hosts.items()),
        with_facts=facts is not None,
    )


def describe_target(playbook: Playbook, images: Images) -> str:
    """The target kernel in one line."""
    if images.kernel is None:
        files = playbook.kernel.on_host
        return f"{playbook.kernel.release or 'the kernel'} from {files.image if files else '?'} on each host"
    release = target_release(playbook, images) or "a kernel that does not tell its release"
    parts = [f"{release} ({images.kernel.header.machine})", f"{images.kernel.path}"]
    parts.append(f"build-id {images.kernel.build_id or 'unknown'}")
    parts.append(f"initrd {images.initrd.path}" if images.initrd else "no initrd")
    return ", ".join(parts)


def target_release(playbook: Playbook, images: Images) -> str | None:
    """What uname -r must say after the jump, None where only the host can tell."""
    return playbook.kernel.release or (images.kernel.header.release if images.kernel else None)


class _Planner:
    """Plans one host after the other."""

    def __init__(
        self,
        playbook: Playbook,
        images: Images,
        selection: Selection,
        facts: Mapping[str, HostFacts],
        unasked: Mapping[str, str],
    ) -> None:
        self.playbook = playbook
        self.images = images
        self.selection = selection
        self.facts = facts
        self.unasked = unasked

    def plan(self, host: Host, wave: int | None) -> HostPlan:
        """What would be done with `host`."""
        action, reason = self.action(host, wave)
        steps: tuple[str, ...] = ()
        if action is Action.JUMP:
            facts = self.facts.get(host.name)
            steps = self.ladder(facts) if facts else (self.policy(),)
            if not steps:
                action, reason = Action.REFUSE, self.why_no_step(facts)
            else:
                steps = (*steps, *self.caution())
        notes = []
        if host.name in self.selection.undecided:
            notes.append("whether it is meant is decided when its facts are there")
        if host.name in self.unasked:
            notes.append(f"it could not be asked: {self.unasked[host.name]}")
        return HostPlan(
            host=host.name,
            address=f"{host.address}:{host.port}",
            wave=wave,
            action=action,
            reason=reason,
            steps=steps,
            notes=tuple(notes),
        )

    def known(self, host: Host) -> Mapping[str, str] | None:
        """What a selector may ask of the host, None when it was not asked."""
        facts = self.facts.get(host.name)
        return selector_facts(facts) if facts else None

    def action(self, host: Host, wave: int | None) -> tuple[Action, str]:
        """Whether the host would be jumped, and if not, why."""
        if host.name not in self.selection.hosts:
            meant = Selector.parse(self.playbook.hosts).matches(host, self.known(host)) is not Match.NO
            left_out = "left out by --limit" if meant else f"not selected by `hosts: {self.playbook.hosts}`"
            return Action.LEAVE_OUT, left_out
        if wave is None:
            return Action.LEAVE_OUT, "the waves end before it (`partial: true`)"
        facts = self.facts.get(host.name)
        if facts is None:
            return Action.JUMP, ""
        if not self.playbook.even_if_current and (why := self.why_current(facts)):
            return Action.SKIP, why
        if why := self.why_refused(facts):
            return Action.REFUSE, why
        return Action.JUMP, ""

    def why_current(self, facts: HostFacts) -> str:
        """Whether the target already runs, by build-id where both are known, else by release."""
        kernel = self.images.kernel
        if kernel and kernel.build_id and facts.build_id:
            same = kernel.build_id == facts.build_id
        else:
            same = facts.release is not None and facts.release == target_release(self.playbook, self.images)
        return f"it runs {facts.release} already" if same else ""

    def why_refused(self, facts: HostFacts) -> str:
        """What would stop the load, as far as facts and image tell."""
        if facts.load_disabled:
            return "kernel.kexec_load_disabled is 1: this host takes no new kernel until it is rebooted"
        kernel = self.images.kernel
        if kernel is None:
            return ""
        header = kernel.header
        if facts.machine and facts.machine != header.machine:
            return f"it is {facts.machine}, the image is for {header.machine}"
        # sanity_check_segment_list, kernel/kexec_core.c (Linux 7.2): EINVAL for more than half of RAM.
        needed = header.init_size + (self.images.initrd.size if self.images.initrd else 0)
        if facts.mem_total_bytes and needed > facts.mem_total_bytes // 2:
            mib = 1 << 20
            return f"image and initrd take {needed // mib} MiB, more than half of its memory"
        if facts.cmdline is not None:
            try:
                new_command_line(
                    facts.cmdline,
                    self.playbook.cmdline,
                    _SAMPLE_NONCE,
                    (),
                    command_line_limit(header.cmdline_size),
                )
            except CommandLineTooLong as error:
                return error.message
        return ""

    def policy(self) -> str:
        """The ladder in words, while nothing is known of the host."""
        attempts = self.playbook.attempts
        many = "1 attempt" if attempts == 1 else f"up to {attempts} attempts"
        then = "" if attempts == 1 else ", NO_CMA after a failure with CMA"
        way = {
            CmaPolicy.PREFER: f"CMA where its kernel and memory allow it{then}",
            CmaPolicy.REQUIRE: "CMA, or failed",
            CmaPolicy.NEVER: "NO_CMA",
        }[self.playbook.cma.use]
        return f"{way} ({many})"

    def caution(self) -> tuple[str, ...]:
        """What the playbook switches off that keeps hosts from harm."""
        cma = self.playbook.cma
        said = []
        if cma.audit is AuditMode.REPORT:
            said.append("THE AUDIT ONLY REPORTS: a hazardous image is jumped to")
        if not cma.repair and cma.use is not CmaPolicy.NEVER:
            said.append("no repair of a hazardous placement in CMA")
        return tuple(said)

    def ladder(self, facts: HostFacts) -> tuple[str, ...]:
        """The attempts that would be made if each one failed."""
        past: list[PastAttempt] = []
        steps: list[str] = []
        while isinstance(step := self.next_step(facts, past), Load):
            steps.append(f"{step.path}: {step.reason}")
            past.append(PastAttempt(path=step.path, outcome=Outcome.FELL_BACK))
        return tuple(steps)

    def why_no_step(self, facts: HostFacts | None) -> str:
        return self.next_step(facts, ()).reason if facts else ""

    def next_step(self, facts: HostFacts, past: Sequence[PastAttempt]) -> Step:
        book = self.playbook
        return next_step(facts, book.cma.use, past, book.attempts, book.after_failure)
