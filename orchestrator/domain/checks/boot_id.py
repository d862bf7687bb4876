"""Is this another boot than the one before, and still the same one that the facts were read from."""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict
from orchestrator.domain.raw import optional_text

NAME = "boot_id"


def judge(_before: Before, after: After, expectation: Expectation) -> CheckResult:
    """Fail for the old boot_id, and for a host that was rebooted while it was being checked."""
    read = {
        "facts": after.facts.boot_id,
        "identity": optional_text(after.data("identity").get("boot_id")),
    }
    found = {boot_id for boot_id in read.values() if boot_id is not None}
    details = {"old": expectation.old_boot_id, **read}
    if not found:
        verdict, evidence = Verdict.INCONCLUSIVE, "the boot_id could not be read"
    elif expectation.old_boot_id in found:
        verdict, evidence = Verdict.FAIL, "the boot_id is still the old one"
    elif len(found) > 1:
        verdict, evidence = Verdict.FAIL, "the host was rebooted while it was checked"
    else:
        verdict, evidence = Verdict.PASS, f"new boot_id {found.pop()}"
    return CheckResult(name=NAME, verdict=verdict, evidence=evidence, details=details)


JUDGE = Judge(name=NAME, collectors=("identity",), judge=judge)
