"""All checks by name, and the verdict over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from orchestrator.domain.checks import boot_id, initrd, kernel, log, machine, nonce, ssh, units
from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict, worst

JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        found.name: found
        for found in (
            nonce.JUDGE,
            boot_id.JUDGE,
            kernel.JUDGE,
            initrd.JUDGE,
            log.JUDGE,
            machine.JUDGE,
            units.JUDGE,
            ssh.JUDGE,
        )
    }
)
"""In the order in which they are shown: what the later ones say means little when an earlier one fails."""

CHECK_NAMES = frozenset(JUDGES)
"""What a playbook's `checks: {skip: [...]}` may name."""


def collectors_needed(skip: Iterable[str] = ()) -> tuple[str, ...]:
    """The agent's collectors whose data the remaining checks read, each once."""
    left_out = frozenset(skip)
    needed = {name for judge in JUDGES.values() if judge.name not in left_out for name in judge.collectors}
    return tuple(sorted(needed))


def judge_all(
    before: Before, after: After, expectation: Expectation, skip: Iterable[str] = ()
) -> list[CheckResult]:
    """Every check that is not skipped, in the registry's order."""
    left_out = frozenset(skip)
    return [
        judge.judge(before, after, expectation) for judge in JUDGES.values() if judge.name not in left_out
    ]


def overall(results: Iterable[CheckResult]) -> Verdict:
    """One fail is a fail, else one inconclusive is inconclusive; no check at all is inconclusive too."""
    return worst(*(result.verdict for result in results))
