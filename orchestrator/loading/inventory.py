"""Inventory files: groups and defaults folded into hosts.

What a host says wins over its groups, a group over the groups that contain it, any group over `defaults`; of
two groups that do not contain each other the later one in the file wins. `labels` and `variables` add up key
by key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.inventory import GroupEntry, Host, HostSettings, Inventory, InventoryFile
from orchestrator.domain.values import name_hint
from orchestrator.loading.hostfields import fill
from orchestrator.loading.paths import resolve
from orchestrator.loading.problems import gathered, validate
from orchestrator.loading.yamlsource import Source, read_source

_ADDED_UP = ("labels", "variables")
_FILES = ("key", "known_hosts")


def load_inventory(path: Path) -> Inventory:
    """The inventory in the YAML file `path`. Raises InputError with file:line:column; `others` holds more."""
    path = Path(path)
    source = read_source(path, "inventory")
    written = validate(InventoryFile, source, source.data)
    members = _members(written, source)
    depths = _depths(written, source)
    hosts: dict[str, Host] = {}
    for name, entry in written.hosts.items():
        groups = sorted(
            (group for group in members if name in members[group]), key=lambda group: depths[group]
        )
        layers = [written.defaults, *(written.groups[group] for group in groups), entry]
        settings = _folded(layers, path.absolute().parent)
        variables = {**written.variables, **settings.pop("variables", {})}
        hosts[name] = Host(
            **{"address": name, **settings, "name": name, "groups": tuple(groups), "variables": variables}
        )
    if problems := _same_place(hosts, source):
        raise gathered(problems)
    hosts = fill(hosts, source, path.absolute().parent)
    inventory = Inventory(
        hosts=hosts,
        groups={group: tuple(name for name in hosts if name in members[group]) for group in members},
        variables={**written.defaults.variables, **written.variables},
    )
    return inventory.with_origin(source.origin)


def check_files(inventory: Inventory, hosts: Iterable[str]) -> None:
    """That the files which these hosts' logins need are there. Raises InputError."""
    problems = {}
    for host in (inventory.hosts[name] for name in hosts):
        for field in _FILES:
            name = getattr(host, field)
            if name and name not in problems and not Path(name).is_file():
                problems[name] = InputError(
                    f"host `{host.name}`: the `{field}` file {name} is not there",
                    hint="a relative name is relative to the inventory's folder",
                    position=_where(inventory, host, field),
                )
    if problems:
        raise gathered(list(problems.values()))


def _where(inventory: Inventory, host: Host, field: str) -> SourcePosition | None:
    """Position of a setting: in the host, else in the innermost group that has it, else in the defaults."""
    places = [("hosts", host.name), *(("groups", group) for group in reversed(host.groups)), ("defaults",)]
    return next((at for place in places if (at := inventory.written_exactly(*place, field))), None)


def _folded(layers: Iterable[HostSettings], folder: Path) -> dict[str, Any]:
    """The settings of all layers, later ones winning; file names in full."""
    result: dict[str, Any] = {}
    for layer in layers:
        for field in HostSettings.model_fields:
            value = getattr(layer, field)
            if field in _ADDED_UP:
                result[field] = {**result.get(field, {}), **value}
            elif value is not None:
                result[field] = value
    for field in _FILES:
        if field in result:
            result[field] = resolve(result[field], folder)
    return result


def _members(written: InventoryFile, source: Source) -> dict[str, set[str]]:
    """The hosts of each group, with its children's. Raises InputError for a name that is not there."""
    problems: list[InputError] = []
    for group, entry in written.groups.items():
        if group in written.hosts:
            problems.append(
                InputError(
                    f"`{group}` is a group and a host",
                    hint="a selector could not tell them apart: rename one",
                    position=source.at_key(("groups", group)),
                )
            )
        for index, host in enumerate(entry.hosts):
            if host not in written.hosts:
                problems.append(
                    InputError(
                        f"group `{group}` names the host `{host}`, which is not in `hosts`",
                        hint=name_hint(host, written.hosts, "known hosts"),
                        position=source.at(("groups", group, "hosts", index)),
                    )
                )
        for index, child in enumerate(entry.children):
            if child not in written.groups:
                problems.append(
                    InputError(
                        f"group `{group}` names the group `{child}`, which is not in `groups`",
                        hint=name_hint(child, written.groups, "known groups"),
                        position=source.at(("groups", group, "children", index)),
                    )
                )
    if problems:
        raise gathered(problems)
    return {group: set(_hosts_below(written.groups, group, {group})) for group in written.groups}


def _hosts_below(groups: dict[str, GroupEntry], group: str, seen: set[str]) -> Iterable[str]:
    """The hosts of a group and its children; a cycle is left to _depths to report."""
    yield from groups[group].hosts
    for child in groups[group].children:
        if child not in seen:
            seen.add(child)
            yield from _hosts_below(groups, child, seen)


def _depths(written: InventoryFile, source: Source) -> dict[str, int]:
    """How many groups contain each group, at most: outer ones first. Raises InputError for a cycle."""
    depths = dict.fromkeys(written.groups, 0)
    for _round in range(len(depths) + 1):
        changed = False
        for group, entry in written.groups.items():
            for child in entry.children:
                if depths[child] <= depths[group]:
                    depths[child] = depths[group] + 1
                    changed = True
        if not changed:
            return depths
    deepest = max(depths, key=lambda group: depths[group])
    raise InputError(
        f"the group `{deepest}` contains itself through `children`",
        hint="take one of the `children` away",
        position=source.at_key(("groups", deepest, "children")),
    )


def _same_place(hosts: dict[str, Host], source: Source) -> list[InputError]:
    """Two names for one address and port (through the same jump host) would jump one host twice."""
    problems: list[InputError] = []
    first: dict[tuple[str, int, str | None], str] = {}
    for host in hosts.values():
        place = (host.address.lower(), host.port, host.proxy_jump)
        if place in first:
            problems.append(
                InputError(
                    f"`{host.name}` is the same host as `{first[place]}`: {host.address} port {host.port}",
                    hint="keep one of the two, or correct address or port",
                    position=source.at_key(("hosts", host.name)),
                )
            )
        first.setdefault(place, host.name)
    return problems
