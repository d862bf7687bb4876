"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

InventoryFile = Annotated[Path, typer.Option("--inventory", "-i", help="The inventory of the fleet.")]
Limit = Annotated[
    str | None, typer.Option("--limit", "-l", help="A selector that narrows the playbook's hosts down.")
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal", help="The journal's file; else KEXEC_FLEET_JOURNAL, else one in the state folder."
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        help="Have Celery workers drive the hosts: redis://HOST:PORT/N. "
        "One with a password belongs into KEXEC_FLEET_BROKER or a file that KEXEC_FLEET_BROKER_FILE names.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else there.")]
