"""Observed against expected: the first case that applies counts, each difference is told, none is lost."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.lab.scenarios.expect import judge, why_not_applicable
from orchestrator.lab.scenarios.junit import junit
from orchestrator.lab.scenarios.observed import Observed, observe
from orchestrator.lab.scenarios.result import ScenarioResult, Verdict
from orchestrator.lab.scenarios.spec import Case, InCma, Needs


def attempt(number: int = 1, **changes: Any) -> dict[str, Any]:
    """An attempt as the rollout's JSON has it."""
    return {
        "number": number,
        "path": "cma",
        "outcome": "booted",
        "kernel_misaligned": False,
        "message": "fine",
        "placement": {"bytes_total": 8, "bytes_in_cma": 8, "segments": [{"role": "kernel"}]},
        **changes,
    }


def seen(*attempts: dict[str, Any], digests: dict[int, bool] | None = None, **changes: Any) -> Observed:
    summary = {"hosts": [{"phase": "done", "reason": "r", "hint": "h", "attempts": list(attempts)}]}
    rest = {"can_cma": True, "leaked": None, "runs": "target", "console": "Starting new kernel", **changes}
    return observe(0, summary, [], ['{"kind": "note"}'], digests or {}, **rest)


def cases(*items: dict[str, Any]) -> list[Case]:
    return [Case.model_validate(item) for item in items]


def differences(then: dict[str, Any], found: Observed) -> tuple[str, ...]:
    return judge(cases({"then": then}), found).differences


def test_the_first_case_that_applies_counts() -> None:
    expected = cases(
        {"when": {"attempts": [{"kernel_misaligned": True}]}, "then": {"phase": "failed"}},
        {"when": {"attempts": [{"in_cma": ["all", "part"]}]}, "then": {"phase": "done"}},
        {"then": {"phase": "lost"}},
    )
    assert judge(expected, seen(attempt())).differences == ()
    assert "failed" in judge(expected, seen(attempt(kernel_misaligned=True))).differences[0]


def test_where_no_case_applies_it_fails_and_says_what_was_observed() -> None:
    expected = cases(
        {"when": {"attempts": [{"digest_stored": True}]}, "then": {"phase": "done"}},
        {"when": {"leaked": True}, "then": {"phase": "done"}},
        {"when": {"attempts": [{}, {}]}, "then": {"phase": "done"}},
    )
    (told,) = judge(expected, seen(attempt(), digests={1: False})).differences
    assert "digest_stored was false, not true" in told
    assert "leaked was not observed, not true" in told
    assert "there was no attempt 2" in told


def test_what_was_not_observed_matches_neither_true_nor_false() -> None:
    for wanted in (True, False):
        for when in ({"attempts": [{"digest_stored": wanted}]}, {"leaked": wanted}):
            expected = cases({"when": when, "then": {"phase": "done"}})
            assert "no case applies" in judge(expected, seen(attempt())).differences[0]


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ({"phase": "failed"}, "host done, not failed"),
        ({"exit": [1, 3]}, "exit code 0, not 1|3"),
        ({"runs": "source"}, "target runs at the end, not source"),
        ({"attempts": []}, "1 attempts, not 0"),
        ({"attempts": [{}, {}]}, "1 attempts, not 2"),
        ({"attempts": [{"path": "no_cma"}]}, "attempt 1: path cma, not no_cma"),
        ({"attempts": [{"outcome": ["silent", "fell_back"]}]}, "outcome booted, not silent|fell_back"),
        ({"attempts": [{"stage": "purgatory"}]}, "stage None, not purgatory"),
        ({"attempts": [{"in_cma": "none"}]}, "in_cma all, not none"),
        ({"attempts": [{"kernel_misaligned": True}]}, "kernel_misaligned false, not true"),
        ({"attempts": [{"message": ["^bad"]}]}, "message lacks /^bad/"),
        ({"attempts": [{"record": {"placement.segments.0.role": "initrd"}}]}, "is 'kernel', not 'initrd'"),
        ({"attempts": [{"record": {"placement.nowhere": None}}]}, "placement.nowhere is not there"),
        ({"last_attempt": {"outcome": "silent"}}, "last attempt: outcome booted"),
        ({"reason": ["q"]}, "reason lacks /q/"),
        ({"journal": ["leak"]}, "no event matches /leak/"),
        ({"console": ["Oops"]}, "console lacks /Oops/"),
        ({"console_not": ["Starting"]}, "console has /Starting/"),
    ],
)
def test_each_expectation_can_fail(then: dict[str, Any], told: str) -> None:
    found = differences(then, seen(attempt()))
    assert len(found) == 1 and told in found[0]


def test_all_differences_are_told() -> None:
    found = differences({"phase": "failed", "exit": 1, "attempts": [{"path": "plain"}]}, seen(attempt()))
    assert len(found) == 3


def test_all_that_holds_is_no_difference() -> None:
    then = {
        "phase": ["done"], "exit": 0, "runs": "target", "reason": ["r", "h"], "journal": ["note"],
        "console": ["new kernel"], "console_not": ["panic"],
        "attempts": [
            {"path": "cma", "outcome": "booted", "in_cma": "all", "kernel_misaligned": False,
             "message": ["fine"], "record": {"placement.bytes_total": 8}, "stage": "network"}
        ],
    }  # fmt: skip
    assert differences(then, seen(attempt(stage_of_death="network"))) == ()


@pytest.mark.parametrize(
    ("inside", "total", "word"),
    [
        (8, 8, InCma.ALL),
        (0, 8, InCma.NONE),
        (3, 8, InCma.PART),
        (None, 8, InCma.UNKNOWN),
        (0, 0, InCma.UNKNOWN),
    ],
)
def test_how_much_lay_in_cma(inside: int | None, total: int, word: InCma) -> None:
    found = seen(attempt(placement={"bytes_total": total, "bytes_in_cma": inside}))
    assert found.attempts[0].in_cma is word


def test_a_rollout_without_hosts_is_observed_as_such() -> None:
    found = observe(2, {}, [], [], {}, runs="source")
    assert found.phase == "" and found.attempts == ()
    assert differences({"last_attempt": {"outcome": "booted"}}, found) == ("there was no attempt",)


def test_a_kernel_that_cannot_show_it_is_not_applicable() -> None:
    able: dict[str, bool | None] = {"can_cma": True, "knows_no_cma": False, "kexec_file": None}
    assert why_not_applicable(Needs(can_cma=True), able) == ""
    assert "knows_no_cma: true; here it is false" in why_not_applicable(Needs(knows_no_cma=True), able)
    assert "does not tell" in why_not_applicable(Needs(kexec_file=True), able)


def test_junit_counts_each_verdict_and_survives_a_console() -> None:
    results = [
        ScenarioResult(name="a", verdict=Verdict.PASSED, seconds=1.5),
        ScenarioResult(name="b", verdict=Verdict.FAILED, why="x\x00\x1b[31m <&", observed="o", expected="e"),
        ScenarioResult(name="c", verdict=Verdict.NOT_APPLICABLE, why="no CMA"),
        ScenarioResult(name="d", verdict=Verdict.ERROR, why="no QEMU"),
    ]
    root = ElementTree.fromstring(junit(results, "suite"))
    counts = {key: root.attrib[key] for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    found = {case.attrib["name"]: [child.tag for child in case] for case in root}
    assert found["a"] == ["system-out"] and found["b"][0] == "failure" and found["c"][0] == "skipped"
    failure = root.find("./testcase/failure")
    assert failure is not None and failure.attrib["message"] == "x??[31m <&"
