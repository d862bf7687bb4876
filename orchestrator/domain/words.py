"""Words of a kernel command line, split as the kernel splits them.

Source: `next_arg` in lib/cmdline.c and `parse_args`, `parameqn` in kernel/params.c (Linux 7.2): words are
separated by white space outside double quotes, a quote may stand anywhere in a word, there is no escape, `-`
and `_` are the same in a parameter's name, and the word `--` ends the kernel's own parameters.
"""

from __future__ import annotations

import re

# isspace() of lib/ctype.c (0xa0 counts there too, but a byte of that value is half of a UTF-8 letter to us).
_SPACE = " \t\n\v\f\r"
END_OF_PARAMETERS = "--"

_WORD = re.compile(rf'(?:[^{_SPACE}"]|"[^"]*(?:"|$))+')


def split_words(line: str) -> list[str]:
    """The words of `line` with their quotes kept: joined by blanks they mean the same again."""
    return _WORD.findall(line)


def parameter(word: str) -> str:
    """The name that a word sets, `-` as `_`: `init-on-alloc=1` gives `init_on_alloc`."""
    return word.lstrip('"').split("=", 1)[0].rstrip('"').replace("-", "_")


def is_closed(word: str) -> bool:
    """Whether each quote in the word has its partner. An open quote swallows all that follows."""
    return word.count('"') % 2 == 0


def split_init(words: list[str]) -> tuple[list[str], list[str]]:
    """The kernel's words, and from ` -- ` on those that go to init (with the `--`)."""
    if END_OF_PARAMETERS not in words:
        return words, []
    at = words.index(END_OF_PARAMETERS)
    return words[:at], words[at:]
