"""Reading what a host sent (JSON) without trusting its shape: the right type or None, never an exception."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def mapping_of(raw: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one."""
    return raw if isinstance(raw, Mapping) else _NOTHING


def texts_of(raw: object) -> tuple[str, ...] | None:
    """The strings of a JSON array, or None when it is none."""
    if isinstance(raw, list | tuple | set | frozenset):
        return tuple(item for item in raw if isinstance(item, str))
    return None


def optional_text(raw: object) -> str | None:
    """A string with its surrounding blanks off; an empty one is None."""
    return raw.strip() or None if isinstance(raw, str) else None


def optional_int(raw: object) -> int | None:
    """An integer, also one written as decimal text (sysfs); a bool is none."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int):
        return raw
    if isinstance(raw, str) and raw.strip().lstrip("-").isdecimal():
        return int(raw)
    return None


def optional_bool(raw: object) -> bool | None:
    """True or False, also as 0 and 1 or their text (sysfs, sysctl); anything else is None."""
    if isinstance(raw, bool):
        return raw
    return {0: False, 1: True}.get(number) if (number := optional_int(raw)) is not None else None
