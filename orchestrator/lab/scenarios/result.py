"""What came out of one scenario."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a scenario ended."""

    PASSED = "passed"
    FAILED = "failed"  # the outcome was another than expected
    NOT_APPLICABLE = "not applicable"  # this kernel cannot show it
    ERROR = "error"  # the lab, or the fault itself, did not work


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """`runs` holds, for each rollout, what was expected, observed and different."""

    name: str
    verdict: Verdict
    why: str = ""
    expected: str = ""
    observed: str = ""
    seconds: float = 0.0
    evidence: str = ""
    kernel: str = ""
    target: str = ""
    runs: tuple[dict[str, Any], ...] = ()

    @property
    def as_expected(self) -> bool:
        """Whether it counts as good: what does not apply is neither passed nor failed."""
        return self.verdict in (Verdict.PASSED, Verdict.NOT_APPLICABLE)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "verdict": str(self.verdict), "runs": list(self.runs)}
