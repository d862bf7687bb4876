"""What the command line prints and how it exits: consoles, error texts, exit codes.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the rollout failed, or a host or the lab did |
| 2 | bad input, or something this machine lacks: no host was touched |
| 3 | paused or inconclusive: look, then resume |
| 130 | interrupted; a rollout can be resumed |
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.domain.errors import (
    BrokerError,
    HostError,
    InputError,
    JournalBusy,
    JournalError,
    JournalNotFound,
    JournalUnusable,
    KexecFleetError,
    SetupError,
)

if TYPE_CHECKING:
    from rich.console import Console

DEBUG = "KEXEC_FLEET_DEBUG"
# A pipe has no width; what reads it must not find lines broken.
_PIPE_WIDTH = 200


class ExitCode(IntEnum):
    """What a script learns from this program."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    INCONCLUSIVE = 3
    INTERRUPTED = 130


# The first match counts; any other KexecFleetError is FAILED.
_EXIT_CODES: tuple[tuple[type[KexecFleetError], ExitCode], ...] = (
    (InputError, ExitCode.BAD_INPUT),
    (SetupError, ExitCode.BAD_INPUT),
    (JournalNotFound, ExitCode.BAD_INPUT),
    (JournalUnusable, ExitCode.BAD_INPUT),
    (JournalBusy, ExitCode.BAD_INPUT),
    (JournalError, ExitCode.INCONCLUSIVE),  # the disk under a running rollout: look, then resume
    (BrokerError, ExitCode.INCONCLUSIVE),
)


def exit_code(error: KexecFleetError) -> ExitCode:
    """The exit code that an error which reaches the top ends with."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.FAILED)


def stdout_console() -> Console:
    """For results. No colours and no line breaks of its own when not a terminal."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    """For progress and notices, so that standard output is the result alone."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console  # takes 30 ms to import

    # rich itself honours NO_COLOR and drops colours when `stream` is not a terminal.
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else _PIPE_WIDTH,
    )


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def errors_to_exit(*, as_json: bool = False) -> Iterator[None]:
    """End the program with a text on standard error and an exit code, never with a traceback.

    `as_json`: the errors come as a document on standard output too. An unexpected exception is one line; with
    KEXEC_FLEET_DEBUG=1 its traceback is saved to a file.
    """
    try:
        yield
    except KexecFleetError as error:
        sys.exit(_report(error, as_json))
    except KeyboardInterrupt:
        _to_stderr("interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has enough. Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        sys.exit(_report_bug(error, as_json))


def _report(error: KexecFleetError, as_json: bool) -> ExitCode:
    """Print an expected error, and those found along with it."""
    errors = all_errors(error)
    for one in errors:
        _to_stderr(str(one))
        if one.hint:
            _to_stderr(f"  hint: {one.hint}")
    code = exit_code(error)
    if as_json:
        print_json({"errors": [error_record(one) for one in errors], "exit_code": int(code)})
    return code


def all_errors(error: KexecFleetError) -> Sequence[KexecFleetError]:
    """The error itself and those that were found with it."""
    return (error, *error.others) if isinstance(error, InputError) else (error,)


def error_record(error: KexecFleetError) -> dict[str, Any]:
    """An error for programs: kind, message, hint, and where it is, as far as known."""
    record: dict[str, Any] = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, InputError) and error.position:
        record |= {
            "file": error.position.file,
            "line": error.position.line,
            "column": error.position.column,
        }
    if isinstance(error, HostError):
        record |= {"host": error.host, "step": error.step, "code": error.code, "errno": error.errno}
    return record


def _report_bug(error: Exception, as_json: bool) -> ExitCode:
    """One line for what should not happen; a rollout under way is as its journal says."""
    message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    _to_stderr(message)
    if os.environ.get(DEBUG) == "1":
        _to_stderr(f"  hint: the traceback is in {_save_traceback()}")
    else:
        _to_stderr(f"  hint: this is a bug; {DEBUG}=1 saves its traceback for a report")
    if as_json:
        record = {"kind": "InternalError", "message": message, "hint": ""}
        print_json({"errors": [record], "exit_code": int(ExitCode.INCONCLUSIVE)})
    return ExitCode.INCONCLUSIVE


def _save_traceback() -> Path:
    """Write the current exception's traceback to the user's state folder (XDG Base Directory)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = state / "kexec-fleet"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"traceback-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    path.write_text(f"{sys.argv}\n{traceback.format_exc()}", encoding="utf-8")
    return path


def _to_stderr(text: str) -> None:
    """One line, with control characters of foreign texts made harmless, and never wrapped."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    sys.stderr.write(shown + "\n")
