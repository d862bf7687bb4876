"""Order among kernel releases and other dotted numbers, so that 6.12 comes after 6.9.

Numbers are compared one by one, a missing one as 0. Of two with equal numbers a pre-release (`-rc1`, `~rc1`)
comes first; else what follows the numbers counts only where both sides have it: `7.3.4+deb13` is neither less
nor more than `7.3.4`.
"""

from __future__ import annotations

import re

_VERSION = re.compile(r"^v?([0-9]+(?:\.[0-9]+)*)(.*)$", re.DOTALL)
_PRE_RELEASE = re.compile(r"^[-~.]?rc[0-9]|^~")
_CHUNK = re.compile(r"[0-9]+|[^0-9]+")


def compare_versions(left: str, right: str) -> int | None:
    """-1, 0 or 1 as `left` is less than, equal to or more than `right`; None where one has no number."""
    left_match, right_match = _VERSION.match(left), _VERSION.match(right)
    if not left_match or not right_match:
        return None
    left_numbers, right_numbers = _numbers(left_match[1]), _numbers(right_match[1])
    if left_numbers != right_numbers:
        return -1 if left_numbers < right_numbers else 1
    return _compare_rest(left_match[2], right_match[2])


def _numbers(dotted: str) -> list[int]:
    """Without zeros at the end: 6.12.0 is 6.12."""
    numbers = [int(number) for number in dotted.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _compare_rest(left: str, right: str) -> int:
    """What stands behind equal numbers."""
    left_pre, right_pre = bool(_PRE_RELEASE.match(left)), bool(_PRE_RELEASE.match(right))
    if left_pre != right_pre:
        return -1 if left_pre else 1
    if not left or not right:
        return 0
    left_chunks, right_chunks = _chunks(left), _chunks(right)
    return (left_chunks > right_chunks) - (left_chunks < right_chunks)


def _chunks(text: str) -> list[tuple[int, int, str]]:
    """Runs of digits as numbers, before runs of other characters."""
    return [(0, int(run), "") if run.isdigit() else (1, 0, run) for run in _CHUNK.findall(text)]
