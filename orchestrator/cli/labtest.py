"""`kexec-fleet lab test`: scenarios of faults on virtual machines, each with what must come out of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import ExitCode, errors_to_exit, print_json, stderr_console, stdout_console
from orchestrator.domain.errors import InputError
from orchestrator.lab.progress import ProgressEvent

if TYPE_CHECKING:
    from orchestrator.lab.scenarios.kernels import Kernels
    from orchestrator.lab.scenarios.result import ScenarioResult
    from orchestrator.lab.scenarios.spec import Scenario

STOPS = (signal.SIGINT, signal.SIGTERM)
COLOURS = {"passed": "green", "failed": "red", "error": "red", "not applicable": "yellow"}


def lab_test(
    scenario: Annotated[
        list[str] | None, typer.Argument(help="Names, or YAML files of your own; none: all that are shipped.")
    ] = None,
    kernel: Annotated[
        str,
        typer.Option(help="The kernel under test, which jumps: VERSION, /path/vmlinuz[+/path/modules]."),
    ] = "",
    target: Annotated[str, typer.Option(help="The kernel to jump to; default: the newest with CMA.")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Say which scenarios there are.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the evidence: consoles, journals, what each fault did.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what has passed in the --keep folder already.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Append the results, with date and commit, to this Markdown file.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=64, help="VMs at once, at most; default: one a processor.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Reproduce faults on virtual machines, and see that each ends as its scenario says."""
    with errors_to_exit(as_json=as_json):
        from orchestrator.lab.scenarios.reading import choose

        chosen = choose(scenario or [])
        if list_only:
            _list(chosen, as_json)
            return
        for file in (junit, record):
            if file is not None and not file.absolute().parent.is_dir():
                raise InputError(f"there is no folder for {file}", hint="make it first, or name another file")
        if resume and keep is None:
            raise InputError("--resume without --keep", hint="name the folder of the run that is to go on")
        wanted = _Wanted(kernel, target, keep or _default_keep(), resume, jobs)
        results, kernels = _run(chosen, wanted)
        _write(results, kernels, wanted.keep.absolute(), junit, record)
        if as_json:
            print_json(_json(results, kernels, wanted.keep.absolute()))
        else:
            _table(results)
        good = all(result.as_expected for result in results)
        some = any(result.verdict == "passed" for result in results)
        sys.exit(ExitCode.DONE if good and some else ExitCode.FAILED)


@dataclass(frozen=True)
class _Wanted:
    """What to run on, and where."""

    kernel: str
    target: str
    keep: Path
    resume: bool
    jobs: int | None


def _default_keep() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "kexec-fleet" / "lab-test" / time.strftime("%Y%m%dT%H%M%S")


def _list(scenarios: Sequence[Scenario], as_json: bool) -> None:
    if as_json:
        print_json([item.model_dump(mode="json", exclude_none=True) for item in scenarios])
        return
    from rich.table import Table

    table = Table("scenario", "what it shows", box=None)
    for item in scenarios:
        table.add_row(item.name, " ".join(str(item.description).split()))
    stdout_console().print(table)


def _run(scenarios: Sequence[Scenario], wanted: _Wanted) -> tuple[list[ScenarioResult], Kernels]:
    """Run what has to be run; each result is on disk as soon as it is there."""
    from orchestrator.lab.scenarios.kernels import resolve_kernels
    from orchestrator.lab.scenarios.record import ended_well, remember
    from orchestrator.lab.scenarios.runner import Runner, default_jobs

    keep = wanted.keep.absolute()

    def observe(result: ScenarioResult) -> None:
        remember(keep, way, result)
        _show_result(result)

    with _stop_once():
        kernels = resolve_kernels(wanted.kernel, wanted.target, _show)
        keep.mkdir(parents=True, exist_ok=True)
        way = _way(kernels)
        known = ended_well(keep, way) if wanted.resume else {}
        left = [item for item in scenarios if item.name not in known]
        stderr_console().print(f"{len(left)} of {len(scenarios)} scenarios, from {way}; evidence: {keep}")
        fresh = Runner(kernels, keep, wanted.jobs or default_jobs(), _show, observe).run(left)
    known |= {result.name: result for result in fresh}
    return [known[str(item.name)] for item in scenarios], kernels


def _way(kernels: Kernels) -> str:
    return f"{kernels.source.release} to {kernels.target.release}"


def _json(results: Sequence[ScenarioResult], kernels: Kernels, keep: Path) -> dict[str, object]:
    return {
        "kernel": kernels.source.release,
        "target": kernels.target.release,
        "evidence": str(keep),
        "results": [result.as_dict() for result in results],
    }


def _write(
    results: Sequence[ScenarioResult],
    kernels: Kernels,
    keep: Path,
    junit_file: Path | None,
    record: Path | None,
) -> None:
    import json

    from orchestrator.lab.scenarios.junit import junit
    from orchestrator.lab.scenarios.record import write_record

    text = json.dumps(_json(results, kernels, keep), indent=1, default=str)
    (keep / "results.json").write_text(text, encoding="utf-8")
    document = junit(results, f"kexec-fleet lab test {_way(kernels)}")
    (keep / "results.xml").write_bytes(document)
    if junit_file is not None:
        junit_file.write_bytes(document)
    if record is not None:
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        command = f"kexec-fleet lab test --kernel {kernels.source.release} --target {kernels.target.release}"
        write_record(record, results, date=date, commit=_commit(), command=command, kernels=_way(kernels))


def _commit() -> str:
    """The commit that this program was run from, as far as git knows."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return "not known"
    return done.stdout.strip() or "not known"


def _table(results: Sequence[ScenarioResult]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("scenario", "expected", "observed", "verdict", "seconds")
    for result in results:
        verdict = Text(str(result.verdict), style=COLOURS[str(result.verdict)])
        table.add_row(result.name, result.expected, result.observed, verdict, f"{result.seconds:.0f}")
    stdout_console().print(table)
    for result in results:
        if result.why:
            stdout_console().print(f"{result.name}: {result.verdict}: {result.why}", soft_wrap=True)
            if not result.as_expected:
                stdout_console().print(f"  evidence: {result.evidence}", soft_wrap=True)


def _show(event: ProgressEvent) -> None:
    where = f"{event.host}: " if event.host else ""
    words = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in event.text)
    stderr_console().print(f"{where}{words}", soft_wrap=True)


def _show_result(result: ScenarioResult) -> None:
    why = f": {result.why}" if result.why else ""
    stderr_console().print(
        f"{result.name}: {result.verdict} after {result.seconds:.0f} s{why}", soft_wrap=True
    )


@contextmanager
def _stop_once() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM takes the VMs down in order; the second one kills, as one expects."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        os.write(2, b"stopping: taking the virtual machines down\n")
        raise KeyboardInterrupt

    old = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
