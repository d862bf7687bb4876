"""Playbook files, with `${name}` filled in from the inventory's variables."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.domain.checks.registry import JUDGES
from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.inventory import Inventory
from orchestrator.domain.playbook import Playbook
from orchestrator.domain.values import NAME_PATTERN, name_hint
from orchestrator.domain.values import Path as ValuePath
from orchestrator.loading.paths import resolve
from orchestrator.loading.problems import gathered, validate
from orchestrator.loading.yamlsource import Source, read_source

# `$${` stands for a `${` that is meant.
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_FILES = (("kernel", "on_controller", "image"), ("kernel", "on_controller", "initrd"))


def load_playbook(path: Path, inventory: Inventory) -> Playbook:
    """The playbook in the YAML file `path`. Raises InputError with file:line:column; `others` holds more.

    The controller's file names come out in full: relative ones start at the playbook's folder, or at the
    inventory's where one of its variables begins the name.
    """
    path = Path(path)
    source = read_source(path, "playbook")
    folders = {file: _folder(source, file, path, inventory) for file in _FILES}
    problems: list[InputError] = []
    data = _filled(source, source.data, (), inventory.variables, problems)
    if problems:
        raise gathered(problems)
    for file, folder in folders.items():
        _in_full(data, file, folder)
    playbook = validate(Playbook, source, data)
    _known_checks(playbook, source)
    return playbook.with_origin(source.origin)


def _known_checks(playbook: Playbook, source: Source) -> None:
    """Raises InputError where a check to be skipped does not exist: a slip must not skip nothing."""
    for index, name in enumerate(playbook.checks.skip):
        if name not in JUDGES:
            raise InputError(
                f"no check is called `{name}`",
                hint=name_hint(name, JUDGES, "checks"),
                position=source.at(("checks", "skip", index)),
            )


def _folder(source: Source, file: ValuePath, path: Path, inventory: Inventory) -> Path:
    """The folder that a relative name at `file` starts from."""
    value: object = source.data
    for key in file:
        value = value.get(str(key)) if isinstance(value, dict) else None
    begins_with_variable = isinstance(value, str) and re.match(r"\$\{[^}]", value)
    there = inventory.written_at()
    return Path(there.file if begins_with_variable and there else path).absolute().parent


def _in_full(data: object, file: ValuePath, folder: Path) -> None:
    """Replace the name at `file`, if there is one, by its full form."""
    *parents, last = (str(key) for key in file)
    for key in parents:
        data = data.get(key) if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(name := data.get(last), str) and name:
        data[last] = resolve(name, folder)


def _filled(
    source: Source, value: object, path: ValuePath, variables: dict[str, str], problems: list[InputError]
) -> object:
    """`value` with all `${name}` replaced; what is not known goes to `problems`."""
    if isinstance(value, dict):
        return {key: _filled(source, item, (*path, key), variables, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [
            _filled(source, item, (*path, index), variables, problems) for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "${"
        if not match[0].endswith("}") or not re.match(NAME_PATTERN, name):
            problems.append(
                InputError(
                    f"not a variable: {match[0]}",
                    hint="write ${name}, or $${ where a literal ${ is meant",
                    position=_inside(source, path, match.start()),
                )
            )
        elif name not in variables:
            problems.append(
                InputError(
                    f"the inventory has no variable `{name}`",
                    hint=name_hint(name, variables, "known variables"),
                    position=_inside(source, path, match.start()),
                )
            )
        return variables.get(name, "")

    return _VARIABLE.sub(replaced, value)


def _inside(source: Source, path: ValuePath, offset: int) -> SourcePosition:
    """Position of a character of a text, which is exact for a plain text on one line."""
    start = source.at(path)
    return SourcePosition(start.file, start.line, start.column + offset)
