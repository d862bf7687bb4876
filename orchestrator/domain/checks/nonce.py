"""Is this the kernel that we jumped to: our nonce stands on its command line."""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict
from orchestrator.domain.cmdline import NONCE
from orchestrator.domain.raw import optional_text
from orchestrator.domain.words import split_init, split_words

NAME = "nonce"


def judge(_before: Before, after: After, expectation: Expectation) -> CheckResult:
    """Pass only for exactly one nonce, ours, among the kernel's own words."""
    cmdline = optional_text(after.data("identity").get("cmdline")) or after.facts.cmdline
    if cmdline is None:
        return CheckResult(
            name=NAME, verdict=Verdict.INCONCLUSIVE, evidence="the command line could not be read"
        )
    words, _ = split_init(split_words(cmdline))
    found = [word.partition("=")[2] for word in words if word.startswith(f"{NONCE}=")]
    details = {"expected": expectation.nonce, "found": found}
    if found == [expectation.nonce]:
        return CheckResult(
            name=NAME, verdict=Verdict.PASS, evidence="our nonce is on the command line", details=details
        )
    what = f"another nonce: {', '.join(found)}" if found else "no nonce on the command line"
    return CheckResult(name=NAME, verdict=Verdict.FAIL, evidence=what, details=details)


JUDGE = Judge(name=NAME, collectors=("identity",), judge=judge)
