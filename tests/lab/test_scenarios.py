"""`kexec-fleet lab test` on real VMs: one scenario of each mechanism, and runs that must not pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.lab.process import ProcessIdentity, is_alive

PROGRAM = "from orchestrator.cli.app import main\nmain()"
PATIENCE = 1500.0
# A program on the host that waits for its moment; pages of the CMA area; a changed image and power control.
MECHANISMS = ("jump-never-happens", "pinned-cma", "new-kernel-hangs-early")
WRONG = """\
name: wrong
description: The load is refused, and somebody expects that it is not.
fault: {kind: sysctl_disabled}
policy: {cma: never, attempts: 1}
expect:
- then: {phase: done}
"""
NOT_HERE = """\
name: not-here
description: No kernel with CMA can show it.
needs: {can_cma: false}
expect:
- then: {phase: done}
"""
NEVER_STRUCK = """\
name: never-struck
description: The fault's moment does not come, for nothing is ever loaded into CMA.
vm: {cma: none}
fault: {kind: kill_load}
policy: {cma: never, attempts: 1}
expect:
- then: {phase: done}
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    with (folder / "errors.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "lab", "test", *words],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "KEXEC_FLEET_LAB_DIR": str(folder / "labs")},
        )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenarios")


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """One run over all: exit code, and the results by name."""
    own = []
    for text in (WRONG, NOT_HERE, NEVER_STRUCK):
        path = folder / f"{text.split()[1]}.yaml"
        path.write_text(text)
        own.append(str(path))
    words = ["--jobs", "2", "--keep", str(folder / "keep"), "--junit", str(folder / "junit.xml"), "--json"]
    process = start(folder, *MECHANISMS, *own, *words)
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert out, (folder / "errors.txt").read_text()
    results = {result["name"]: result for result in json.loads(out)["results"]}
    assert list(results) == [*MECHANISMS, "wrong", "not-here", "never-struck"], (
        "in the order that was asked for"
    )
    return process.returncode, results


@pytest.mark.timeout(PATIENCE + 60)
def test_each_mechanism_strikes_and_ends_as_expected(whole: tuple[int, dict[str, dict[str, Any]]]) -> None:
    _, results = whole
    for name in MECHANISMS:
        result = results[name]
        assert result["verdict"] == "passed", result
        assert all(run["facts"]["fault"]["done"] for run in result["runs"])
        evidence = Path(result["evidence"])
        for kept in ("console.log", "run-1/journal.sqlite", "run-1/rollout.json", "run-1/fault.log"):
            assert (evidence / kept).stat().st_size > 0, kept


def test_another_outcome_than_expected_fails_and_is_told(
    whole: tuple[int, dict[str, dict[str, Any]]],
) -> None:
    code, results = whole
    assert code == 1
    assert results["wrong"]["verdict"] == "failed"
    assert "host failed, not done" in results["wrong"]["why"]


def test_what_cannot_be_shown_or_did_not_strike_is_never_passed(
    whole: tuple[int, dict[str, dict[str, Any]]], folder: Path
) -> None:
    _, results = whole
    assert results["not-here"]["verdict"] == "not applicable"
    assert results["never-struck"]["verdict"] == "error"
    assert "did not strike" in results["never-struck"]["why"]
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    counts = [suite.attrib[key] for key in ("tests", "failures", "errors", "skipped")]
    others = sum(results[name]["verdict"] == "failed" for name in MECHANISMS)
    assert counts == ["6", str(1 + others), "1", "1"]


def test_nothing_of_the_labs_is_left(whole: tuple[int, dict[str, dict[str, Any]]], folder: Path) -> None:
    assert [path for path in (folder / "labs").iterdir() if path.is_dir()] == []


@pytest.mark.timeout(600)
def test_an_interrupt_takes_the_machines_down(tmp_path: Path) -> None:
    process = start(tmp_path, "load-disabled", "--keep", str(tmp_path / "keep"))
    deadline = time.monotonic() + 300
    while not list((tmp_path / "labs").glob("*/vms/host1/process.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no VM was started"
        time.sleep(0.2)
    (record,) = (tmp_path / "labs").glob("*/vms/host1/process.json")
    machine = ProcessIdentity(**json.loads(record.read_text()))
    assert is_alive(machine)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=280)
    assert process.returncode == 130
    assert not is_alive(machine)  # nor is a zombie, which whoever inherits it has not reaped yet
    assert [path for path in (tmp_path / "labs").iterdir() if path.is_dir()] == []
