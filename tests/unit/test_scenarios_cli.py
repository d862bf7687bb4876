"""`kexec-fleet lab test` as a user types it: what is refused before anything is booted, and what is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orchestrator.cli import labtest
from orchestrator.cli.app import main
from orchestrator.lab.scenarios.reading import shipped
from orchestrator.lab.scenarios.result import ScenarioResult, Verdict


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["kexec-fleet", "lab", "test", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_list_names_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--list", "--json") == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == list(shipped())
    assert run(monkeypatch, "--list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in shipped())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ndescription: d\nfault: {kind: scrible}\nexpect: []\n", ":3:15: no fault is called"),
        ("name: x\ndescription: d\nexpect:\n- then: {fase: done}\n", ":4:10: unknown key `fase`"),
    ],
)
def test_a_bad_file_is_one_error_with_its_place(
    text: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert run(monkeypatch, str(path)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{path}{told}") and "hint:" in lines[1] and len(lines) == 2


@pytest.mark.parametrize("words", [["no-such"], ["./no-such.yaml"], ["clean-cma", "clean-cma"]])
def test_bad_names_are_bad_input(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *words) == 2


def test_a_result_file_that_cannot_be_written_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "clean-cma", "--junit", str(tmp_path / "no" / "x.xml")) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_table_shows_why_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    labtest._table(
        [
            ScenarioResult(name="a", verdict=Verdict.PASSED, expected="done", observed="done", seconds=3),
            ScenarioResult(name="b", verdict=Verdict.FAILED, why="host lost, not done", evidence="/keep/b"),
        ]
    )
    out = capsys.readouterr().out
    assert "b: failed: host lost, not done" in out and "evidence: /keep/b" in out
    assert "a: passed" not in out
