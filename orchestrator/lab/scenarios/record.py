"""A long run's results as they come: kept so that an interrupted run goes on, and written down for others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.lab.scenarios.result import ScenarioResult, Verdict

DONE = "done.jsonl"
"""One result a line, appended when its scenario ends, in the evidence's folder."""

_HEAD = """\
# What `kexec-fleet lab test` has shown

Each section is one run of the command in it, written by `--record`. The evidence (consoles, journals, what
each fault did) stays in the folder that `--keep` names.
"""


def remember(keep: Path, way: str, result: ScenarioResult) -> None:
    """Append one result; `way` names the kernels that the run is from and to."""
    with (keep / DONE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"way": way, "result": result.as_dict()}, default=str) + "\n")


def ended_well(keep: Path, way: str) -> dict[str, ScenarioResult]:
    """What passed in an earlier run in that folder, from and to the same kernels.

    A line that a killed run left half-written counts as none.
    """
    try:
        lines = (keep / DONE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found: dict[str, ScenarioResult] = {}
    for line in lines:
        try:
            told = json.loads(line)
            raw = told["result"]
            result = ScenarioResult(**{**raw, "verdict": Verdict(raw["verdict"]), "runs": tuple(raw["runs"])})
        except (ValueError, TypeError, KeyError):
            continue
        if told["way"] != way:
            continue
        if result.verdict is Verdict.PASSED:
            found[result.name] = result
        else:
            found.pop(result.name, None)
    return found


def write_record(
    file: Path, results: Sequence[ScenarioResult], *, date: str, commit: str, command: str, kernels: str
) -> None:
    """Append a section in Markdown; the file is made where it is not there."""
    passed = sum(result.verdict is Verdict.PASSED for result in results)
    lines = [
        "",
        f"## {date}: {kernels}",
        "",
        f"Commit {commit}; `{command}`: {passed} of {len(results)} passed.",
        "",
        "| scenario | expected | observed | verdict | seconds |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        why = f": {_cell(result.why)}" if result.why else ""
        cells = _cell(result.expected), _cell(result.observed), f"{result.verdict}{why}"
        lines.append(f"| {result.name} | {cells[0]} | {cells[1]} | {cells[2]} | {result.seconds:.0f} |")
    head = "" if file.exists() else _HEAD
    with file.open("a", encoding="utf-8") as out:
        out.write(head + "\n".join(lines) + "\n")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
