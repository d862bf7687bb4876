"""Observed against expected: which case applies, and in what it differs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.lab.scenarios.observed import Observed, ObservedAttempt
from orchestrator.lab.scenarios.spec import AttemptExpected, AttemptObserved, Case, Needs, Then, When

HOST_FACTS = ("can_cma", "knows_no_cma", "has_cma_area", "init_on_alloc", "leaked")
ATTEMPT_FACTS = ("kernel_misaligned", "digest_stored", "path")
_MISSING = object()


@dataclass(frozen=True)
class Judgement:
    """`expected`: one line; `differences`: empty where all was as expected."""

    expected: str
    differences: tuple[str, ...]


def why_not_applicable(needs: Needs, able: Mapping[str, bool | None]) -> str:
    """Why a kernel with these abilities cannot show the scenario; empty where it can."""
    for name in ("can_cma", "knows_no_cma", "kexec_file"):
        wanted = getattr(needs, name)
        if wanted is not None and able.get(name) is not wanted:
            found = "its image does not tell" if able.get(name) is None else f"here it is {_word(able[name])}"
            return f"needs a kernel with {name}: {_word(wanted)}; {found}"
    return ""


def judge(cases: Sequence[Case], seen: Observed) -> Judgement:
    """The first case that applies. Where none does that is a difference: nobody said what is right."""
    reasons = []
    for number, case in enumerate(cases, 1):
        why = why_not_when(case.when, seen)
        if not why:
            return Judgement(describe_then(case.then), tuple(differences(case.then, seen)))
        reasons.append(f"case {number}: {why}")
    return Judgement("one of the cases to apply", (f"no case applies ({'; '.join(reasons)})",))


def why_not_when(when: When, seen: Observed) -> str:
    """The first observed fact that the case does not want; empty where it applies."""
    for name in HOST_FACTS:
        wanted, found = getattr(when, name), getattr(seen, name)
        if wanted is not None and found is not wanted:
            return f"{name} was {_word(found)}, not {_word(wanted)}"
    for number, attempt in enumerate(when.attempts, 1):
        if number > len(seen.attempts):
            return f"there was no attempt {number}"
        if why := _why_not_attempt(attempt, seen.attempts[number - 1]):
            return f"attempt {number}: {why}"
    return ""


def _why_not_attempt(when: AttemptObserved, seen: ObservedAttempt) -> str:
    if when.in_cma is not None and seen.in_cma not in when.in_cma:
        return f"in_cma was {seen.in_cma}, not {_choice(when.in_cma)}"
    for name in ATTEMPT_FACTS:
        wanted, found = getattr(when, name), getattr(seen, name)
        if wanted is not None and found != wanted:
            return f"{name} was {_word(found)}, not {_word(wanted)}"
    return ""


def differences(then: Then, seen: Observed) -> Iterable[str]:
    """Each expectation that did not hold, as one text."""
    if then.phase is not None and seen.phase not in then.phase:
        yield f"host {seen.phase}, not {_choice(then.phase)}"
    if then.exit is not None and seen.exit_code not in then.exit:
        yield f"exit code {seen.exit_code}, not {_choice(then.exit)}"
    if then.runs is not None and seen.runs != then.runs:
        yield f"{seen.runs or 'unknown'} runs at the end, not {then.runs}"
    if then.attempts is not None:
        if len(then.attempts) != len(seen.attempts):
            yield f"{len(seen.attempts)} attempts, not {len(then.attempts)}"
        for number, (wanted, found) in enumerate(zip(then.attempts, seen.attempts, strict=False), 1):
            yield from (f"attempt {number}: {text}" for text in _attempt(wanted, found))
    if then.last_attempt is not None:
        if seen.attempts:
            yield from (f"last attempt: {text}" for text in _attempt(then.last_attempt, seen.attempts[-1]))
        else:
            yield "there was no attempt"
    yield from (f"the host's reason lacks /{t}/" for t in then.reason if not re.search(t, seen.reason))
    for text in then.journal:
        if not any(re.search(text, line) for line in seen.journal):
            yield f"no event matches /{text}/"
    yield from (f"the console lacks /{t}/" for t in then.console if not re.search(t, seen.console))
    yield from (f"the console has /{t}/" for t in then.console_not if re.search(t, seen.console))


def _attempt(wanted: AttemptExpected, found: ObservedAttempt) -> Iterable[str]:
    if wanted.path is not None and found.path != wanted.path:
        yield f"path {found.path}, not {wanted.path}"
    for name in ("outcome", "stage", "in_cma"):
        allowed, was = getattr(wanted, name), getattr(found, name)
        if allowed is not None and was not in allowed:
            yield f"{name} {was}, not {_choice(allowed)}"
    if wanted.kernel_misaligned is not None and found.kernel_misaligned is not wanted.kernel_misaligned:
        yield f"kernel_misaligned {_word(found.kernel_misaligned)}, not {_word(wanted.kernel_misaligned)}"
    yield from (f"message lacks /{t}/: {found.message}" for t in wanted.message
                if not re.search(t, found.message))  # fmt: skip
    for path, value in wanted.record.items():
        was = look_up(found.record, path)
        if was is _MISSING or was != value:
            yield f"{path} is {'not there' if was is _MISSING else repr(was)}, not {value!r}"


def look_up(record: Any, path: str) -> Any:
    """The value at a dotted path; list items by number. What is not there compares unequal to all."""
    for key in path.split("."):
        if isinstance(record, Mapping) and key in record:
            record = record[key]
        elif isinstance(record, Sequence) and not isinstance(record, str) and key.isdigit():
            if int(key) >= len(record):
                return _MISSING
            record = record[int(key)]
        else:
            return _MISSING
    return record


def describe_then(then: Then) -> str:
    """What is expected, for a table."""
    parts = []
    if then.phase is not None:
        parts.append(_choice(then.phase))
    if then.attempts is not None:
        parts.append(" → ".join(_describe_attempt(attempt) for attempt in then.attempts) or "no attempt")
    if then.last_attempt is not None:
        parts.append(f"at last {_describe_attempt(then.last_attempt)}")
    if then.exit is not None:
        parts.append(f"exit {_choice(then.exit)}")
    if then.runs is not None:
        parts.append(f"{then.runs} runs")
    return ", ".join(parts) or "texts"


def _describe_attempt(attempt: AttemptExpected) -> str:
    text = f"{attempt.path or 'any'}: {_choice(attempt.outcome) if attempt.outcome else 'any'}"
    if attempt.stage:
        text += f" in {_choice(attempt.stage)}"
    return text


def describe_observed(seen: Observed) -> str:
    """What came out, for a table."""
    tried = " → ".join(
        f"{attempt.path}: {attempt.outcome}{f' in {attempt.stage}' if attempt.stage else ''}"
        for attempt in seen.attempts
    )
    return f"{seen.phase or 'no host'}, {tried or 'no attempt'}, exit {seen.exit_code}"


def _choice(values: Iterable[Any]) -> str:
    return "|".join(str(value) for value in values)


def _word(value: Any) -> str:
    return {True: "true", False: "false", None: "not observed"}.get(value, str(value))
