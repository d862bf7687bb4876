"""`kexec-fleet check`, `plan` and `schema`: everything that can be said before a host is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import InventoryFile, Json, Limit
from orchestrator.cli.output import print_json, stdout_console

if TYPE_CHECKING:
    from orchestrator.cli.gather import Gathered
    from orchestrator.domain.bootimage import Images
    from orchestrator.domain.inventory import Inventory
    from orchestrator.domain.plan import HostPlan, Plan
    from orchestrator.domain.playbook import Playbook


class SchemaName(StrEnum):
    """What `schema` can print."""

    PLAYBOOK = "playbook"
    INVENTORY = "inventory"


@dataclass(frozen=True)
class Loaded:
    """The files of one rollout, all validated."""

    inventory: Inventory
    playbook: Playbook
    images: Images


def load_all(playbook_path: Path, inventory_path: Path) -> Loaded:
    """Load and check all files that a rollout reads, its command line and login files. Raises InputError."""
    from orchestrator.domain.plan import check_command_line, choose_hosts
    from orchestrator.loading.images import inspect_images
    from orchestrator.loading.inventory import check_files, load_inventory
    from orchestrator.loading.playbook import load_playbook

    inventory = load_inventory(inventory_path)
    playbook = load_playbook(playbook_path, inventory)
    check_files(inventory, choose_hosts(playbook, inventory).hosts)
    images = inspect_images(playbook)
    check_command_line(playbook, images)
    return Loaded(inventory, playbook, images)


def check_command(
    inventory: InventoryFile,
    playbook: Annotated[Path | None, typer.Argument(help="Playbook file.")] = None,
    as_json: Json = False,
) -> None:
    """Validate an inventory and a playbook.

    With a playbook also the files that it names. Touches no host.
    """
    from orchestrator.loading.inventory import check_files, load_inventory

    report: dict[str, Any] = {"inventory": str(inventory)}
    if playbook is None:
        hosts = load_inventory(inventory)
        check_files(hosts, hosts.hosts)
        report |= {"hosts": len(hosts.hosts), "groups": len(hosts.groups)}
    else:
        loaded = load_all(playbook, inventory)
        hosts = loaded.inventory
        report |= {"hosts": len(hosts.hosts), "groups": len(hosts.groups), "playbook": str(playbook)}
        report |= {"name": loaded.playbook.name, "images": loaded.images.model_dump(mode="json")}
    if as_json:
        print_json(report)
        return
    lines = [f"{inventory}: good: {_count(report['hosts'], 'host')}, {_count(report['groups'], 'group')}"]
    if playbook is not None:
        from orchestrator.domain.plan import describe_target

        lines.append(f"{playbook}: good: target {describe_target(loaded.playbook, loaded.images)}")
    stdout_console().print("\n".join(lines), soft_wrap=True)


def plan_command(
    playbook: Annotated[Path, typer.Argument(help="Playbook file.")],
    inventory: InventoryFile,
    limit: Limit = None,
    as_json: Json = False,
    facts: Annotated[
        bool, typer.Option("--facts/--no-facts", help="Ask the hosts (reading only) what they can do.")
    ] = False,
) -> None:
    """Print waves and what would be done to each host.

    And why a host is skipped or refused. Changes nothing; asks the hosts only with --facts.
    """
    from orchestrator.domain.plan import choose_hosts, make_plan

    loaded = load_all(playbook, inventory)
    gathered: Gathered | None = None
    if facts:
        from orchestrator.cli.gather import gather_facts

        chosen = choose_hosts(loaded.playbook, loaded.inventory, limit).hosts
        deadlines = loaded.playbook.deadlines
        hosts = [loaded.inventory.hosts[name] for name in chosen]
        gathered = gather_facts(hosts, deadlines.connect + deadlines.facts)
    plan = make_plan(
        loaded.playbook,
        loaded.inventory,
        loaded.images,
        limit=limit,
        facts=gathered.facts if gathered else None,
        unasked=gathered.unasked if gathered else None,
    )
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    """The plan as text: a head, then the hosts wave by wave, then those left out."""
    hosts = sum(len(wave) for wave in plan.waves)
    lines = [
        f"{plan.playbook}: {_count(hosts, 'host')} in {_count(len(plan.waves), 'wave')}",
        f"  target: {plan.target}",
        f"  jump: {plan.jump}, at most {_count(plan.at_once, 'host')} at once",
        f"  failure budget: {plan.may_fail} (failed, unreachable or lost) of {hosts}",
    ]
    if not plan.with_facts:
        lines.append("  no host was asked: what each can do is seen when it is (or now, with --facts)")
    for number in range(1, len(plan.waves) + 1):
        here = [host for host in plan.hosts if host.wave == number]
        lines += ["", f"wave {number}: {_count(len(here), 'host')}", *_host_lines(here)]
    if left_out := [host for host in plan.hosts if host.wave is None]:
        lines += ["", "not in this rollout", *_host_lines(left_out)]
    stdout_console().print("\n".join(lines), soft_wrap=True)


def _host_lines(hosts: Sequence[HostPlan]) -> list[str]:
    """A line a host, in columns, and its further steps and notes below the last column."""
    widths = [max(len(text) for text in column) for column in zip(*map(_columns, hosts), strict=True)]
    lines = []
    for host in hosts:
        front = "  ".join(text.ljust(width) for text, width in zip(_columns(host), widths, strict=True))
        texts = [*filter(None, [host.reason]), *_attempts(host.steps), *host.notes]
        lines.append(f"  {front}  {texts[0]}")
        lines += [" " * (len(front) + 4) + text for text in texts[1:]]
    return lines


def _attempts(steps: Sequence[str]) -> list[str]:
    """A line for each run of equal steps, numbered where there are more than one."""
    lines = []
    number = 1
    for text, run in groupby(steps):
        last = number + len(list(run)) - 1
        numbers = f"{number}." if last == number else f"{number}.-{last}."
        lines.append(f"{numbers} {text}" if len(steps) > 1 else text)
        number = last + 1
    return lines


def _columns(host: HostPlan) -> tuple[str, str, str]:
    return host.host, host.address, host.action


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def schema_command(
    name: Annotated[SchemaName, typer.Argument(help="Which file's schema.")] = SchemaName.PLAYBOOK,
) -> None:
    """Print the JSON Schema of a file, for editors."""
    from orchestrator.loading.schema import inventory_schema, playbook_schema

    print_json(playbook_schema() if name is SchemaName.PLAYBOOK else inventory_schema())
