"""`kexec-fleet host`: look at hosts, and remove what we left on them. Hosts are named by a selector."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import InventoryFile, JournalFile, Json
from orchestrator.cli.output import ExitCode, error_record, errors_to_exit, print_json, stdout_console
from orchestrator.domain.errors import HostError

if TYPE_CHECKING:
    from orchestrator.domain.inventory import Host
    from workers.agent import AgentClient
    from workers.deadline import Deadline

host_app = typer.Typer(no_args_is_help=True, help="Look at hosts, and clean up after us.")

Hosts = Annotated[str, typer.Argument(help="A host, or a selector such as `web & !canary` or `all`.")]
DEADLINE_SECONDS = 120.0
AT_ONCE = 16


@host_app.command("facts")
def facts(hosts: Hosts, inventory: InventoryFile, as_json: Json = False) -> None:
    """What a rollout would know of each host before it starts; changes nothing."""

    def ask(agent: AgentClient, host: Host, deadline: Deadline) -> dict[str, Any]:
        from orchestrator.domain.facts import parse_facts, selector_facts

        raw = dict(agent.facts(deadline))
        return raw if as_json else dict(selector_facts(parse_facts(raw)))

    _on_each(hosts, inventory, ask, as_json)


@host_app.command("clean")
def clean(hosts: Hosts, inventory: InventoryFile, journal: JournalFile = None, as_json: Json = False) -> None:
    """Remove artifacts and run state of ours; refused while a rollout is at work there."""
    with errors_to_exit(as_json=as_json):
        from orchestrator.cli.rollout import open_journal

        opened = open_journal(journal)

    def remove(agent: AgentClient, host: Host, deadline: Deadline) -> dict[str, Any]:
        from workers.agent import Claim

        claim = Claim(
            journal=opened.id,
            rollout="",
            host=host.name,
            attempt=0,
            nonce="",
            fence=opened.fence(),
            boot_id=agent.hello.boot_id,
        )
        return {"removed": list(agent.clean(claim, deadline))}

    _on_each(hosts, inventory, remove, as_json)


def _on_each(
    selector: str,
    inventory: Path,
    work: Callable[[AgentClient, Host, Deadline], dict[str, Any]],
    as_json: bool,
) -> None:
    """Do `work` on each selected host, some at once; print what each answered, exit 1 where one failed."""
    with errors_to_exit(as_json=as_json):
        from orchestrator.domain.selector import select
        from orchestrator.loading.inventory import load_inventory

        known = load_inventory(inventory)
        chosen = [known.hosts[name] for name in select(selector, known).hosts]
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            given = pool.map(lambda host: _one(host, work), chosen)
            answers = {host.name: answer for host, answer in zip(chosen, given, strict=True)}
        if as_json:
            print_json({"hosts": answers})
        else:
            for name, answer in answers.items():
                told = answer.get("error", {}).get("message") or ", ".join(
                    f"{key}={value}" for key, value in answer.items()
                )
                stdout_console().print(f"{name}: {told}", soft_wrap=True)
        if any("error" in answer for answer in answers.values()):
            sys.exit(ExitCode.FAILED)


def _one(host: Host, work: Callable[[AgentClient, Host, Deadline], dict[str, Any]]) -> dict[str, Any]:
    from workers.agent import AgentClient
    from workers.agentbundle import bundle
    from workers.connection.ssh import SshConnector
    from workers.deadline import Deadline

    deadline = Deadline.after(DEADLINE_SECONDS)
    try:
        connection = SshConnector().connect(host, deadline)
        try:
            agent = AgentClient.start(connection, host, bundle(), deadline)
            return work(agent, host, deadline)
        finally:
            connection.close()
    except HostError as error:
        return {"error": error_record(error)}
