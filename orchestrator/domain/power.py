"""How a host's power is switched, as the inventory describes it: values only, `workers.power` does it.

One class per kind. A new kind (redfish, ipmi) is a class here, a name in `_KINDS` and in `Power`, and a
driver in `workers/power/wiring.py`. No value here holds a secret: only where one is to be read at use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from orchestrator.domain.values import Invalid, Seconds, Text, Value, name_hint

# POSIX.1-2017, Base Definitions 8.1: names that every shell can use.
_VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _check_variable(name: str) -> str:
    """A name for an environment variable. Raises Invalid."""
    if not name.isascii() or not name.isidentifier():
        raise Invalid(
            f"not a name for an environment variable: {name!r}",
            "letters, digits and `_`, and no digit at the beginning",
        )
    return name


def _check_text(text: str) -> str:
    """A text that execve(2) can pass on. Raises Invalid."""
    if "\0" in text:
        raise Invalid("a NUL character cannot be passed to a command", "take it out")
    return text


def _check_argv(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command that names a program. Raises Invalid."""
    if not words:
        raise Invalid("the command is empty", "write a list of words, the program first")
    if not words[0].strip():
        raise Invalid("the command's name is empty", "write the program first", at=(0,))
    return words


VariableName = Annotated[
    str,
    AfterValidator(_check_variable),
    WithJsonSchema({"type": "string", "pattern": _VARIABLE_PATTERN}),
]
PassedText = Annotated[Text, AfterValidator(_check_text)]
# min_length would count only those words that are valid, and call a list of one mistake empty.
Argv = Annotated[
    tuple[PassedText, ...], Field(json_schema_extra={"minItems": 1}), AfterValidator(_check_argv)
]


class Secret(Value):
    """Where a secret is read from when it is needed: exactly one of the two."""

    file: PassedText | None = Field(
        default=None, min_length=1, description="file on this machine that nobody else may read"
    )
    environment: VariableName | None = Field(default=None, description="variable of our own environment")

    @model_validator(mode="before")
    @classmethod
    def _not_itself(cls, value: object) -> object:
        """Refused here and not by pydantic, whose error would show the secret."""
        if not isinstance(value, dict | Secret):
            raise Invalid(
                "a secret is not written into the inventory",
                "write where it is read from: {file: PATH} or {environment: NAME}",
            )
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.file is None) == (self.environment is None):
            have = "both" if self.file is not None else "neither"
            raise Invalid(
                f"a secret comes from one place, and here is {have} of `file` and `environment`",
                "write {file: PATH} or {environment: NAME}",
            )
        return self


class QmpPower(Value):
    """The reset button of a QEMU machine: its QMP monitor socket."""

    kind: Literal["qmp"] = Field(description="power through QEMU's monitor")
    socket: PassedText = Field(min_length=1, description="path of the monitor's UNIX socket")


class CommandPower(Value):
    """A command of the user's own; no shell reads its words.

    In all texts `${host}`, `${address}`, `${port}`, `${user}`, `${labels.NAME}` and `${variables.NAME}` stand
    for what the inventory says of the host. Loading fills them in: a Host has none any more.
    """

    kind: Literal["command"] = Field(description="power through a command")
    run: Argv = Field(description="words of the command that switches off and on, whatever the state")
    status: Argv | None = Field(
        default=None, description="words of a command whose last line of output says on or off"
    )
    timeout: Seconds = Field(default=60.0, description="then the command and its children are killed")
    environment: dict[VariableName, PassedText] = Field(
        default_factory=dict, description="variables for the command"
    )
    secrets: dict[VariableName, Secret] = Field(
        default_factory=dict, description="variables for the command whose texts are secret"
    )

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        for name in self.secrets:
            if name in self.environment:
                raise Invalid(
                    f"`{name}` is in `environment` and in `secrets`", "keep one", at=("environment", name)
                )
        return self


_KINDS: dict[str, type[Value]] = {"qmp": QmpPower, "command": CommandPower}


class _ByKind:
    """Validates by `kind` alone, so that a mistake's place has no part that the user did not write."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(_by_kind, handler(source))


def _by_kind(value: object, otherwise: Callable[[object], Any]) -> Any:
    """The value of the class that `kind` names. Raises Invalid, or what the class finds wrong."""
    if not isinstance(value, dict):
        if isinstance(value, tuple(_KINDS.values())):
            return value
        raise Invalid("a mapping is wanted", "write for instance {kind: command, run: [...]}")
    if "kind" not in value:
        raise Invalid("`kind` is missing in `power`", f"add `kind:`: {', '.join(_KINDS)}")
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Invalid(
            f"there is no power control of the kind {str(kind)!r}",
            name_hint(str(kind), _KINDS, "known kinds"),
            at=("kind",),
        )
    return _KINDS[kind].model_validate(value)


Power = Annotated[QmpPower | CommandPower, Discriminator("kind"), _ByKind]
