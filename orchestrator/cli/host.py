"""`kexec-fleet host`: look at hosts, and remove what we left on them. Hosts are named by a selector."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.doctor import doctor
from orchestrator.cli.options import InventoryFile, JournalFile, Json
from orchestrator.cli.output import ExitCode, error_record, print_json, stdout_console
from orchestrator.domain.errors import HostError, JournalBusy

if TYPE_CHECKING:
    from workers.agent import AgentClient
    from workers.deadline import Deadline

host_app = typer.Typer(no_args_is_help=True, help="Look at hosts, and clean up after us.")
host_app.command("doctor")(doctor)

Hosts = Annotated[str, typer.Argument(help="A host, or a selector such as `web & !canary` or `all`.")]

DEADLINE_SECONDS = 180.0
"""For each host, login included."""


@host_app.command("facts")
def facts(hosts: Hosts, inventory: InventoryFile, as_json: Json = False) -> None:
    """What a rollout would know of each host before it starts; changes nothing."""
    from orchestrator.domain.facts import parse_facts, selector_facts

    def ask(agent: AgentClient, deadline: Deadline) -> Mapping[str, Any]:
        raw = agent.facts(deadline)
        return raw if as_json else selector_facts(parse_facts(raw))

    _on_each(hosts, inventory, ask, as_json)


@host_app.command("clean")
def clean(hosts: Hosts, inventory: InventoryFile, journal: JournalFile = None, as_json: Json = False) -> None:
    """Remove all of ours from hosts; refused while a rollout is at work there.

    What stays until the host's next boot is the number that keeps an overtaken worker out.
    """
    from orchestrator.cli.rollout import open_journal
    from workers.agent import Claim

    opened = open_journal(journal)

    def remove(agent: AgentClient, deadline: Deadline) -> Mapping[str, Any]:
        claim = Claim(
            journal=opened.id,
            rollout="",
            host="",
            attempt=0,
            nonce="",
            fence=opened.fence(),
            boot_id=agent.hello.boot_id,
        )
        agent.claim(claim, deadline)
        return {"removed": list(agent.clean(claim, deadline))}

    def refuse_driven(names: Sequence[str]) -> None:
        # A claim of ours would end what a rollout of the same journal has loaded there.
        if driven := [name for name in names if opened.is_driven(name)]:
            raise JournalBusy(
                f"a rollout of this journal is at work on {', '.join(driven)}",
                hint="wait for it, or end it with `rollout abort`",
            )

    _on_each(hosts, inventory, remove, as_json, check=refuse_driven)


def _on_each(
    selector: str,
    inventory: Path,
    work: Callable[[AgentClient, Deadline], Mapping[str, Any]],
    as_json: bool,
    check: Callable[[Sequence[str]], None] = lambda names: None,
) -> None:
    """Do `work` on each selected host, some at once; print what each answered, exit 1 where one failed."""
    from orchestrator.cli.gather import ask_each
    from orchestrator.domain.selector import select
    from orchestrator.loading.inventory import check_files, load_inventory

    known = load_inventory(inventory)
    chosen = select(selector, known).hosts
    check_files(known, chosen)
    check(chosen)
    answers = ask_each([known.hosts[name] for name in chosen], work, DEADLINE_SECONDS)
    errors = {name: answer for name, answer in answers.items() if isinstance(answer, HostError)}
    if as_json:
        told = {
            name: {"error": error_record(answer)} if isinstance(answer, HostError) else dict(answer)
            for name, answer in answers.items()
        }
        print_json({"hosts": told})
    else:
        for name, answer in answers.items():
            stdout_console().print(_line(name, answer), soft_wrap=True)
    if errors:
        sys.exit(ExitCode.FAILED)


def _line(name: str, answer: Mapping[str, Any] | HostError) -> str:
    if isinstance(answer, HostError):
        return f"{answer}" + (f" ({answer.hint})" if answer.hint else "")
    return f"{name}: " + (", ".join(f"{key}={value}" for key, value in answer.items()) or "nothing known")
