"""`kexec-fleet worker`: a Celery worker that drives hosts for rollouts started with a broker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Broker, JournalFile
from orchestrator.cli.output import errors_to_exit
from orchestrator.domain.errors import InputError


def worker_command(
    broker: Broker = None,
    journal: JournalFile = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Hosts driven at once.")] = 10,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Take hosts from the broker and drive them, until told to stop."""
    with errors_to_exit():
        from workers.settings import broker_url, journal_path, require_no_password

        url = require_no_password(broker, "--broker") if broker else broker_url(os.environ)
        if url is None:
            raise InputError("no broker", hint="give --broker redis://HOST:PORT/N, or set KEXEC_FLEET_BROKER")
        path = journal or journal_path(os.environ, Path.home())
        if not path.exists():
            raise InputError(
                f"no journal at {path}", hint="start a rollout first, or name its journal with --journal"
            )
        from workers.app import worker

        worker(concurrency, url, path, log_level)
