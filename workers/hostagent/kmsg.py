"""The kernel log through /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

One read gives one record, "prio,seq,usec,flags[,...];text\\n" and continuation lines that begin with a
space. `prio` is facility * 8 + level. EPIPE says that records were overwritten before they could be read.
"""

import errno
import os
from typing import Any, List, NamedTuple, Optional

# A read with a smaller buffer than the record fails with EINVAL (CONSOLE_EXT_LOG_MAX is 8192).
_READ = 1 << 16


class Lines(NamedTuple):
    """`complete` is False where records were overwritten, cut off by the bound, or the log cannot be read."""

    lines: List[str]
    complete: bool


class KernelLog(object):
    """A place in the kernel log: its start, or (`from_now`) what comes after this moment. Close it."""

    def __init__(self, path: str, from_now: bool) -> None:
        self._descriptor: Optional[int] = None
        self._rest = b""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if from_now:
                os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            self.close()

    def __enter__(self) -> "KernelLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, most_bytes: int = 1 << 20) -> Lines:
        """Every record since the last read, without continuation lines, as "prio,seq,usec,flags;text"."""
        if self._descriptor is None:
            return Lines([], False)
        lines: List[str] = []
        complete = True
        last: Optional[int] = None
        total = 0
        while True:
            try:
                block = os.read(self._descriptor, _READ)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    complete = False
                    continue
                # EAGAIN: nothing more for now. Anything else: the rest cannot be read.
                return Lines(lines, complete and error.errno == errno.EAGAIN)
            if not block:
                return Lines(lines, complete)
            self._rest += block
            whole, _, self._rest = self._rest.rpartition(b"\n")
            for raw in whole.split(b"\n"):
                if raw[:1] in (b" ", b""):
                    continue
                line = raw.decode("utf-8", "replace")
                number = sequence(line)
                if number is not None and last is not None and number != last + 1:
                    complete = False
                last = number
                total += len(raw)
                if total > most_bytes:
                    return Lines(lines, False)
                lines.append(line)


def sequence(line: str) -> Optional[int]:
    """The record's sequence number, None for a damaged one."""
    try:
        return int(line.split(";", 1)[0].split(",")[1])
    except (IndexError, ValueError):
        return None


def level(line: str) -> int:
    """The record's log level, 0 (emergency) to 7 (debug); 4 is a warning. 7 for a damaged record."""
    try:
        return int(line.split(",", 1)[0]) & 7
    except ValueError:
        return 7


def text(line: str) -> str:
    return line.partition(";")[2]
