"""Scenario files -> Scenario: the package's own by name, a user's by path. Errors carry file:line:column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from orchestrator.domain.errors import InputError
from orchestrator.domain.playbook import Playbook
from orchestrator.domain.values import Path as ValuePath
from orchestrator.domain.values import name_hint
from orchestrator.lab.scenarios.faultspec import FaultSpec
from orchestrator.lab.scenarios.spec import Scenario
from orchestrator.loading.problems import validate
from orchestrator.loading.yamlsource import Source, read_source

OURS = ("name", "hosts", "kernel", "waves", "at_once", "partial")
"""Keys of a playbook that the runner writes itself."""

KINDS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(FaultSpec)
}


def shipped() -> dict[str, Path]:
    """The scenarios that come with the package, by name, in the order of their names."""
    folder = Path(str(resources.files("orchestrator.lab.scenarios").joinpath("data")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def choose(words: Sequence[str]) -> list[Scenario]:
    """What the command line named: names of shipped scenarios or files; none: all that are shipped."""
    known = shipped()
    paths = []
    for word in words or known:
        if word in known:
            paths.append(known[word])
        elif "/" in word or word.endswith((".yaml", ".yml")):
            paths.append(Path(word))
        else:
            raise InputError(
                f"there is no scenario {word!r}",
                hint=f"{name_hint(word, known, 'scenarios')}; or give a file, with a / in its name",
            )
    scenarios = [load_scenario(path) for path in paths]
    names: set[str] = set()
    for scenario, path in zip(scenarios, paths, strict=True):
        if scenario.name in names:
            raise InputError(f"the scenario name {scenario.name!r} is there twice", hint=f"see {path}")
        names.add(scenario.name)
    return scenarios


def load_scenario(path: Path) -> Scenario:
    """One scenario file. Raises InputError with file:line:column; `others` holds more."""
    source = read_source(Path(path), "scenario")
    for where, fault in _faults(source):
        _check_fault(source, where, fault)
    scenario = validate(Scenario, source, source.data)
    data = source.data if isinstance(source.data, dict) else {}
    places: list[ValuePath] = [("policy",), *(("runs", n, "policy") for n in range(len(scenario.runs)))]
    for place in places:
        if isinstance(policy := _value(data, place), dict):
            _check_policy(source, place, policy)
    return scenario


def _value(data: Any, path: ValuePath) -> Any:
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int):
            data = data[key] if key < len(data) else None
        else:
            return None
    return data


def _faults(source: Source) -> Iterator[tuple[ValuePath, dict[str, Any]]]:
    """Each fault's place and mapping."""
    data = source.data if isinstance(source.data, dict) else {}
    runs = data.get("runs")
    places: list[ValuePath] = [("fault",)]
    places += [("runs", n, "fault") for n in range(len(runs))] if isinstance(runs, list) else []
    for place in places:
        if isinstance(fault := _value(data, place), dict):
            yield place, fault


def _check_fault(source: Source, place: ValuePath, fault: dict[str, Any]) -> None:
    """Kind and keys, said better than pydantic says it of a union; and positions as its errors name them."""
    kind = fault.get("kind")
    if kind not in KINDS:
        what = "the fault has no `kind`" if kind is None else f"no fault is called {kind!r}"
        raise InputError(
            what, hint=name_hint(str(kind or ""), KINDS, "kinds"), position=source.at((*place, "kind"))
        )
    fields = KINDS[kind].model_fields
    for key in fault:
        if key not in fields:
            raise InputError(
                f"unknown key `{key}` in the fault {kind}",
                hint=name_hint(key, fields, "known keys"),
                position=source.at_key((*place, key)),
            )
        # Pydantic puts the tag of a discriminated union into the place of an error.
        source.values[(*place, kind, key)] = source.at((*place, key))


def _check_policy(source: Source, place: ValuePath, policy: dict[str, Any]) -> None:
    """As the playbook's own loader would find it, at the place where the user wrote it."""
    for key in policy:
        if key in OURS:
            raise InputError(
                f"`{key}` is set by the runner itself",
                hint=f"leave {', '.join(OURS)} out",
                position=source.at_key((*place, key)),
            )
    inner = Source(
        source.file,
        policy,
        {path[len(place) :]: at for path, at in source.values.items() if path[: len(place)] == place},
        {path[len(place) :]: at for path, at in source.keys.items() if path[: len(place)] == place},
    )
    validate(Playbook, inner, {"name": "scenario", "kernel": {"on_controller": {"image": "/k"}}, **policy})
