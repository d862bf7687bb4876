"""Is it the target kernel: release and GNU build-id. Builds may share a release, so the build-id decides.

Where the image lies on the host its payload stays there, and its build-id with it. Then the header's version
text, with the number and date of the build, stands for it (init/version-timestamp.c; uname -v is its end).
"""

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
        _build(expectation, _lower(build_id), optional_text(identity.get("version"))),
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


def _build(expectation: Expectation, build_id: str | None, version: str | None) -> tuple[Verdict, str]:
    """By the build-id; by the version text where the target's build-id is not known."""
    if expectation.build_id is not None or expectation.version is None or version is None:
        return _compare("build-id", _lower(expectation.build_id), build_id)
    if expectation.version.endswith(version):
        return Verdict.PASS, f"the build that the image's header names: {version}"
    return Verdict.FAIL, f"the build {version} instead of {expectation.version}"


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
