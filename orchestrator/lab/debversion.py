"""Debian's version order (deb-version(7)), so that "the newest of a prefix" means what apt means by it."""

from __future__ import annotations

from functools import cmp_to_key
from itertools import zip_longest

DIGITS = frozenset("0123456789")


def _rank(char: str) -> int:
    """`~` sorts before the end of the part, letters before everything else."""
    if char == "~":
        return -1
    if char.isalpha():
        return ord(char)
    return ord(char) + 256


def _split(part: str) -> list[tuple[str, int]]:
    """Pairs of (non-digits, number), as the algorithm walks them."""
    pairs: list[tuple[str, int]] = []
    position = 0
    while position < len(part):
        start = position
        while position < len(part) and part[position] not in DIGITS:
            position += 1
        text = part[start:position]
        start = position
        while position < len(part) and part[position] in DIGITS:
            position += 1
        pairs.append((text, int(part[start:position] or "0")))
    return pairs


def _compare_text(left: str, right: str) -> int:
    for a, b in zip_longest(left, right):
        difference = (_rank(a) if a else 0) - (_rank(b) if b else 0)
        if difference:
            return difference
    return 0


def _compare_part(left: str, right: str) -> int:
    for (text_a, number_a), (text_b, number_b) in zip_longest(_split(left), _split(right), fillvalue=("", 0)):
        difference = _compare_text(text_a, text_b) or number_a - number_b
        if difference:
            return difference
    return 0


def compare(left: str, right: str) -> int:
    """Negative, zero or positive, as `dpkg --compare-versions` orders them."""
    epoch_a, _, rest_a = left.rpartition(":")
    epoch_b, _, rest_b = right.rpartition(":")
    upstream_a, _, revision_a = rest_a.rpartition("-") if "-" in rest_a else (rest_a, "", "")
    upstream_b, _, revision_b = rest_b.rpartition("-") if "-" in rest_b else (rest_b, "", "")
    return (
        int(epoch_a or 0) - int(epoch_b or 0)
        or _compare_part(upstream_a, upstream_b)
        or _compare_part(revision_a, revision_b)
    )


version_key = cmp_to_key(compare)
