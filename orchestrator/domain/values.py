"""What all written values share: the frozen base, where a value was written, and the short forms of scalars.

A field that may be written in more than one way is an `Annotated` type here, so that validation, the
journal's JSON and the editors' JSON Schema agree. Errors are `Invalid` (a ValueError, as pydantic wants it);
loading turns them into `InputError` with a position.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, WithJsonSchema

from orchestrator.domain.errors import SourcePosition

# Names of hosts, groups, labels and variables: what a selector can spell without quotes.
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"

DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?)([smh]([0-9]+(\.[0-9]+)?[smh])*)?$"
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh])")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Path = tuple[str | int, ...]


class Invalid(ValueError):
    """A value that cannot be accepted, with a hint what to write, and `at`: which part of it is wrong."""

    def __init__(self, message: str, hint: str = "", at: Path = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.at = at


@dataclass(frozen=True)
class Origin:
    """Where the parts of a value were written. It never counts in a comparison and is not written to JSON."""

    positions: Mapping[Path, SourcePosition] = field(default_factory=dict, compare=False, repr=False)

    def at(self, path: Path) -> SourcePosition | None:
        """Position of the innermost part of `path` that was written, None when nothing of it was."""
        for length in range(len(path), -1, -1):
            if position := self.positions.get(path[:length]):
                return position
        return None


class Value(BaseModel):
    """Base of the values that a user writes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def written_at(self, *path: str | int) -> SourcePosition | None:
        """Where the user wrote the part at `path` (keys and indexes), None when not from a file."""
        return self._origin.at(path)

    def written_exactly(self, *path: str | int) -> SourcePosition | None:
        """Where the user wrote the part at `path` itself, None when not written or not from a file."""
        return self._origin.positions.get(path)

    def with_origin(self, origin: Origin) -> Self:
        """The same value, knowing where it was written."""
        twin = self.model_copy()
        twin._origin = origin
        return twin


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`, or None when nothing is near."""
    lowered = {name.lower().replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def name_hint(word: str, known: Iterable[str], what: str = "known") -> str:
    """A hint for an unknown name: the nearest one, or the list (at most twelve)."""
    names = list(known)
    if guess := nearest(word, names):
        return f"did you mean `{guess}`?"
    if not names:
        return f"there are no {what} names" if what == "known" else f"there are no {what}"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{what}: {shown}"


def parse_duration(value: object) -> float:
    """Seconds from a number or from "90s", "10m", "1h30m". Raises Invalid; zero and less are refused."""
    if isinstance(value, str) and re.match(DURATION_PATTERN, value.strip()):
        text = value.strip()
        parts = _DURATION_PART.findall(text)
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts) if parts else float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise Invalid(f"not a duration: {value!r}", "write seconds or a text such as 90s, 10m, 1h30m")
    if not math.isfinite(seconds) or seconds <= 0:
        raise Invalid(f"a duration must be more than zero, not {value}", "write 1s or more")
    return seconds


def parse_share(value: object) -> object:
    """The mapping {"count": n} or {"percent": p} from `2` or `"10%"`; other shapes pass through."""
    if isinstance(value, bool):
        raise Invalid(f"neither a count nor a percentage: {value}", "write a count such as 2, or 10%")
    if isinstance(value, int):
        return {"count": value}
    if isinstance(value, float):
        raise Invalid(f"neither a count nor a percentage: {value}", "write a count such as 2, or 10%")
    if isinstance(value, str):
        if match := re.match(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*$", value):
            return {"percent": float(match[1])}
        if value.strip().isdigit():
            return {"count": int(value)}
        raise Invalid(f"neither a count nor a percentage: {value!r}", "write a count such as 2, or 10%")
    return value


def share_schema(object_schema: dict[str, Any], least: int) -> dict[str, Any]:
    """JSON Schema of what parse_share takes."""
    return {
        "description": object_schema.get("description", ""),
        "anyOf": [
            {"type": "integer", "minimum": least},
            {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%?\s*$"},
            object_schema,
        ],
    }


def _as_text(value: object) -> object:
    """Text from a scalar that YAML took for a number or a truth value, as it was written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return value


def _one_or_many(value: object) -> object:
    """A list from a single text."""
    return [value] if isinstance(value, str) else value


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": DURATION_PATTERN},
            ]
        }
    ),
]
Text = Annotated[str, BeforeValidator(_as_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Words = Annotated[
    tuple[Text, ...],
    BeforeValidator(_one_or_many),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}]}
    ),
]
