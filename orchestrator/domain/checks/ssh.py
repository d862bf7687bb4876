"""Does the host take fresh logins, several in a row, on the boot that was checked."""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict

NAME = "ssh"


def judge(_before: Before, after: After, _expectation: Expectation) -> CheckResult:
    """Fail for one login that did not come about or reached another boot."""
    sessions = after.sessions
    details = {"sessions": [{"boot_id": session.boot_id, "error": session.error} for session in sessions]}
    if not sessions:
        return CheckResult(name=NAME, verdict=Verdict.INCONCLUSIVE, evidence="no fresh login was tried")
    errors = [session.error for session in sessions if session.error is not None]
    boots = {session.boot_id for session in sessions if session.boot_id is not None}
    if after.facts.boot_id is not None:
        boots.add(after.facts.boot_id)
    if errors:
        verdict, evidence = Verdict.FAIL, f"{len(errors)} of {len(sessions)} fresh logins failed: {errors[0]}"
    elif len(boots) > 1:
        verdict, evidence = Verdict.FAIL, "the fresh logins reached different boots"
    elif any(session.boot_id is None for session in sessions):
        verdict, evidence = Verdict.INCONCLUSIVE, "a fresh login did not tell its boot"
    else:
        verdict, evidence = Verdict.PASS, f"{len(sessions)} fresh logins in a row"
    return CheckResult(name=NAME, verdict=verdict, evidence=evidence, details=details)


JUDGE = Judge(name=NAME, collectors=(), judge=judge)
