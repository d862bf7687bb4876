"""Settings of a host that may name the host itself, so that one `power` in `defaults` serves every host.

`${host}`, `${labels.rack}` and the like are filled in, and the files in them come out in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.inventory import Console, Host
from orchestrator.domain.power import CommandPower, QmpPower
from orchestrator.domain.values import Path as ValuePath
from orchestrator.domain.values import name_hint
from orchestrator.loading.paths import resolve
from orchestrator.loading.problems import gathered
from orchestrator.loading.yamlsource import Source

SETTINGS = ("power", "console")

# `$${` stands for a `${` that is meant, as in playbooks.
_FIELD = re.compile(r"\$\$\{|\$\{([^}]*)\}?")


def fill(hosts: dict[str, Host], source: Source, folder: Path) -> dict[str, Host]:
    """The hosts with their own fields in `power` and `console`; relative files start at `folder`.

    Raises InputError for what names nothing, once for each place: a slip in `defaults` is one mistake.
    """
    problems: dict[SourcePosition, InputError] = {}
    result = {}
    for name, host in hosts.items():
        found: list[InputError] = []
        result[name] = _filled_host(host, source, folder, found)
        for problem in found:
            problems.setdefault(problem.position or source.at(()), problem)
    if problems:
        raise gathered(list(problems.values()))
    return result


def fields_of(host: Host) -> dict[str, str]:
    """What may stand between `${` and `}`, with the host's texts."""
    return {
        "host": host.name,
        "address": host.address,
        "port": str(host.port),
        "user": host.user,
        **{f"labels.{name}": text for name, text in host.labels.items()},
        **{f"variables.{name}": text for name, text in host.variables.items()},
    }


def _filled_host(host: Host, source: Source, folder: Path, problems: list[InputError]) -> Host:
    changed = {}
    for setting in SETTINGS:
        value = getattr(host, setting)
        if value is None:
            continue
        place = _place(source, host, setting)
        known = len(problems)
        texts = _filled(value.model_dump(), _Texts(host, source, problems), place)
        if len(problems) > known:
            continue
        try:
            changed[setting] = _in_full(type(value).model_validate(texts), folder)
        except ValidationError as error:  # a field of the host is empty, or has a NUL in it
            what = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in what["loc"])
            problems.append(
                InputError(
                    f"host `{host.name}`: `{setting}.{where}` is unusable with this host's fields filled in",
                    hint=what["msg"],
                    position=source.at((*place, *what["loc"])),
                )
            )
    return host.model_copy(update=changed)


class _Texts:
    """Fills in one host's fields, and remembers what names nothing."""

    def __init__(self, host: Host, source: Source, problems: list[InputError]) -> None:
        self.host = host
        self.source = source
        self.problems = problems

    def __call__(self, text: str, path: ValuePath) -> str:
        fields = fields_of(self.host)

        def replaced(match: re.Match[str]) -> str:
            name = match[1]
            if name is None:
                return "${"
            if match[0].endswith("}") and name in fields:
                return fields[name]
            self.problems.append(self.unknown(match[0], name, fields, path, match.start()))
            return ""

        return _FIELD.sub(replaced, text)

    def unknown(
        self, written: str, name: str, fields: dict[str, str], path: ValuePath, offset: int
    ) -> InputError:
        """The position is exact for a plain text on one line."""
        start = self.source.at(path)
        position = SourcePosition(start.file, start.line, start.column + offset)
        if not written.endswith("}"):
            return InputError(
                f"not a field of a host: {written}",
                hint="write ${host} or another field, or $${ where a literal ${ is meant",
                position=position,
            )
        return InputError(
            f"host `{self.host.name}` has no `{name}`",
            hint=name_hint(name, fields, "known fields"),
            position=position,
        )


def _filled(value: Any, texts: _Texts, path: ValuePath) -> Any:
    """`value` with all texts filled in; keys stay as they are."""
    if isinstance(value, dict):
        return {key: _filled(item, texts, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, texts, (*path, index)) for index, item in enumerate(value)]
    return texts(value, path) if isinstance(value, str) else value


def _places(host: Host) -> Iterator[ValuePath]:
    """Where a host's settings may stand, the one that wins first."""
    yield ("hosts", host.name)
    yield from (("groups", group) for group in reversed(host.groups))
    yield ("defaults",)


def _place(source: Source, host: Host, setting: str) -> ValuePath:
    """The path of the setting that the host got; one that is written as null gives nothing."""
    for place in _places(host):
        value: Any = source.data
        for part in (*place, setting):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return (*place, setting)
    raise AssertionError(f"{setting} of {host.name} is written nowhere")


def _in_full(value: Any, folder: Path) -> Any:
    """The setting with its files in full. A command's program is a file only where it has a `/`: else PATH
    finds it."""
    if isinstance(value, Console):
        return value.model_copy(update={"file": resolve(value.file, folder)})
    if isinstance(value, QmpPower):
        return value.model_copy(update={"socket": resolve(value.socket, folder)})
    if isinstance(value, CommandPower):
        secrets = {
            name: secret.model_copy(update={"file": resolve(secret.file, folder)}) if secret.file else secret
            for name, secret in value.secrets.items()
        }
        programs = {field: _program(getattr(value, field), folder) for field in ("run", "status")}
        return value.model_copy(update={**programs, "secrets": secrets})
    return value


def _program(words: tuple[str, ...] | None, folder: Path) -> tuple[str, ...] | None:
    if words is None or "/" not in words[0]:
        return words
    return (resolve(words[0], folder), *words[1:])
