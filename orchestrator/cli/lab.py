"""`kexec-fleet lab`: a fleet of QEMU VMs with stock kernels to try everything on."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.cli.labtest import lab_test
from orchestrator.domain.errors import InputError, KexecFleetError
from orchestrator.lab import console as consoles
from orchestrator.lab.bootdefault import set_boot_default
from orchestrator.lab.fleet import LabFleet, VmStatus
from orchestrator.lab.initramfs import InitramfsStore
from orchestrator.lab.kernels import AvailableKernel, KernelStore
from orchestrator.lab.progress import ProgressEvent, ProgressKind
from orchestrator.lab.spec import (
    AccelChoice,
    HostSpec,
    InitKind,
    LabOptions,
    parse_cma,
    parse_hosts,
    parse_memory,
    parse_size,
)

lab_app = typer.Typer(
    no_args_is_help=True, help="A fleet of virtual machines with stock kernels, on this machine."
)

# A table that is piped shows whole words.
PIPE_WIDTH = 200

lab_app.command("test")(lab_test)

Name = Annotated[str, typer.Option("--name", help="Which lab; several can be up at once.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

# What a host that is there keeps; giving another value for it is an error.
MADE_WITH = ("memory", "cma", "cpus", "init", "shared_memory")
STOPS = (signal.SIGINT, signal.SIGTERM)

MARKS = {
    ProgressKind.STEP: ("…", "cyan"),
    ProgressKind.DONE: ("✓", "green"),
    ProgressKind.NOTICE: ("!", "yellow"),
}


def _show_progress(event: ProgressEvent) -> None:
    """Progress goes to standard error: what a script reads on standard output is only the result."""
    mark, colour = MARKS[event.kind]
    where = f"{event.host}: " if event.host else ""
    # A guest's console may hold anything; it shall not steer the terminal.
    words = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in event.text)
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"{mark} {where}{words}", style=colour))


@lab_app.command()
def up(
    context: typer.Context,
    hosts: Annotated[
        str | None,
        typer.Option(help="NAME=KERNEL,…: a version prefix, /path/vmlinuz or /path/vmlinuz+/path/modules."),
    ] = None,
    target: Annotated[str, typer.Option(help="Kernel to move to; default: the newest with CMA.")] = "",
    cma: Annotated[str, typer.Option(help="cma= of the guests' command line; none: leave it out.")] = "384M",
    memory: Annotated[str, typer.Option(help="Memory of each VM.")] = "2G",
    cpus: Annotated[int, typer.Option(min=1, max=64, help="Processors of each VM.")] = 1,
    init: Annotated[
        InitKind, typer.Option(help="mini boots in seconds; systemd is the full thing.")
    ] = InitKind.MINI,
    accel: Annotated[
        AccelChoice, typer.Option(help="auto boots something under KVM before it believes in it.")
    ] = (AccelChoice.AUTO),
    initrd_pad: Annotated[
        str, typer.Option(help="Makes every initramfs larger by this; it does not compress.")
    ] = "0",
    append: Annotated[str, typer.Option(help="More words for the guests' kernel command line.")] = "",
    watchdog: Annotated[
        bool, typer.Option(help="Gives each VM an i6300esb watchdog that resets it.")
    ] = False,
    shared_memory: Annotated[
        bool, typer.Option(help="Lets this machine read and write the guests' RAM, as a device would.")
    ] = False,
    boot_timeout: Annotated[
        float, typer.Option(help="Seconds, above 0, that the slowest guest may take to boot.")
    ] = 900.0,
    name: Name = "default",
    inventory: Annotated[Path | None, typer.Option(help="Also write the inventory here.")] = None,
) -> None:
    """Make the lab, or add hosts to it, and wait until all answer.

    Without --hosts: two hosts that can place in CMA, one that only knows the flag, one that knows neither."""
    options = LabOptions(
        memory=parse_memory(memory),
        cma=parse_cma(cma),
        cpus=cpus,
        init=init,
        accel=accel,
        target=target,
        initrd_pad=parse_size(initrd_pad, "initrd pad"),
        watchdog=watchdog,
        shared_memory=shared_memory,
        append=append,
        inventory=inventory,
        boot_seconds=boot_timeout,
        given=frozenset(key for key in MADE_WITH if _is_given(context, key)),
    )
    # An empty --hosts is a variable that was not set, not a wish for the default fleet.
    _bring_up(name, None if hosts is None else parse_hosts(hosts), options)


def _is_given(context: typer.Context, key: str) -> bool:
    source = context.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def _bring_up(name: str, specs: list[HostSpec] | None, options: LabOptions) -> None:
    fleet = LabFleet.open(name)
    with _said_when_stopped(name):
        report = fleet.up(specs, options, _show_progress)
    if report.started:
        typer.echo(f"up: {', '.join(report.started)}")
    if report.already:
        typer.echo(f"already up: {', '.join(report.already)}")
    typer.echo(f"inventory: {report.inventory}")


@contextmanager
def _said_when_stopped(name: str) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM says what stays and unwinds; the second one kills, as one expects."""
    text = (
        "stopping; VMs that were started stay up: "
        f"`kexec-fleet lab status --name {name}`, `kexec-fleet lab down --name {name}`\n"
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        with suppress(OSError):
            os.write(2, text.encode())  # sys.stderr may be in the middle of a line
        raise KeyboardInterrupt

    old = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@lab_app.command()
def status(name: Name = "default", as_json: AsJson = False) -> None:
    """What each host was made with, and what it runs now."""
    fleet = LabFleet.open(name)
    if not fleet.exists and not as_json:
        there = ", ".join(LabFleet.names())
        typer.echo(f"no lab {name!r}" + (f"; there are: {there}" if there else ""))
        return
    rows = fleet.status() if fleet.exists else []
    if as_json:
        typer.echo(json.dumps([_status_record(row) for row in rows], indent=2))
        return
    table = Table("host", "state", "made with", "runs", "role", "ssh port", "pid", "memory", box=None)
    for row in rows:
        table.add_row(
            row.host, row.state, row.kernel, row.running or "-", row.role, str(row.ssh_port),
            str(row.pid or "-"), f"{row.memory >> 20} MiB",
        )  # fmt: skip
    _print_table(table)
    typer.echo(f"target: {fleet.target.release}   inventory: {fleet.inventory_path}")


def _print_table(table: Table) -> None:
    """At the terminal's width, or wide enough for whole words where there is no terminal."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _status_record(row: VmStatus) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(row).items()}


@lab_app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    host: str,
    command: Annotated[list[str] | None, typer.Argument(help="A command; without one, a shell.")] = None,
    name: Name = "default",
) -> None:
    """Log in with the lab's key and the host's pinned key. --name comes before the command."""
    name, command = _take_name(name, command or [])
    words = LabFleet.open(name).ssh_command(host, command)
    os.execv(words[0], words)


def _take_name(name: str, words: list[str]) -> tuple[str, list[str]]:
    """What follows the host is the guest's command, options included; no command begins with --name."""
    if words and words[0].startswith("--name="):
        return words[0].removeprefix("--name="), words[1:]
    if words and words[0] == "--name":
        if len(words) == 1:
            raise InputError("--name needs a value", hint="kexec-fleet lab ssh HOST --name LAB [COMMAND…]")
        return words[1], words[2:]
    return name, words


@lab_app.command()
def console(
    host: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what comes.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Without the host's time at each line.")] = False,
    name: Name = "default",
) -> None:
    """The serial console, kept from the first power on."""
    vm = LabFleet.open(name).vm(host)
    if not follow:
        _write_console(consoles.read_all(vm.console_path), raw)
        return
    try:
        for lines in consoles.follow(vm.console_path, lambda: vm.running):
            _write_console(lines, raw)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _write_console(text: str, raw: bool) -> None:
    if raw:
        text = "".join(consoles.without_stamp(line) for line in text.splitlines(keepends=True))
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # `lab console web1 | head`: the reader has seen enough. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


@lab_app.command()
def kernels(
    fetch: Annotated[
        str, typer.Option(help="Fetch the newest of this version prefix and print its paths.")
    ] = "",
    initrd_pad: Annotated[str, typer.Option(help="With --fetch: padding of its initramfs.")] = "0",
    as_json: AsJson = False,
) -> None:
    """Kernels that can be had, which are cached, and what those can do."""
    store = KernelStore(progress=_show_progress)
    if fetch:
        _fetch_kernel(store, fetch, parse_size(initrd_pad, "initrd pad"), as_json)
        return
    rows = store.available()
    if as_json:
        typer.echo(json.dumps([_kernel_record(row) for row in rows], indent=2))
        return
    table = Table("release", "package", "cached", "kexec_file", "CMA", "NO_CMA flag", box=None)
    for row in rows:
        if row.usable:
            known = row.capabilities
            answers = (known.kexec_file, known.cma, known.no_cma_flag) if known else (None, None, None)
            table.add_row(row.release, row.version, _word(row.cached), *(_word(answer) for answer in answers))
    _print_table(table)
    dropped = [row.release for row in rows if not row.usable]
    if dropped:
        typer.echo(
            f"{len(dropped)} more are listed without their modules and cannot be had, {dropped[0]} the newest"
        )


def _fetch_kernel(store: KernelStore, prefix: str, pad: int, as_json: bool) -> None:
    kernel = store.resolve(prefix)
    initramfs = InitramfsStore(progress=_show_progress).build(kernel, pad)
    facts = {"release": kernel.release, "vmlinuz": str(kernel.vmlinuz), "initrd": str(initramfs.path)}
    if as_json:
        typer.echo(json.dumps({**facts, "capabilities": asdict(kernel.capabilities)}, indent=2))
        return
    for key, value in facts.items():
        typer.echo(f"{key}: {value}")


def _kernel_record(row: AvailableKernel) -> dict[str, object]:
    return {**asdict(row), "usable": row.usable}


def _word(answer: bool | None) -> str:
    return "?" if answer is None else "yes" if answer else "no"


@lab_app.command("default")
def boot_default(
    host: Annotated[str, typer.Argument(envvar="KEXEC_FLEET_HOST", help="A host of the lab.")],
    image: Annotated[Path, typer.Argument(envvar="KEXEC_FLEET_KERNEL", help="Kernel image.")],
    initrd: Annotated[Path, typer.Argument(envvar="KEXEC_FLEET_INITRD", help="Its initrd.")],
    name: Name = "default",
) -> None:
    """Make this the kernel that the host's firmware boots, from its next power-on.

    A playbook's `finalise: {method: local}` calls it, and gives host and files by the environment."""
    before, after = set_boot_default(LabFleet.open(name), host, image, initrd)
    typer.echo(f"{host}: {before} -> {after} from the next power-on")


@lab_app.command()
def down(
    name: Name = "default",
    every: Annotated[bool, typer.Option("--all", help="All labs of this user.")] = False,
) -> None:
    """End every VM and remove every file of the lab. The cache of kernels and images stays."""
    labs = LabFleet.names() if every else [name]
    gone = [host for lab in labs for host in LabFleet.open(lab).down(_show_progress)]
    if gone:
        typer.echo(f"gone: {', '.join(gone)}")
    elif there := LabFleet.names():
        typer.echo(f"nothing was up in a lab {name!r}; there are: {', '.join(there)}")
    else:
        typer.echo("nothing was up")


def main() -> None:
    """For `python -m orchestrator.cli.lab`: the lab alone."""
    try:
        lab_app()
    except KexecFleetError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
