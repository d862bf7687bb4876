"""Are systemd's units as before: no unit failed that had not failed already."""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict
from orchestrator.domain.raw import optional_int, optional_text, texts_of

NAME = "units"

# systemctl(1), is-system-running: the boot is over in these states.
_SETTLED = frozenset({"running", "degraded"})


def judge(before: Before, after: After, _expectation: Expectation) -> CheckResult:
    """Fail for a unit that failed anew, and for a host that lost systemd or ended in its rescue mode.

    Without systemd, before and after, there is nothing to compare: a pass that says so, because nothing about
    such a host is unsure.
    """
    data = after.data("units")
    init = optional_text(data.get("init")) or after.facts.init
    old_init = optional_text(before.data("units").get("init")) or before.facts.init
    failed, old_failed = _failed(after), _failed(before)
    details = {
        "init": {"before": old_init, "after": init},
        "failed": {
            "before": None if old_failed is None else sorted(old_failed),
            "after": None if failed is None else sorted(failed),
        },
    }
    verdict, evidence = _compare(old_init, init, old_failed, failed)
    if init == "systemd" and after.data("units").get("state") == "maintenance":
        verdict, evidence = Verdict.FAIL, "systemd is in its rescue or emergency mode"
    elif verdict is Verdict.PASS and init == "systemd" and not _settled(after):
        verdict, evidence = Verdict.INCONCLUSIVE, "systemd is still starting units"
    return CheckResult(name=NAME, verdict=verdict, evidence=evidence, details=details)


def _compare(
    old_init: str | None, init: str | None, old_failed: frozenset[str] | None, failed: frozenset[str] | None
) -> tuple[Verdict, str]:
    if init is None:
        return Verdict.INCONCLUSIVE, "the host does not tell its init"
    if init != "systemd":
        if old_init == "systemd":
            return Verdict.FAIL, f"the init is {init}, it was systemd before"
        return Verdict.PASS, f"not applicable: the init is {init}, there are no units"
    if failed is None:
        return Verdict.INCONCLUSIVE, "systemd did not tell its failed units"
    new = sorted(failed - (old_failed or frozenset()))
    if not new:
        same = f", {len(failed)} failed before as well" if failed else ""
        return Verdict.PASS, f"no unit failed anew{same}"
    if old_failed is None:
        return Verdict.INCONCLUSIVE, f"failed, and not known whether before as well: {', '.join(new)}"
    return Verdict.FAIL, f"failed since the jump: {', '.join(new)}"


def _failed(side: Before) -> frozenset[str] | None:
    found = texts_of(side.data("units").get("failed"))
    if found is None:
        found = side.facts.failed_units
    return None if found is None else frozenset(found)


def _settled(after: After) -> bool:
    data = after.data("units")
    return data.get("state") in _SETTLED or (
        data.get("state") is None and optional_int(data.get("jobs")) == 0
    )


JUDGE = Judge(name=NAME, collectors=("units",), judge=judge)
