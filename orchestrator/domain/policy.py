"""What a playbook says about risk: where the image lies, how a lost host comes back, what becomes default."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, GetJsonSchemaHandler, ValidationInfo, field_validator, model_validator
from pydantic_core import CoreSchema

from orchestrator.domain.values import Invalid, Seconds, Text, Value, Words, name_hint

WATCHDOG_SECONDS = (5.0, 3600.0)
"""Least and most that the agent arms a watchdog with (workers/hostagent/watchdog.py)."""

GUARD_SECONDS = (10.0, 86400.0)
"""Least and most that the agent takes for a boot guard (workers/hostagent/guard.py)."""


class CmaPolicy(StrEnum):
    """Whether the next image is to lie in CMA memory."""

    PREFER = "prefer"  # CMA where kernel and area allow it, NO_CMA after a failure
    REQUIRE = "require"  # CMA or fail: no fallback
    NEVER = "never"  # KEXEC_FILE_NO_CMA from the first attempt on


class AuditMode(StrEnum):
    """What an audit that finds a hazard does."""

    ENFORCE = "enforce"  # unloaded, never jumped to
    REPORT = "report"  # recorded, and jumped to all the same: for labs and for kernel developers


class Cma(Value):
    """`cma: prefer`, or the whole of it: `cma: {use: prefer, audit: enforce, repair: true}`."""

    use: CmaPolicy = Field(default=CmaPolicy.PREFER, description="whether the image is to lie in CMA memory")
    audit: AuditMode = Field(default=AuditMode.ENFORCE, description="what happens to a hazardous placement")
    repair: bool = Field(default=True, description="move the image by a spacer, pad it: where that helps")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str):
            known = [str(policy) for policy in CmaPolicy]
            if value not in known:
                raise Invalid(f"{value!r} is not one of {', '.join(known)}", name_hint(value, known))
            return {"use": value}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        whole = handler(schema)
        short = {"enum": [str(policy) for policy in CmaPolicy]}
        return {"description": whole.get("description", ""), "anyOf": [short, whole]}


class Recovery(Value):
    """What brings back a host that does not return. Each is used where the host has it."""

    power: bool = Field(
        default=True, description="power-cycle a silent host whose inventory entry says how (`power`)"
    )
    watchdog: Seconds | None = Field(
        default=None, description="arm /dev/watchdog with this timeout before the jump"
    )
    guard: Seconds | None = Field(
        default=None,
        description="the new boot reboots by itself when we have not confirmed it in this time",
    )

    @field_validator("watchdog", "guard")
    @classmethod
    def _the_host_takes_it(cls, value: float | None, info: ValidationInfo) -> float | None:
        least, most = WATCHDOG_SECONDS if info.field_name == "watchdog" else GUARD_SECONDS
        if value is not None and not least <= value <= most:
            raise Invalid(
                f"{value:g} s, and a host takes {least:g} to {most:g} s",
                "write for instance 2m; well above the time from the jump until the new kernel is up",
            )
        return value


class FinaliseMethod(StrEnum):
    """How the new kernel becomes the one that the firmware's boot takes."""

    NONE = "none"  # the boot loader's default stays as it is
    GRUB = "grub"  # grub-set-default; GRUB_DEFAULT must be `saved`
    BOOTCTL = "bootctl"  # bootctl set-default
    COMMAND = "command"  # a command on the host
    LOCAL = "local"  # a command on this machine, as for the lab's virtual machines


class Finalise(Value):
    """`finalise: grub`, or `finalise: {method: command, run: [...]}`: after every check has passed."""

    method: FinaliseMethod = Field(
        default=FinaliseMethod.NONE, description="how the boot loader's default is set"
    )
    entry: Text | None = Field(
        default=None, description="the boot loader's entry; else the one whose kernel has the release"
    )
    run: Words = Field(default=(), description="argv of `method: command` and `method: local`")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        runs = self.method in (FinaliseMethod.COMMAND, FinaliseMethod.LOCAL)
        if runs and not self.run:
            raise Invalid(f"`method: {self.method}` and nothing to run", "write run: [program, words]")
        if self.run and not runs:
            raise Invalid(
                f"`run` belongs to command and local, not to {self.method}",
                "write `method: command` or `method: local`, or take `run` away",
                at=("run",),
            )
        if self.entry and self.method not in (FinaliseMethod.GRUB, FinaliseMethod.BOOTCTL):
            raise Invalid(
                f"`entry` belongs to grub and bootctl, not to {self.method}",
                "write `method: grub` or `method: bootctl`, or take `entry` away",
                at=("entry",),
            )
        return self

    @field_validator("run")
    @classmethod
    def _can_be_run(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Found only after every host has booted, a slip here would fail them all.
        for word in value:
            if not word.strip() or "\0" in word:
                raise Invalid(f"not a word of a command: {word!r}", "write run: [program, words]")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        whole = handler(schema)
        alone = [str(m) for m in FinaliseMethod if m not in (FinaliseMethod.COMMAND, FinaliseMethod.LOCAL)]
        return {"description": whole.get("description", ""), "anyOf": [{"enum": alone}, whole]}


def cma_use(value: object) -> object:
    """The `use` of a `cma` entry as a user wrote it, in either form; None where it has none."""
    return value.get("use") if isinstance(value, Mapping) else value
