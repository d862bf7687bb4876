"""What a rollout is to do: the values of a validated playbook. Durations are seconds, sizes bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any, Self

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from orchestrator.domain.policy import Cma, CmaPolicy, Finalise, Recovery, cma_use
from orchestrator.domain.values import Invalid, Seconds, Text, Value, Words, parse_share, share_schema
from orchestrator.domain.words import END_OF_PARAMETERS, is_closed, parameter, split_words

_SHA256 = "^[0-9a-f]{64}$"


class JumpMethod(StrEnum):
    """How the host leaves its old kernel."""

    DIRECT = "direct"  # sync, then reboot(2): no service is stopped
    SYSTEMD = "systemd"  # systemctl kexec: orderly stop of services, then the jump


class AfterFailure(StrEnum):
    """What follows when an attempt failed and attempts are left."""

    RETRY = "retry"  # the next rung of the ladder
    STOP = "stop"  # the host is failed at once


class _Files(Value):
    """An image, its initrd, and what their bytes must hash to."""

    image: Text = Field(min_length=1, description="kernel image: a bzImage, or an arm64 Image")
    initrd: Text | None = Field(default=None, description="initrd that belongs to it")
    image_sha256: str | None = Field(default=None, pattern=_SHA256, description="hex digest of the image")
    initrd_sha256: str | None = Field(default=None, pattern=_SHA256, description="hex digest of the initrd")

    @field_validator("image_sha256", "initrd_sha256", mode="before")
    @classmethod
    def _hex(cls, value: object) -> object:
        """Lower case, and no whitespace around it."""
        return value.strip().lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _hash_has_file(self) -> Self:
        if self.initrd_sha256 and not self.initrd:
            raise Invalid(
                "`initrd_sha256` without an `initrd`",
                "name the initrd, or take the hash away",
                at=("initrd_sha256",),
            )
        return self


class ControllerImage(_Files):
    """An image and initrd that lie on the controller and are staged to the host."""


class HostImage(_Files):
    """An image and initrd that lie on the host already: a path, or a glob that matches exactly one file."""

    @field_validator("image", "initrd")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise Invalid(f"a path on a host must begin with `/`, not {value!r}", "write it in full")
        return value


class Kernel(Value):
    """The target kernel: exactly one of the two places."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["on_controller"]}, {"required": ["on_host"]}]}
    )

    on_controller: ControllerImage | None = Field(default=None, description="files on this machine")
    on_host: HostImage | None = Field(default=None, description="files that each host has already")
    release: Text | None = Field(
        default=None, description="what uname -r must say afterwards; else what the image's header says"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.on_controller is None) == (self.on_host is None):
            have = "both" if self.on_controller else "neither"
            raise Invalid(
                f"a kernel lies in one place, and here is {have} of `on_controller` and `on_host`",
                "write exactly one: on_controller: {image: ..., initrd: ...} or on_host: {...}",
            )
        return self


def _check_words(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Words that keep their meaning when they are put on a kernel command line. Raises Invalid."""
    for text in texts:
        words = split_words(text)
        if not words or any(ord(letter) < 0x20 or letter == "\x7f" for letter in text):
            raise Invalid(f"not a command line word: {text!r}", "write one or more words without line breaks")
        if END_OF_PARAMETERS in words:
            raise Invalid("`--` would hand the words after it to init", "leave it out: init's words are kept")
        if not all(is_closed(word) for word in words):
            raise Invalid(f"a double quote without its partner: {text!r}", "close the quote")
        if any(parameter(word).startswith("kexec_fleet.") for word in words):
            raise Invalid(f"`kexec_fleet.*` is set by kexec-fleet itself: {text!r}", "leave it out")
    return texts


class CommandLine(Value):
    """How the new kernel's command line is made; our own options go before ` -- `."""

    reuse: bool = Field(default=True, description="start from the running command line")
    append: Words = Field(default=(), description="words to add at the end")
    remove: Words = Field(
        default=(), description="parameter names (`quiet`, `console`) or whole words (`console=ttyS0`)"
    )

    _append_words = field_validator("append")(_check_words)
    _remove_words = field_validator("remove")(_check_words)

    @model_validator(mode="after")
    def _something_to_remove(self) -> Self:
        if self.remove and not self.reuse:
            raise Invalid(
                "`remove` takes words off the running line, and `reuse: false` starts without it",
                "take one of the two away",
            )
        return self


class Deadlines(Value):
    """Seconds per phase; each wait of a rollout is one of these."""

    connect: Seconds = Field(default=60, description="to log in")
    facts: Seconds = Field(default=60, description="to read what the host is")
    stage: Seconds = Field(default=900, description="to copy and hash the files")
    load: Seconds = Field(default=180, description="to load the image")
    audit: Seconds = Field(default=300, description="to read a loaded image back")
    jump: Seconds = Field(default=60, description="from armed to gone")
    stop: Seconds = Field(default=300, description="`jump: systemd`: the orderly stop of services")
    return_: Seconds = Field(default=600, alias="return", description="dark until the host answers again")
    verify: Seconds = Field(default=180, description="for the checks after the boot")
    power: Seconds = Field(default=120, description="for the power control to take an order")
    boot: Seconds = Field(default=900, description="a power-cycled host's way through its firmware")
    finalise: Seconds = Field(default=120, description="to make the new kernel the boot loader's default")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Share(Value):
    """A count or a percentage of the fleet, exactly one; written as `2` or `10%`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return parse_share(value)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        # count and percent are fields of each subclass, with limits of its own.
        count, percent = getattr(self, "count", None), getattr(self, "percent", None)
        if (count is None) == (percent is None):
            raise Invalid("exactly one of `count` and `percent`", "write for instance 2 or 10%")
        return self


class FailureBudget(_Share):
    """How many hosts of the whole fleet may fail, be unreachable or be lost before no new one starts."""

    count: int | None = Field(default=None, ge=0, description="hosts")
    percent: float | None = Field(default=None, ge=0, le=100, description="percent of the fleet")

    def limit(self, fleet: int) -> int:
        """The number of hosts out of `fleet` that may go wrong; a percentage rounds down."""
        if self.count is not None:
            return self.count
        return int(fleet * (self.percent or 0) / 100 + 1e-9)

    def allows(self, failed: int, fleet: int) -> bool:
        """Whether a new host may start when `failed` (failed, unreachable or lost) of `fleet` went wrong."""
        return failed <= self.limit(fleet)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return share_schema(handler(schema), least=0)


class WaveSize(_Share):
    """Up to how much of the fleet is done when the wave ends: a count or a percentage, cumulative."""

    count: int | None = Field(default=None, ge=1, description="hosts")
    percent: float | None = Field(default=None, gt=0, le=100, description="percent of the fleet")

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{self.percent:g}%"

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return share_schema(handler(schema), least=1)


class Checks(Value):
    """Which checks run after the boot and what they tolerate."""

    skip: Words = Field(default=(), description="names of checks not to run")
    log_ignore: Words = Field(
        default=(), description="regular expressions for kernel log lines that are no failure"
    )
    ssh_sessions: int = Field(
        default=2, ge=1, le=10, description="fresh SSH sessions that must work in a row"
    )

    @field_validator("log_ignore")
    @classmethod
    def _expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                re.compile(text)
            except re.error as error:
                raise Invalid(
                    f"not a regular expression: {text!r}: {error}", "Python's `re` syntax"
                ) from None
        return value


class Playbook(Value):
    """One validated playbook."""

    name: Text = Field(min_length=1, description="names the rollout in lists and reports")
    hosts: Text = Field(default="all", description="selector: `web & !canary`, `kernel<7`, `all`")
    kernel: Kernel = Field(description="the kernel to move to")
    cmdline: CommandLine = CommandLine()
    cma: Cma = Cma()
    attempts: int = Field(default=3, ge=1, le=10, description="loads and jumps per host")
    after_failure: AfterFailure = AfterFailure.RETRY
    jump: JumpMethod = JumpMethod.DIRECT
    waves: tuple[WaveSize, ...] = Field(
        default=(WaveSize(percent=100),),
        description="[1, 50%, 100%]: cumulative, growing",
        # min_length would count only those items that are valid, and call a list of one mistake empty.
        json_schema_extra={"minItems": 1},
    )
    partial: bool = Field(
        default=False, description="the last wave leaves a part of the fleet as it is, and that is meant"
    )
    at_once: int = Field(default=10, ge=1, description="hosts under way at the same time, at most")
    failure_budget: FailureBudget = FailureBudget(count=0)
    deadlines: Deadlines = Deadlines()
    checks: Checks = Checks()
    recovery: Recovery = Recovery()
    finalise: Finalise = Finalise()
    even_if_rejected: bool = Field(
        default=False, description="offer the kernel also to hosts that came back wrong from it before"
    )
    even_if_current: bool = Field(default=False, description="jump also where the target already runs")

    @model_validator(mode="before")
    @classmethod
    def _single_attempt(cls, value: object) -> object:
        """Where no retry can follow, `attempts` is 1 unless the user wrote something else."""
        if not isinstance(value, Mapping) or "attempts" in value:
            return value
        if cma_use(value.get("cma")) == CmaPolicy.REQUIRE or value.get("after_failure") == AfterFailure.STOP:
            return {**value, "attempts": 1}
        return value

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.attempts > 1 and self.cma.use is CmaPolicy.REQUIRE:
            raise Invalid(
                f"`cma: require` and `attempts: {self.attempts}`: a retry would force NO_CMA",
                "take `attempts` away, or write `cma: prefer`",
                at=("attempts",),
            )
        if self.attempts > 1 and self.after_failure is AfterFailure.STOP:
            raise Invalid(
                f"`after_failure: stop` and `attempts: {self.attempts}`: there is never a second one",
                "take `attempts` away, or write `after_failure: retry`",
                at=("attempts",),
            )
        return self

    @model_validator(mode="after")
    def _possible_waves(self) -> Self:
        if not self.waves:
            raise Invalid("there is no wave", "write at least one: [100%]", at=("waves",))
        for index, (before, after) in enumerate(pairwise(self.waves), 1):
            if _shrinks(before.count, after.count) or _shrinks(before.percent, after.percent):
                raise Invalid(
                    f"waves must grow: {after} comes after {before}",
                    "each wave says how much of the fleet is done when it ends, as in [1, 50%, 100%]",
                    at=("waves", index),
                )
        whole = self.waves[-1].percent == 100
        if not whole and not self.partial:
            raise Invalid(
                f"the waves end at {self.waves[-1]} and never reach the whole fleet",
                "let the last wave be 100%, or write `partial: true`",
                at=("waves", len(self.waves) - 1),
            )
        if whole and self.partial:
            raise Invalid(
                "`partial: true`, and the last wave is 100%", "take one of the two away", at=("partial",)
            )
        return self


def _shrinks(before: float | None, after: float | None) -> bool:
    """Whether two sizes of the same kind fail to grow; sizes of two kinds are compared when planning."""
    return before is not None and after is not None and after <= before
