"""The import contracts hold the picture of the house: each is broken on purpose in a copy and must fail."""

from __future__ import annotations

import functools
import graphlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from tests.support import repo

PACKAGES = ("orchestrator", "workers")


@pytest.fixture(scope="module")
def copy() -> Iterator[Path]:
    """The code without anything else: what the contracts need."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        for path in (*repo.python_files(*PACKAGES), Path("pyproject.toml")):
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo.ROOT / path, Path(folder) / path)
        yield Path(folder)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    # The folder comes first on the path, before the installed project.
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# Who breaks it, and with which import. One line for each arrow that the picture does not have.
BROKEN = [
    ("orchestrator/domain", "orchestrator.journal"),
    ("orchestrator/domain", "orchestrator.loading"),
    ("orchestrator/domain", "orchestrator.cli"),
    ("orchestrator/domain", "workers"),
    ("orchestrator/journal", "orchestrator.loading"),
    ("orchestrator/loading", "orchestrator.journal"),
    ("orchestrator/journal", "orchestrator.control"),
    ("orchestrator/loading", "orchestrator.lab"),
    ("orchestrator/control", "orchestrator.lab"),
    ("orchestrator/control", "orchestrator.report"),
    ("orchestrator/report", "orchestrator.control"),
    ("orchestrator/lab", "orchestrator.control"),
    ("orchestrator/lab", "orchestrator.cli"),
    ("orchestrator/control", "workers"),
    ("orchestrator/lab", "workers.connection"),
    ("orchestrator/report", "workers.hostagent"),
    ("orchestrator/journal", "workers"),
    ("workers", "orchestrator.cli"),
    ("workers", "orchestrator.control"),
    ("workers/connection", "orchestrator.lab"),
    ("workers/connection", "orchestrator.loading"),
    ("workers/connection", "orchestrator.report"),
    ("workers/hostagent", "orchestrator.domain"),
    ("workers/hostagent", "orchestrator.journal"),
]


def test_the_copy_is_whole(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("package", "target"), BROKEN, ids=[f"{a}-{b}" for a, b in BROKEN])
def test_a_forbidden_import_is_seen(copy: Path, package: str, target: str) -> None:
    intruder = copy / package / "intruder.py"
    intruder.write_text(f"import {target}\n")
    try:
        done = lint(copy)
    finally:
        intruder.unlink()
    assert done.returncode == 1
    assert f"{package.replace('/', '.')}.intruder" in done.stdout


def test_a_package_without_a_floor_is_seen(copy: Path) -> None:
    stranger = copy / "orchestrator" / "utils.py"
    stranger.write_text("")
    try:
        done = lint(copy)
    finally:
        stranger.unlink()
    assert done.returncode == 1
    assert "orchestrator.utils" in done.stdout


@pytest.mark.parametrize("target", ["orchestrator.domain.events", "orchestrator.journal.store"])
def test_workers_may_use_the_domain_and_the_journal(copy: Path, target: str) -> None:
    allowed = copy / "workers" / "intruder.py"
    allowed.write_text(f"import {target}\n")
    try:
        assert lint(copy).returncode == 0
    finally:
        allowed.unlink()


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = {module: graph().find_modules_directly_imported_by(module) for module in graph().modules}
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports in a circle: " + " -> ".join(reversed(error.args[1])), pytrace=False)


def test_every_module_can_be_imported() -> None:
    # Programs that act when imported are none of ours: a module is a set of names until someone calls one.
    names = sorted(name for name in graph().modules if not name.endswith("__main__"))
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=repo.ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
