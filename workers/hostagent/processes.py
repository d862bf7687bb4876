"""Which process is which (a pid with its start time), and children with a time limit."""

import os
import subprocess
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Identity(NamedTuple):
    """A process that cannot be mistaken for a later one with the same pid.

    `start` is field 22 of /proc/<pid>/stat, clock ticks since boot (proc_pid_stat(5)).
    """

    pid: int
    start: int


def identity(proc: str, pid: int) -> Optional[Identity]:
    """The living process `pid`, or None where it is gone or a zombie."""
    try:
        with open("{}/{}/stat".format(proc, pid), "rb") as handle:
            text = handle.read()
    except OSError:
        return None
    # The command, field 2, may itself hold spaces and brackets: count from the last bracket.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X", b"x"):
        return None
    return Identity(pid, int(fields[19]))


def alive(proc: str, who: Optional[Identity]) -> bool:
    return who is not None and identity(proc, who.pid) == who


def from_json(raw: Any) -> Optional[Identity]:
    """{"pid", "start"} -> Identity; None for anything else."""
    if (
        not isinstance(raw, dict)
        or not isinstance(raw.get("pid"), int)
        or not isinstance(raw.get("start"), int)
    ):
        return None
    return Identity(raw["pid"], raw["start"])


def to_json(who: Optional[Identity]) -> Optional[Dict[str, int]]:
    return None if who is None else {"pid": who.pid, "start": who.start}


def child_environment() -> Dict[str, str]:
    """What a child gets: words in English, no pager, no colours, and the administrator's tools."""
    environment = dict(os.environ, LC_ALL="C", SYSTEMD_PAGER="", SYSTEMD_COLORS="0")
    environment["PATH"] = PATH
    return environment


def run(argv: List[str], seconds: float) -> Tuple[Optional[int], str]:
    """(exit status, stdout and stderr together); status None where it could not be run or took too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(seconds, 0.001),
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        return None, "no answer within {:g} s".format(seconds)
    except OSError as error:
        return None, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")
