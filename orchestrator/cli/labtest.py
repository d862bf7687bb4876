"""`kexec-fleet lab test`: scenarios of faults on virtual machines, each with what must come out of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import ExitCode, errors_to_exit, print_json, stderr_console, stdout_console
from orchestrator.domain.errors import InputError
from orchestrator.lab.progress import ProgressEvent

if TYPE_CHECKING:
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
        if junit is not None and not junit.absolute().parent.is_dir():
            raise InputError(f"there is no folder for {junit}", hint="make it first, or name another file")
        sys.exit(_run(chosen, kernel, target, junit, keep or _default_keep(), jobs, as_json))


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


def _run(
    scenarios: Sequence[Scenario],
    kernel: str,
    target: str,
    junit_file: Path | None,
    keep: Path,
    jobs: int | None,
    as_json: bool,
) -> int:
    from orchestrator.lab.scenarios.kernels import resolve_kernels
    from orchestrator.lab.scenarios.runner import Runner, default_jobs

    keep = keep.absolute()
    with _stop_once():
        kernels = resolve_kernels(kernel, target, _show)
        keep.mkdir(parents=True, exist_ok=True)
        stderr_console().print(
            f"{len(scenarios)} scenarios, from {kernels.source.release} to {kernels.target.release}; "
            f"evidence: {keep}"
        )
        results = Runner(kernels, keep, jobs or default_jobs(), _show, _show_result).run(scenarios)
    record: dict[str, object] = {
        "kernel": kernels.source.release,
        "target": kernels.target.release,
        "evidence": str(keep),
        "results": [result.as_dict() for result in results],
    }
    _write_files(results, record, keep, junit_file)
    if as_json:
        print_json(record)
    else:
        _table(results)
    good = all(result.as_expected for result in results)
    return ExitCode.DONE if good and any(r.verdict == "passed" for r in results) else ExitCode.FAILED


def _write_files(
    results: Sequence[ScenarioResult], record: dict[str, object], keep: Path, junit_file: Path | None
) -> None:
    import json

    from orchestrator.lab.scenarios.junit import junit

    (keep / "results.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    document = junit(results, f"kexec-fleet lab test {record['kernel']} to {record['target']}")
    (keep / "results.xml").write_bytes(document)
    if junit_file is not None:
        junit_file.write_bytes(document)


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
