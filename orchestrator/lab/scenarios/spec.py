"""A scenario as a user writes it: VM, fault, policy, and what is expected for what was observed.

Expectations are bound to what the kernel was seen to do (`when`), never to its version. Sizes are bytes,
durations seconds.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from orchestrator.domain.deathstage import DeathStage
from orchestrator.domain.errors import InputError
from orchestrator.domain.ladder import LoadPath
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.domain.values import Invalid, Seconds, Text, Value, Words
from orchestrator.lab.scenarios.faultspec import FaultSpec, NoFault, ScribbleFault
from orchestrator.lab.spec import InitKind, parse_cma, parse_memory, parse_size

NAME = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"
LOW_MEMORY = 3 << 30
"""Bytes of RAM that QEMU's pc has below its hole: up to here a file offset is a physical address."""


class KernelChoice(StrEnum):
    """Which kernel the VM's firmware boots; anything else is a version prefix or a file."""

    SOURCE = "source"  # the one under test (`--kernel`)
    FLAG = "flag"  # the newest that knows KEXEC_FILE_NO_CMA and has no CMA
    OLD = "old"  # the oldest that knows neither


class Power(StrEnum):
    """What the inventory says about the VM's power control."""

    NONE = "none"
    QMP = "qmp"
    BROKEN = "broken"  # a command that fails
    HANGING = "hanging"  # a command that does not come back


def _checked(parse: Any) -> Any:
    """A validator out of one of the lab's parsers, which raise InputError."""

    def check(value: object) -> object:
        if not isinstance(value, str | int):
            return value
        try:
            return parse(str(value))
        except InputError as error:
            raise Invalid(error.message, error.hint) from None

    return BeforeValidator(check)


Memory = Annotated[int, _checked(parse_memory)]
CmaSize = Annotated[str, _checked(parse_cma)]
Size = Annotated[int, _checked(lambda text: parse_size(text, "size"))]


class Machine(Value):
    """The VM."""

    memory: Memory = 2 << 30
    cma: CmaSize = "384M"
    append: Words = ()
    cpus: int = Field(default=1, ge=1, le=16)
    init: InitKind = InitKind.MINI
    watchdog: bool = False
    shared_memory: bool = True
    initrd_pad: Size = 0
    kernel: Text = KernelChoice.SOURCE
    power: Power = Power.QMP

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cma and parse_size(self.cma, "cma") >= self.memory:
            raise Invalid(f"cma {self.cma} does not fit into the memory", "give it less", at=("cma",))
        if self.shared_memory and self.memory > LOW_MEMORY:
            raise Invalid(
                "`shared_memory` and more than 3G: an offset in the file would not be the physical address",
                "give the VM at most 3G, or write shared_memory: false",
                at=("memory",),
            )
        return self


class Needs(Value):
    """What the VM's kernel must be able to do, as its image shows; else the scenario is not applicable."""

    can_cma: bool | None = None
    knows_no_cma: bool | None = None
    kexec_file: bool | None = None


class InCma(StrEnum):
    """How much of the loaded image lay in CMA."""

    ALL = "all"
    PART = "part"
    NONE = "none"
    UNKNOWN = "unknown"


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list | tuple) or value is None else [value]


def _expressions(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        try:
            re.compile(text)
        except re.error as error:
            raise Invalid(f"not a regular expression: {text!r}: {error}", "Python's `re` syntax") from None
    return texts


class AttemptObserved(Value):
    """What was seen of one attempt. Unset: anything."""

    in_cma: Annotated[tuple[InCma, ...] | None, BeforeValidator(_one_or_many)] = None
    kernel_misaligned: bool | None = None
    digest_stored: bool | None = None  # purgatory in the guest's RAM holds the kernel segment's place
    path: LoadPath | None = None


class When(Value):
    """Observed facts that select a case. Unset: anything."""

    can_cma: bool | None = None  # the image of the VM's kernel
    knows_no_cma: bool | None = None  # the flag probe on the host
    has_cma_area: bool | None = None
    init_on_alloc: bool | None = None
    leaked: bool | None = None  # the host's CMA pages did not all come back
    attempts: tuple[AttemptObserved, ...] = ()


class AttemptExpected(Value):
    """What one attempt must have come to. Unset: anything."""

    path: LoadPath | None = None
    outcome: Annotated[tuple[Outcome, ...] | None, BeforeValidator(_one_or_many)] = None
    stage: Annotated[tuple[DeathStage, ...] | None, BeforeValidator(_one_or_many)] = None
    in_cma: Annotated[tuple[InCma, ...] | None, BeforeValidator(_one_or_many)] = None
    kernel_misaligned: bool | None = None
    message: Words = Field(default=(), description="regular expressions for the attempt's message")
    record: dict[str, Any] = Field(
        default_factory=dict, description="dotted paths into the attempt of `rollout show --json`"
    )

    _check_message = field_validator("message")(_expressions)


class Then(Value):
    """What must have come out. Unset: anything."""

    phase: Annotated[tuple[Phase, ...] | None, BeforeValidator(_one_or_many)] = None
    exit: Annotated[tuple[int, ...] | None, BeforeValidator(_one_or_many)] = None
    attempts: tuple[AttemptExpected, ...] | None = Field(
        default=None, description="each attempt, in order; as many as there were"
    )
    last_attempt: AttemptExpected | None = None
    reason: Words = Field(default=(), description="regular expressions for the host's reason and hint")
    journal: Words = Field(default=(), description="regular expressions that some event's JSON matches")
    console: Words = Field(default=(), description="regular expressions that the console's text matches")
    console_not: Words = Field(default=(), description="regular expressions that it does not match")
    runs: Annotated[Text | None, Field(description="`target` or `source`: what answers at the end")] = None

    _check_texts = field_validator("reason", "journal", "console", "console_not")(_expressions)

    @field_validator("runs")
    @classmethod
    def _known_kernel(cls, value: str | None) -> str | None:
        if value not in (None, "target", "source", "nothing"):
            raise Invalid(f"`runs: {value}` is unknown", "write target, source or nothing")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise Invalid("`then` expects nothing: such a case cannot fail", "write phase, exit, attempts")
        return self


class Case(Value):
    """If all of `when` was observed, all of `then` must hold. The first case that applies counts."""

    when: When = When()
    then: Then


class Run(Value):
    """One rollout of the scenario."""

    name: Text = Field(default="", description="for reports")
    fault: Annotated[FaultSpec, Field(discriminator="kind")] = NoFault()
    policy: dict[str, Any] = Field(default_factory=dict, description="keys of the playbook")
    expect: tuple[Case, ...]

    @field_validator("expect")
    @classmethod
    def _some_case(cls, value: tuple[Case, ...]) -> tuple[Case, ...]:
        if not value:
            raise Invalid("no case: such a run cannot fail", "write at least one `- then: {...}`")
        return value


class Scenario(Value):
    """One scenario: either one run (`fault`, `policy`, `expect` at the top) or several under `runs`."""

    name: Text = Field(pattern=NAME)
    description: Text = Field(min_length=1)
    vm: Machine = Machine()
    needs: Needs = Needs()
    deadline: Seconds = Field(default=2400, description="for one rollout")
    fault: Annotated[FaultSpec | None, Field(discriminator="kind")] = None
    policy: dict[str, Any] | None = None
    expect: tuple[Case, ...] = ()
    runs: tuple[Run, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.runs and (self.expect or self.fault or self.policy is not None):
            raise Invalid("`runs` and a run at the top", "put fault, policy and expect into the runs")
        if not self.runs and not self.expect:
            raise Invalid("`expect` is missing: such a scenario cannot fail", "add `expect:`")
        if any(isinstance(run.fault, ScribbleFault) for run in self.steps) and not self.vm.shared_memory:
            raise Invalid("`scribble` writes to shared memory", "write vm: {shared_memory: true}")
        return self

    @property
    def steps(self) -> tuple[Run, ...]:
        """The runs, whichever form was written."""
        if self.runs:
            return self.runs
        return (Run(fault=self.fault or NoFault(), policy=self.policy or {}, expect=self.expect),)
