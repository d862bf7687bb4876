"""The one tree of exceptions; every message says what happened, `hint` says what to do next.

KexecFleetError
├── InputError                 bad inventory, playbook, option or file (exit code 2, no host touched)
│   ├── BootImageError         no kernel image, or none that kexec_file_load(2) takes
│   └── CommandLineTooLong     the next kernel would refuse it
├── SetupError                 something this machine lacks: a package, QEMU, disk space (exit code 2)
├── BrokerError                the message broker is not there; the journal is unharmed
├── LabError                   a lab VM, image or kernel could not be made or reached
├── JournalError
│   ├── JournalNotFound        no such rollout or journal (exit code 2)
│   ├── JournalUnusable        the file is no journal, or cannot be opened (exit code 2)
│   ├── JournalBusy            somebody else is at work on that rollout or host (exit code 2)
│   └── StaleFence             the lease has moved on: this writer must stop
├── IllegalTransition          a state change that the transition table does not have (a bug)
└── HostError                  carries host, step and whether the host's state is known
    ├── TransportError         the request may not have run (connection, login, broken channel)
    │   ├── HostUnreachable
    │   ├── HostKeyRefused
    │   └── LoginRefused
    ├── HostRefused            the request ran and the host said no (errno, missing python3, fence, disk)
    ├── PowerFailed            power control is broken, refused, or hung
    └── HostLost               we do not know whether it ran
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KexecFleetError(Exception):
    """Base of all errors that a user may see. `hint` is one sentence that says what to do next, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class SourcePosition:
    """A place in a file the user wrote; line and column count from 1, as editors do."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class InputError(KexecFleetError):
    """Bad input. `position` is known when the input came from a file; `others` were found along with it."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        position: SourcePosition | None = None,
        others: tuple[InputError, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.position = position
        self.others = others

    def __str__(self) -> str:
        return f"{self.position}: {self.message}" if self.position else self.message


class BootImageError(InputError):
    """Not a kernel image, a damaged one, or one that kexec_file_load(2) does not take."""


class CommandLineTooLong(InputError):
    """The command line with our words takes more bytes than the image allows."""


class SetupError(KexecFleetError):
    """This machine lacks something (QEMU, a package, disk space) that the command needs."""


class BrokerError(KexecFleetError):
    """The message broker is not there. Nothing is lost: the journal knows what is due."""


class LabError(KexecFleetError):
    """A lab VM, image or kernel could not be made, found or reached."""


class JournalError(KexecFleetError):
    """The journal could not be read or written."""


class JournalNotFound(JournalError):
    """No such rollout or journal."""


class JournalUnusable(JournalError):
    """The file is no journal, or cannot be opened: nothing was done."""


class JournalBusy(JournalError):
    """Somebody else is at work on that rollout or host: nothing was done."""


class StaleFence(JournalError):
    """The lease has moved on to another writer: whoever sees this must stop driving the host."""


class IllegalTransition(KexecFleetError):
    """A state change that the transition table does not have."""


class HostState(StrEnum):
    """What is known of the host after an error."""

    KNOWN = "known"
    UNKNOWN = "unknown"


class HostError(KexecFleetError):
    """An error at one host and one step. `state` says whether the host's state is known."""

    state = HostState.KNOWN

    def __init__(
        self, host: str, step: str, message: str, *, hint: str = "", code: str = "", errno: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.step = step
        self.code = code
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.host}: {self.step}: {self.message}"


class TransportError(HostError):
    """The connection failed: the request may not have run."""

    state = HostState.UNKNOWN


class HostUnreachable(TransportError):
    """No connection could be made: nothing ran."""

    state = HostState.KNOWN


class HostKeyRefused(TransportError):
    """The host's key is unknown or has changed: nothing ran."""

    state = HostState.KNOWN


class LoginRefused(TransportError):
    """The host refused the login: nothing ran."""

    state = HostState.KNOWN


class HostRefused(HostError):
    """The request ran on the host and the host said no. `code` is the agent's error code."""


class HostLost(HostError):
    """The request was sent and no answer came: it is not known whether it ran."""

    state = HostState.UNKNOWN


class PowerFailed(HostError):
    """Power control did not do what was asked; whether the host was switched is not known.

    `code` is `timeout`, `exit_status`, `no_command`, `secret`, `no_monitor` or `refused`.
    """

    state = HostState.UNKNOWN
