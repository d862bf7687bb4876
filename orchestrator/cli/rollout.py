"""`kexec-fleet rollout`: run, list, show, events, resume, abort. Wires controller, journal and workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Broker, InventoryFile, JournalFile, Json, Limit
from orchestrator.cli.output import ExitCode, errors_to_exit, print_json, stderr_console, stdout_console
from orchestrator.domain.rollout import TERMINAL, Phase, RolloutStatus

if TYPE_CHECKING:
    from orchestrator.domain.events import RolloutRecord
    from orchestrator.journal.store import Journal

rollout_app = typer.Typer(no_args_is_help=True, help="Run a playbook over a fleet, and look at what it did.")

RolloutId = Annotated[str, typer.Argument(help="A rollout's id, the beginning of one, or `last`.")]

_EXIT = {
    RolloutStatus.DONE: ExitCode.DONE,
    RolloutStatus.FAILED: ExitCode.FAILED,
    RolloutStatus.ABORTED: ExitCode.FAILED,
    RolloutStatus.PAUSED: ExitCode.INCONCLUSIVE,
    RolloutStatus.INTERRUPTED: ExitCode.INTERRUPTED,
}


@rollout_app.command("run")
def run(
    playbook: Annotated[Path, typer.Argument(help="The playbook.")],
    inventory: InventoryFile,
    limit: Limit = None,
    journal: JournalFile = None,
    broker: Broker = None,
    as_json: Json = False,
) -> None:
    """Run a playbook: wave by wave, until every host is on the target or the failure budget is spent."""
    with errors_to_exit(as_json=as_json):
        from orchestrator.cli.prepare import prepare

        prepared = prepare(playbook, inventory, limit)
        opened = open_journal(journal)
        broker_url = _broker(broker)
        record = opened.create_rollout(prepared.spec, prepared.waves)
        stderr_console().print(f"rollout {record.id}: {prepared.spec.playbook.name}")
        sys.exit(_drive(opened, record.id, broker_url, as_json))


@rollout_app.command("resume")
def resume(
    rollout: RolloutId = "last",
    journal: JournalFile = None,
    broker: Broker = None,
    as_json: Json = False,
) -> None:
    """Go on with a rollout that was interrupted; hosts that were lost are looked at again first."""
    with errors_to_exit(as_json=as_json):
        opened = open_journal(journal, create=False)
        record = opened.find(rollout)
        sys.exit(_drive(opened, record.id, _broker(broker), as_json))


@rollout_app.command("abort")
def abort(rollout: RolloutId = "last", journal: JournalFile = None) -> None:
    """Begin no attempt any more; those that have begun come to their end. No resume takes that back."""
    with errors_to_exit():
        opened = open_journal(journal, create=False)
        stderr_console().print(_abort(opened, opened.find(rollout)), soft_wrap=True)


@rollout_app.command("list")
def list_rollouts(journal: JournalFile = None, as_json: Json = False) -> None:
    """All rollouts of this journal, the newest first."""
    with errors_to_exit(as_json=as_json):
        from rich.table import Table

        opened = open_journal(journal, create=False)
        rows = opened.rollouts()
        if as_json:
            print_json([row.model_dump(mode="json") for row in rows])
            return
        table = Table("id", "name", "status", "hosts", "started (UTC)", "why")
        for row in rows:
            hosts = sum(len(wave) for wave in row.waves)
            running = row.status is RolloutStatus.RUNNING and opened.holder(row.id) is None
            status = "interrupted" if running else str(row.status)
            table.add_row(row.id, row.name, status, str(hosts), _utc(row.created_at), row.reason)
        stdout_console().print(table)


@rollout_app.command("show")
def show(rollout: RolloutId = "last", journal: JournalFile = None, as_json: Json = False) -> None:
    """One rollout: each host's path, attempts, hot phase, outage and verdicts."""
    with errors_to_exit(as_json=as_json):
        opened = open_journal(journal, create=False)
        _report(opened, opened.find(rollout), as_json)


@rollout_app.command("events")
def events(
    rollout: RolloutId = "last",
    host: Annotated[str | None, typer.Option("--host", help="Only this host's events.")] = None,
    journal: JournalFile = None,
    as_json: Json = False,
) -> None:
    """Everything that was journaled, in order; with --json one JSON object a line."""
    with errors_to_exit(as_json=as_json):
        opened = open_journal(journal, create=False)
        record = opened.find(rollout)
        if host is not None:
            opened.host(record.id, host)
        for event in opened.events(record.id, host=host):
            if as_json:
                print(event.model_dump_json())
                continue
            where = f"{event.host}#{event.attempt}" if event.host else "rollout"
            told = json.dumps(event.data, sort_keys=True)
            short = told if len(told) <= 160 else told[:157] + "..."
            stdout_console().print(f"{_utc(event.at)} {where} {event.kind} {short}", soft_wrap=True)


def open_journal(path: Path | None, *, create: bool = True) -> Journal:
    """The journal that an option or the environment names."""
    from orchestrator.journal.store import Journal
    from workers.settings import journal_path

    return Journal.open(path or journal_path(os.environ, Path.home()), create=create)


def _broker(option: str | None) -> str | None:
    """The broker's URL, where one is wanted and answers."""
    from workers.settings import broker_url, require_no_password

    url = require_no_password(option, "--broker") if option else broker_url(os.environ)
    if url is not None:
        from orchestrator.control.dispatch import require_broker

        require_broker(url)
    return url


def _abort(journal: Journal, record: RolloutRecord) -> str:
    """Ask for the abort; where nothing is in flight and nobody runs the rollout it is over at once."""
    if record.status in (RolloutStatus.DONE, RolloutStatus.ABORTED):
        return f"rollout {record.id} has ended already: {record.status}"
    journal.request_abort(record.id)
    hosts = journal.hosts(record.id)
    in_flight = [h.host for h in hosts if h.phase not in TERMINAL | {Phase.PENDING, Phase.LOST}]
    lease = journal.acquire(record.id)
    if lease is None:
        return f"rollout {record.id}: abort requested; no attempt begins any more: {_listed(in_flight)}"
    try:
        if in_flight:
            return (
                f"rollout {record.id}: abort requested; nobody is running it, and {_listed(in_flight)}: "
                f"`kexec-fleet rollout resume {record.id}` brings them to an end and starts nothing"
            )
        journal.set_status(lease, RolloutStatus.ABORTED, "aborted on request; nothing was in flight")
        return f"rollout {record.id}: aborted; nothing was in flight"
    finally:
        journal.release(lease)


def _listed(in_flight: list[str]) -> str:
    return f"in flight: {', '.join(in_flight)}" if in_flight else "nothing is in flight"


def _drive(journal: Journal, rollout: str, broker: str | None, as_json: bool) -> int:
    from orchestrator.cli.progress import Progress
    from orchestrator.control.controller import Controller
    from orchestrator.control.dispatch import CeleryDispatcher, Dispatcher, ThreadDispatcher
    from workers.drive.drive import drive_host
    from workers.wiring import make_tools

    with _stop_on_signals() as stop:
        dispatcher: Dispatcher
        if broker is not None:
            dispatcher = CeleryDispatcher(broker, journal.id)
        else:
            tools = make_tools(journal, stop.is_set)
            at_once = journal.spec(rollout).playbook.at_once
            dispatcher = ThreadDispatcher(lambda r, h: drive_host(tools, r, h), at_once)
        for name in (name for wave in journal.rollout(rollout).waves for name in wave):
            if journal.is_driven(name):
                stderr_console().print(f"{name}: somebody else is driving it; waiting for that to end")
        with Progress(stderr_console()) as progress:
            controller = Controller(journal, dispatcher, stopping=stop.is_set, observe=progress)
            record = controller.run(rollout)
    _report(journal, record, as_json)
    return _exit_code(journal, record)


def _exit_code(journal: Journal, record: RolloutRecord) -> int:
    from orchestrator.report.summary import inconclusive_hosts

    if record.status is RolloutStatus.DONE and inconclusive_hosts(journal.hosts(record.id)):
        return ExitCode.INCONCLUSIVE
    return _EXIT[record.status]


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for a clean stop; the second one kills, as one expects."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.set()
        stderr_console().print(
            "stopping: hosts before their jump are let go, dark ones are left for `rollout resume`"
        )
        signal.signal(number, signal.SIG_DFL)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


MOST_RISKS = 8
"""Lines of risks that are printed: a fleet's would hide its troubles."""


def _report(journal: Journal, record: RolloutRecord, as_json: bool) -> None:
    from orchestrator.cli.progress import final_table
    from orchestrator.report.summary import risk_lines, summary, trouble_lines

    hosts = journal.hosts(record.id)
    if as_json:
        print_json(summary(record, hosts))
        return
    stdout_console().print(final_table(record, hosts))
    if record.reason:
        stdout_console().print(f"{record.status}: {record.reason}")
    risks = [line for host in hosts for line in risk_lines(host)]
    if len(risks) > MOST_RISKS:
        risks[MOST_RISKS:] = [f"{len(risks) - MOST_RISKS} more risks taken: `rollout show --json` has them"]
    for line in [*(line for host in hosts for line in trouble_lines(host)), *risks]:
        stdout_console().print(line, soft_wrap=True)


def _utc(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
