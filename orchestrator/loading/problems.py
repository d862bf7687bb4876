"""What pydantic finds wrong with a file's data, said as InputError with position and hint."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.domain.errors import InputError
from orchestrator.domain.values import Invalid, Path, name_hint, nearest
from orchestrator.loading.yamlsource import Source

ModelT = TypeVar("ModelT", bound=BaseModel)

# A page of errors helps; the hundredth of the same kind does not.
_MAX_ERRORS = 20


def validate(model: type[ModelT], source: Source, data: object) -> ModelT:
    """`data` of `source` as `model`. Raises InputError for the first problem, the others in `others`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise gathered([_problem(model, source, detail) for detail in details]) from None


def gathered(problems: list[InputError]) -> InputError:
    """One error out of several, in the order of the file."""
    problems = sorted(problems, key=lambda problem: _line(problem))
    first, *rest = problems
    return InputError(
        first.message, hint=first.hint, position=first.position, others=tuple(rest[: _MAX_ERRORS - 1])
    )


def _line(problem: InputError) -> tuple[int, int]:
    return (problem.position.line, problem.position.column) if problem.position else (0, 0)


def _problem(model: type[BaseModel], source: Source, detail: ErrorDetails) -> InputError:
    """One detail of pydantic's as one error."""
    # "[key]" marks that a mapping's key is wrong, not the value under it.
    key_is_wrong = "[key]" in detail["loc"]
    path: Path = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx") or {}
    name = _name(path)
    if kind == "extra_forbidden":
        hint = name_hint(str(path[-1]), known_keys(model, path[:-1]), "known keys")
        return InputError(f"unknown key `{path[-1]}`{_within(path)}", hint=hint, position=source.at_key(path))
    if kind == "missing":
        return InputError(
            f"`{path[-1]}` is missing{_within(path)}",
            hint=f"add `{path[-1]}:`",
            position=source.at_key(path[:-1]),
        )
    if key_is_wrong:
        message, hint = _said(detail)
        return InputError(message, hint=hint, position=source.at_key(path))
    if kind == "value_error" and isinstance(cause := context.get("error"), Invalid):
        message = str(cause) if cause.at or not path else f"{name}: {cause}"
        return InputError(message, hint=cause.hint, position=source.at((*path, *cause.at)))
    if kind in ("enum", "literal_error"):
        wanted = str(context.get("expected", ""))
        given = str(detail["input"])
        guess = nearest(given, [word.strip("' ") for word in wanted.replace(" or ", ",").split(",")])
        hint = f"did you mean `{guess}`?" if guess else f"write one of {wanted}"
        return InputError(f"{name}: {given!r} is not one of {wanted}", hint=hint, position=source.at(path))
    message, hint = _said(detail)
    return InputError(f"{name}: {message}", hint=hint, position=source.at(path))


# Pydantic's words for what users get wrong most, in ours. {input} and the context's keys are filled in.
_MESSAGES = {
    "int_type": ("a whole number is wanted, not {input}", "write digits only"),
    "int_parsing": ("a whole number is wanted, not {input}", "write digits only"),
    "int_from_float": ("a whole number is wanted, not {input}", "write digits only"),
    "float_parsing": ("a number is wanted, not {input}", "write for instance 2.5"),
    "bool_type": ("true or false is wanted, not {input}", "write true or false"),
    "bool_parsing": ("true or false is wanted, not {input}", "write true or false"),
    "string_type": ("a text is wanted, not {input}", "put the text in quotes"),
    "string_too_short": ("it is empty", "write a text"),
    "too_short": ("it is empty", "write at least one"),
    "string_pattern_mismatch": ("{input} does not look right", "it must match {pattern}"),
    "dict_type": ("a mapping is wanted, not {input}", "write `key: value` lines below it, indented"),
    "model_attributes_type": ("a mapping is wanted, not {input}", "write {{kind: ...}}"),
    "model_type": ("a mapping is wanted, not {input}", "write `key: value` lines below it, indented"),
    "tuple_type": ("a list is wanted, not {input}", "write [one, two] or `- one` lines below it"),
    "greater_than_equal": ("{input} is too small", "write {ge} or more"),
    "greater_than": ("{input} is too small", "write more than {gt}"),
    "less_than_equal": ("{input} is too large", "write {le} or less"),
}


def _said(detail: ErrorDetails) -> tuple[str, str]:
    """Message and hint for a detail."""
    context: Mapping[str, Any] = detail.get("ctx") or {}
    if isinstance(cause := context.get("error"), Invalid):
        return str(cause), cause.hint
    if detail["type"] not in _MESSAGES:
        return detail["msg"], "see `kexec-fleet schema` and playbooks/ for what is allowed"
    message, hint = _MESSAGES[detail["type"]]
    values = {**context, "input": _shown(detail["input"])}
    return message.format(**values), hint.format(**values)


def _shown(value: object) -> str:
    """A value as a message shows it: short, and containers by name only."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(path: Path) -> str:
    """`kernel.on_host.image`, `waves[2]`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return f"`{name}`" if name else "the file"


def _within(path: Path) -> str:
    return f" in {_name(path[:-1])}" if len(path) > 1 else ""


def known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that may stand in the mapping at `path` below `model`; [] where any may."""
    found: list[Any] = [model]
    for part in path:
        found = [annotation for one in found for annotation in _step(one, part)]
    keys = [
        field.alias or name
        for one in found
        if isinstance(one, type) and issubclass(one, BaseModel)
        for name, field in one.model_fields.items()
    ]
    return list(dict.fromkeys(keys))


def _step(annotation: Any, part: str | int) -> list[Any]:
    """What may stand at one part of a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [
            plain
            for name, field in annotation.model_fields.items()
            if part in (name, field.alias)
            for plain in _plain(field.annotation)
        ]
    arguments = get_args(annotation)
    if not arguments:
        return []
    return _plain(arguments[-1] if get_origin(annotation) is dict else arguments[0])


def _plain(annotation: Any) -> list[Any]:
    """An annotation without Annotated[...] and Optional[...]: one for each kind of a value."""
    if hasattr(annotation, "__metadata__"):
        return _plain(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return [plain for item in get_args(annotation) if item is not type(None) for plain in _plain(item)]
    return [annotation]
