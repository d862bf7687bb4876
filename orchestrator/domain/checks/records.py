"""Kernel log records: "prio,seq,usec,flags;text" (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"^(\d+),\d+,\d+,[^;]*;")
_KERNEL_FACILITY = 0  # <sys/syslog.h> LOG_KERN; what user space writes to /dev/kmsg never has it
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", re.IGNORECASE)


def kernel_text(record: str) -> str | None:
    """The text of a record that the kernel itself wrote; None for user space's, the whole line if it has no
    prefix."""
    match = _PREFIX.match(record)
    if match is None:
        return record
    return record[match.end() :] if int(match[1]) >> 3 == _KERNEL_FACILITY else None


def shape(text: str) -> str:
    """The text with its numbers and addresses taken out: what two boots' records of one event share."""
    return _NUMBER.sub("#", text)
