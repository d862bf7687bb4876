"""The `kexec-fleet` command: puts the sub-commands together, and turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.host import host_app
from orchestrator.cli.lab import lab_app
from orchestrator.cli.output import errors_to_exit
from orchestrator.cli.plan import check_command, plan_command, schema_command
from orchestrator.cli.rollout import rollout_app
from orchestrator.cli.worker import worker_command

# Plain texts: what goes wrong must be found by grep, and importing rich's markup costs every start 50 ms.
app = typer.Typer(
    name="kexec-fleet",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Move a fleet of Linux hosts onto a new kernel by kexec: in waves, measured and verified.",
)
app.command("check")(check_command)
app.command("plan")(plan_command)
app.command("schema")(schema_command)
app.command("worker")(worker_command)
app.add_typer(rollout_app, name="rollout")
app.add_typer(host_app, name="host")
app.add_typer(lab_app, name="lab")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kexec-fleet {version('kexec-fleet')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Move a fleet of Linux hosts onto a new kernel by kexec: in waves, measured and verified."""


def main() -> None:
    """The console command."""
    with errors_to_exit(as_json="--json" in sys.argv[1:]):
        app()
