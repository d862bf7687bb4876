"""Does the new kernel's log tell of damage: patterns and taint bits that the old kernel did not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.checks import taint
from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict, worst
from orchestrator.domain.checks.patterns import PATTERNS, Pattern, Severity
from orchestrator.domain.checks.records import kernel_text, shape
from orchestrator.domain.raw import optional_int, texts_of

NAME = "log"

_MOST_LINES = 20  # a host whose log is full of errors must not fill the journal

_VERDICTS = {Severity.FAILURE: Verdict.FAIL, Severity.SUSPECT: Verdict.INCONCLUSIVE}


@dataclass(frozen=True)
class _Found:
    """One line that a pattern names."""

    pattern: Pattern
    text: str


def judge(before: Before, after: After, expectation: Expectation) -> CheckResult:
    """Fail for a new line or taint bit of a grave kind, inconclusive for a suspect one or a log with gaps.

    A line is no news when the log before had one that differs in numbers only. Lines that the playbook's
    log_ignore matches count as if they were not there, and excuse the taint bit that such a line sets.
    """
    data, old = after.data("log"), before.data("log")
    lines = texts_of(data.get("lines"))
    if lines is None:
        return CheckResult(
            name=NAME, verdict=Verdict.INCONCLUSIVE, evidence="the kernel log could not be read"
        )
    ignored, wrong = _compiled(expectation.log_ignore)
    known = {shape(found.text) for found in _matches(texts_of(old.get("lines")) or ())}
    matches = _matches(lines)
    counted = [found for found in matches if not any(regex.search(found.text) for regex in ignored)]
    news = [found for found in counted if shape(found.text) not in known]
    excused = {found.pattern.name for found in matches} - {found.pattern.name for found in news}
    bits = _new_taint(before, after)
    bad_bits = [bit for bit in bits or () if bit in taint.GRAVE and not excused & taint.GRAVE[bit][1]]
    gaps = [*_gaps(data), *(["the taint is not known"] if bits is None else []), *wrong]
    verdict = worst(
        Verdict.INCONCLUSIVE if gaps else Verdict.PASS,
        *(_VERDICTS[found.pattern.severity] for found in news),
        *(_VERDICTS[taint.GRAVE[bit][0]] for bit in bad_bits),
    )
    return CheckResult(
        name=NAME,
        verdict=verdict,
        evidence=_evidence(news, bad_bits, gaps),
        details={
            "lines": [{"kind": found.pattern.name, "text": found.text} for found in news[:_MOST_LINES]],
            "count": len(news),
            "as_before": len(counted) - len(news),
            "ignored": len(matches) - len(counted),
            "new_taint": [taint.name(bit) for bit in bits or ()],
            "gaps": gaps,
        },
    )


def _matches(lines: tuple[str, ...]) -> list[_Found]:
    found = []
    for line in lines:
        text = kernel_text(line)
        pattern = next((p for p in PATTERNS if text is not None and p.expression.search(text)), None)
        if text is not None and pattern is not None:
            found.append(_Found(pattern, text))
    return found


def _compiled(expressions: tuple[str, ...]) -> tuple[list[re.Pattern[str]], list[str]]:
    """The playbook's expressions, and a sentence for each that is none (loading refuses those)."""
    compiled, wrong = [], []
    for expression in expressions:
        try:
            compiled.append(re.compile(expression))
        except re.error as error:
            wrong.append(f"log_ignore {expression!r} is no regular expression: {error}")
    return compiled, wrong


def _new_taint(before: Before, after: After) -> list[int] | None:
    """The taint bits that this boot added; None where it is not known. An unknown old taint counts as 0."""
    found = _taint_of(after)
    return None if found is None else taint.added(_taint_of(before) or 0, found)


def _taint_of(side: Before) -> int | None:
    collected = optional_int(side.data("log").get("taint"))
    return side.facts.taint if collected is None else collected


def _gaps(data: Mapping[str, Any]) -> list[str]:
    """Why a log without bad lines proves nothing."""
    gaps = []
    if data.get("wrapped") is not False:
        gaps.append("the kernel log has lost its beginning")
    if data.get("complete") is not True:
        gaps.append("records were lost while the kernel log was read")
    if data.get("truncated") is True:
        gaps.append("the kernel log was cut off for its size")
    return gaps


def _evidence(news: list[_Found], bad_bits: list[int], gaps: list[str]) -> str:
    # The grave ones first: there may be room for one only.
    ordered = sorted(news, key=lambda found: found.pattern.severity is not Severity.FAILURE)
    parts = [f"{ordered[0].pattern.name}: {ordered[0].text}"] if ordered else []
    if len(ordered) > 1:
        parts.append(f"{len(ordered) - 1} more such lines")
    if bad_bits:
        parts.append(f"tainted by {', '.join(taint.name(bit) for bit in bad_bits)}")
    return "; ".join(parts + gaps) or "no bad line and no taint that was not there before"


JUDGE = Judge(name=NAME, collectors=("log",), judge=judge)
