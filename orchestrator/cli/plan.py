"""`kexec-fleet check`, `plan` and `schema`: everything that can be said before a host is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import InventoryFile, Json, Limit
from orchestrator.cli.output import print_json, stdout_console
from orchestrator.domain.errors import InputError

if TYPE_CHECKING:
    from orchestrator.domain.bootimage import Images
    from orchestrator.domain.facts import HostFacts
    from orchestrator.domain.inventory import Inventory
    from orchestrator.domain.plan import HostPlan, Plan
    from orchestrator.domain.playbook import Playbook

# Reads the facts of the hosts named, changing nothing; a host that cannot be asked is left out.
GatherFacts = Callable[["Inventory", Sequence[str]], Mapping[str, "HostFacts"]]


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
    """Validate an inventory, and a playbook with the files that it names. Touches no host."""
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
    console = stdout_console()
    console.print(f"{inventory}: good: {report['hosts']} hosts, {report['groups']} groups")
    if playbook is not None:
        from orchestrator.domain.plan import describe_target

        console.print(f"{playbook}: good: target {describe_target(loaded.playbook, loaded.images)}")


def plan_command(
    context: typer.Context,
    playbook: Annotated[Path, typer.Argument(help="Playbook file.")],
    inventory: InventoryFile,
    limit: Limit = None,
    as_json: Json = False,
    facts: Annotated[
        bool, typer.Option("--facts/--no-facts", help="Ask the hosts (reading only) what they can do.")
    ] = False,
) -> None:
    """Print waves and, per host, what would be done and why a host is skipped. Changes nothing."""
    from orchestrator.domain.plan import choose_hosts, make_plan

    loaded = load_all(playbook, inventory)
    gathered: Mapping[str, HostFacts] | None = None
    if facts:
        gather: GatherFacts | None = context.obj
        if gather is None:
            raise InputError("`--facts` is not available here", hint="leave it out")
        hosts = choose_hosts(loaded.playbook, loaded.inventory, limit).hosts
        gathered = gather(loaded.inventory, hosts)
    plan = make_plan(loaded.playbook, loaded.inventory, loaded.images, limit=limit, facts=gathered)
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    """The plan as text: a head, then the hosts wave by wave, then those left out."""
    console = stdout_console()
    hosts = sum(len(wave) for wave in plan.waves)
    console.print(f"{plan.playbook}: {_count(hosts, 'host')} in {_count(len(plan.waves), 'wave')}")
    console.print(f"  target: {plan.target}")
    console.print(f"  jump: {plan.jump}, at most {_count(plan.at_once, 'host')} at once")
    console.print(f"  failure budget: {plan.may_fail} (failed, unreachable or lost) of {hosts}")
    if not plan.with_facts:
        console.print("  no host was asked: what each can do is seen when it is (or now, with --facts)")
    for number in range(1, len(plan.waves) + 1):
        here = [host for host in plan.hosts if host.wave == number]
        console.print(f"\nwave {number}: {_count(len(here), 'host')}")
        _print_hosts(here)
    if left_out := [host for host in plan.hosts if host.wave is None]:
        console.print("\nnot in this rollout")
        _print_hosts(left_out)


def _print_hosts(hosts: Sequence[HostPlan]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for host in hosts:
        lines = [host.reason] if host.reason else []
        lines += (
            host.steps if len(host.steps) < 2 else [f"{n}. {text}" for n, text in enumerate(host.steps, 1)]
        )
        cells = [f"  {host.host}", host.address, host.action, "\n".join([*lines, *host.notes])]
        table.add_row(*(Text(cell) for cell in cells))
    stdout_console().print(table)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def schema_command(
    name: Annotated[SchemaName, typer.Argument(help="Which file's schema.")] = SchemaName.PLAYBOOK,
) -> None:
    """Print the JSON Schema of a playbook or an inventory, for editors."""
    from orchestrator.loading.schema import inventory_schema, playbook_schema

    print_json(playbook_schema() if name is SchemaName.PLAYBOOK else inventory_schema())
