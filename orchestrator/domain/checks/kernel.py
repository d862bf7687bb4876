"""Is it the target kernel: release and GNU build-id. Builds may share a release, so the build-id decides."""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict, worst
from orchestrator.domain.raw import optional_text

NAME = "kernel"


def judge(_before: Before, after: After, expectation: Expectation) -> CheckResult:
    """The worst of the two comparisons; a side that is not known is inconclusive, never a pass."""
    identity = after.data("identity")
    release = optional_text(identity.get("release")) or after.facts.release
    build_id = optional_text(identity.get("build_id")) or after.facts.build_id
    parts = [
        _compare("release", expectation.release, release),
        _compare("build-id", _lower(expectation.build_id), _lower(build_id)),
    ]
    return CheckResult(
        name=NAME,
        verdict=worst(*(verdict for verdict, _ in parts)),
        evidence="; ".join(text for _, text in parts),
        details={
            "release": {"expected": expectation.release, "found": release},
            "build_id": {"expected": expectation.build_id, "found": build_id},
        },
    )


def _compare(what: str, expected: str | None, found: str | None) -> tuple[Verdict, str]:
    if found is None:
        return Verdict.INCONCLUSIVE, f"the host does not tell its {what}"
    if expected is None:
        return Verdict.INCONCLUSIVE, f"{what} {found}, and the target's is not known"
    if expected != found:
        return Verdict.FAIL, f"{what} {found} instead of {expected}"
    return Verdict.PASS, f"{what} {found}"


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


JUDGE = Judge(name=NAME, collectors=("identity",), judge=judge)
