"""Console text made fit to be read, searched and shown: lines without stamps, colours and control bytes.

A console carries whatever a dying machine, its firmware and its users send: half lines, NULs, cursor
movements, megabytes without a line end.
"""

from __future__ import annotations

import re

MOST_CHARACTERS = 1 << 20
"""More than this is cut out of the middle: a story has its beginning and its end."""
MOST_IN_LINE = 4096
"""More than the longest kernel command line (COMMAND_LINE_SIZE, 2048 on x86_64 and arm64)."""
LEFT_OUT = "... console text left out here ..."

# ECMA-48 control sequences, operating-system commands and other escapes; C0 (but tab), DEL and C1; characters
# that turn, hide or join what stands around them.
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[@-_]|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
    r"|[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)

# Who keeps a console may put the time before each line: the lab, conserver, `ts`.
_STAMP = re.compile(r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?:? ")


def clean(line: str, most: int = MOST_IN_LINE) -> str:
    """One line without what a terminal would obey, at most `most` characters, no blanks at its end."""
    # Bounded before the work, with room for what is taken out.
    text = CONTROL.sub("", line[: 4 * most]).replace("\t", " ")
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text).rstrip()
    return text if len(text) <= most else text[: most - 3] + "..."


def lines_of(text: str) -> list[str]:
    """The lines that say something, clean and without the time that the console's keeper put before them."""
    # Each line is cut before all of them are: one endless line must not push the others out.
    lines = [line[: 4 * MOST_IN_LINE] for line in re.split(r"\r*\n|\r", text)]
    clean_lines = (clean(_STAMP.sub("", line.strip("\0"))) for line in _bounded(lines))
    return [line for line in clean_lines if line.strip()]


def _bounded(lines: list[str]) -> list[str]:
    """At most MOST_CHARACTERS of lines: the first and the last ones, and a line between them that says so."""
    if sum(map(len, lines)) + len(lines) <= MOST_CHARACTERS:
        return lines
    head, tail = _fitting(lines), _fitting(lines[::-1])
    return [*lines[:head], LEFT_OUT, *lines[len(lines) - tail :]]


def _fitting(lines: list[str]) -> int:
    """How many of the first lines fit into half of what may be kept."""
    left = MOST_CHARACTERS // 2
    for count, line in enumerate(lines):
        left -= len(line) + 1
        if left < 0:
            return count
    return len(lines)
