"""The tools that read the code say nothing against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import repo

BIN = Path(sys.executable).parent


def run_tool(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=repo.ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        pytest.fail(" ".join(map(str, command)) + "\n" + "\n".join(said[-60:]), pytrace=False)


def test_ruff_finds_nothing() -> None:
    run_tool(BIN / "ruff", "check", "--output-format=concise", ".")


def test_ruff_would_format_nothing() -> None:
    run_tool(BIN / "ruff", "format", "--check", ".")


def test_mypy_strict_finds_nothing() -> None:
    run_tool(BIN / "mypy")


def test_import_contracts_hold() -> None:
    run_tool(BIN / "lint-imports")


def test_the_host_agent_needs_no_more_than_python_3_6() -> None:
    run_tool(BIN / "vermin", "-t=3.6-", "--violations", "--no-tips", "workers/hostagent")


@pytest.mark.parametrize("script", repo.shell_files(), ids=str)
def test_shell_scripts_are_sound(script: Path) -> None:
    shell = "bash" if "bash" in (repo.text_of(script) or "").splitlines()[0] else "sh"
    run_tool(shell, "-n", script)
    run_tool("shellcheck", "--external-sources", "--severity=warning", script)
