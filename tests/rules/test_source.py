"""What no tool checks: lengths, docstrings, words that must not be in a file, and who may do what.

The allow lists are empty and should stay so; an entry needs a reason beside it.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import repo

LINES_A_FILE = 400
LINES_A_FUNCTION = 60
LONG_FILES: frozenset[str] = frozenset()
LONG_FUNCTIONS: frozenset[str] = frozenset()  # "path:function"

CODE = ("orchestrator", "workers")

# Where things lie on the machines this project is written on. (The pattern does not match its own text.)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work/|root/\.(?:pyenv|cache|venv)|opt/(?:wheels|pypi))")
PRIVATE_KEY = re.compile("-----BEGIN " + "[A-Z ]*PRIVATE KEY-----")
CONFLICT = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)

# The domain decides on values handed to it: of what touches the world it may import nothing.
WORLD = {
    *(
        "asyncio",
        "concurrent",
        "http",
        "logging",
        "multiprocessing",
        "os",
        "random",
        "secrets",
        "select",
        "selectors",
    ),
    *(
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib",
    ),
    *("uuid", "fcntl", "glob", "platform"),
}
# Value models, and parsers of bytes in memory.
DOMAIN_LIBRARIES = {"pydantic", "pydantic_core", "zstandard", "elftools"}

# The only place that prints, exits and reads argv is the CLI. Whole programs of their own, which the CLI
# starts, or which run on a host or in a guest, do it too.
PROGRAMS = (
    "orchestrator/cli/",
    "orchestrator/lab/guest/",
    "orchestrator/lab/console_logger.py",
    "workers/hostagent/",
)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((repo.ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, ("." * node.level) + (node.module or "")


def report(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_files_stay_short() -> None:
    files = [*repo.python_files(*CODE, "tests"), *repo.shell_files()]
    lengths = ((path, len((repo.text_of(path) or "").splitlines())) for path in files)
    report([f"{path}: {n} lines" for path, n in lengths if n > LINES_A_FILE and str(path) not in LONG_FILES])


def test_functions_stay_short() -> None:
    found = []
    for path in repo.python_files(*CODE, "tests"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LINES_A_FUNCTION and f"{path}:{node.name}" not in LONG_FUNCTIONS:
                    found.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    report(found)


def test_every_module_says_what_it_owns() -> None:
    modules = [path for path in repo.python_files(*CODE) if (repo.text_of(path) or "").strip()]
    report([f"{path}: no docstring at its top" for path in modules if not ast.get_docstring(tree_of(path))])


def test_no_file_knows_a_developers_machine_or_a_secret() -> None:
    found = []
    for path in repo.files():
        text = repo.text_of(path) or ""
        for pattern, what in (
            (MACHINE_PATHS, "a path of one machine"),
            (PRIVATE_KEY, "a private key"),
            (CONFLICT, "a conflict"),
        ):
            for match in pattern.finditer(text):
                found.append(f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()}")
    report(found)


def test_the_domain_touches_no_world() -> None:
    found = []
    for path in repo.python_files("orchestrator"):
        if path.parts[1] != "domain":
            continue
        for line, module in imports_of(path):
            top = module.split(".")[0]
            known = top == "orchestrator" or top in DOMAIN_LIBRARIES or top in sys.stdlib_module_names
            if not known or top in WORLD:
                found.append(f"{path}:{line}: the domain imports {module}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in {
                "now",
                "utcnow",
                "today",
                "read_text",
                "read_bytes",
            }:
                found.append(f"{path}:{node.lineno}: the domain calls .{node.attr}")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"open", "print"}
            ):
                found.append(f"{path}:{node.lineno}: the domain calls {node.func.id}()")
    report(found)


def test_the_host_agent_imports_the_standard_library_and_itself() -> None:
    found = []
    for path in repo.python_files("workers"):
        if path.parts[1] == "hostagent":
            for line, module in imports_of(path):
                own = module == "workers.hostagent" or module.startswith("workers.hostagent.")
                if not own and module.split(".")[0] not in sys.stdlib_module_names:
                    found.append(f"{path}:{line}: the host agent imports {module}")
    report(found)


def test_only_the_cli_prints_exits_and_reads_argv() -> None:
    found = []
    for path in repo.python_files(*CODE):
        if not str(path).startswith(PROGRAMS):
            for node in ast.walk(tree_of(path)):
                if (what := _speaks(node)) is not None:
                    found.append(f"{path}:{node.lineno}: {what}")
    report(found)


def _speaks(node: ast.AST) -> str | None:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "exit", "quit"}
    ):
        return f"{node.func.id}()"
    is_sys = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys"
    if is_sys and isinstance(node, ast.Attribute) and node.attr in {"argv", "exit"}:
        return f"sys.{node.attr}"
    return None


def test_scripts_can_be_run() -> None:
    scripts = [
        path for path in repo.shell_files() if path.parts[0] in (".ci", "deploy") and path.suffix != ".sh"
    ]
    assert {".ci/run", "deploy/demo", "deploy/test"} <= {str(path) for path in scripts}
    report([f"{path}: not executable" for path in scripts if not os.access(repo.ROOT / path, os.X_OK)])


def test_ci_runs_what_a_developer_runs() -> None:
    assert "./deploy/test" in (repo.text_of(Path(".ci/run")) or "")


def test_top_level_folders_are_those_of_the_plan() -> None:
    tops = {
        path.parts[0] for path in repo.files() if len(path.parts) > 1 and not path.parts[0].startswith(".")
    }
    assert tops <= {"orchestrator", "workers", "playbooks", "tests", "deploy", "docs"}
