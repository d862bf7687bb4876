"""Results of a long run: what an interrupted one leaves, and what is written down for others."""

from __future__ import annotations

from pathlib import Path

from orchestrator.lab.scenarios.record import DONE, ended_well, remember, write_record
from orchestrator.lab.scenarios.result import ScenarioResult, Verdict

WAY = "7.2 to 7.3"


def result(name: str, verdict: Verdict, why: str = "") -> ScenarioResult:
    return ScenarioResult(
        name=name, verdict=verdict, why=why, expected="a|b", observed="done", seconds=61.4, runs=({"x": 1},)
    )


def test_a_resumed_run_leaves_out_what_passed_and_nothing_else(tmp_path: Path) -> None:
    assert ended_well(tmp_path, WAY) == {}
    remember(tmp_path, WAY, result("good", Verdict.PASSED))
    remember(tmp_path, WAY, result("bad", Verdict.FAILED))
    remember(tmp_path, WAY, result("broken", Verdict.ERROR))
    remember(tmp_path, "6.12 to 7.3", result("elsewhere", Verdict.PASSED))
    remember(tmp_path, WAY, result("later-bad", Verdict.PASSED))
    remember(tmp_path, WAY, result("later-bad", Verdict.FAILED))
    with (tmp_path / DONE).open("a") as file:
        file.write('{"way": "7.2 to 7.3", "result": {"name": "half')
    found = ended_well(tmp_path, WAY)
    assert found == {"good": result("good", Verdict.PASSED)}


def test_the_record_grows_by_a_section_a_run(tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    for commit in ("abc", "def"):
        some = [result("good", Verdict.PASSED), result("bad", Verdict.FAILED, "not\nso")]
        write_record(file, some, date="2026-11-22", commit=commit, command="lab test", kernels=WAY)
    text = file.read_text()
    assert text.count("# What `kexec-fleet lab test` has shown") == 1
    assert text.count("## 2026-11-22: 7.2 to 7.3") == 2
    assert "Commit abc; `lab test`: 1 of 2 passed." in text
    assert r"| good | a\|b | done | passed | 61 |" in text
    assert "| failed: not so | 61 |" in text
