"""The one table that turns paramiko's, the socket module's and our own edge exceptions into the error tree.

What an exception means depends on how far we were (`Phase`): the same broken pipe is "nothing ran" while
connecting and "we do not know" after a request was sent. `tests/unit/test_ssh_errors.py` holds the table
complete.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import StrEnum

import paramiko
from paramiko import ssh_exception

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostLost,
    HostRefused,
    HostUnreachable,
    LoginRefused,
    TransportError,
)


class Phase(StrEnum):
    """How far a connection had come when an exception was raised."""

    DIAL = "dial"  # name lookup and TCP connect
    HANDSHAKE = "handshake"  # banner, key exchange, host key
    LOGIN = "login"  # the host key was accepted, the login was not yet
    REQUEST = "request"  # logged in; the request may not have reached the host whole
    ANSWER = "answer"  # the request was sent, the answer has not come


class HostKeyProblem(Exception):
    """Raised by the host key policy. `code` is "host_key_unknown", "host_key_changed" or
    "host_key_revoked".
    """

    def __init__(self, message: str, *, code: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class KeyFileProblem(Exception):
    """The private key that the inventory names cannot be used on this machine."""


class NotAnSshServer(Exception):
    """The other side closed, kept silent or spoke another protocol before its SSH banner."""

    def __init__(self, message: str, *, code: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Row:
    """One line of the table. `error` None: what the phase says."""

    error: type[HostError] | None
    code: str
    hint: str = ""


PHASES: dict[Phase, type[HostError]] = {
    Phase.DIAL: HostUnreachable,
    Phase.HANDSHAKE: HostUnreachable,
    Phase.LOGIN: HostUnreachable,
    Phase.REQUEST: TransportError,
    Phase.ANSWER: HostLost,
}

_SLOW = "raise deadlines.connect if the host is only slow"
_LOGIN = "check `user` and `key` in the inventory and the host's authorized_keys; passwords are never used"
_DOWN = "check that the host is up and that sshd listens on this port"
_BROKE = "the host went down or the network between dropped the session"
_CONFIG = "this comes from an ssh_config file, which this connection does not read: report it"

# Exact types first: the row of the nearest class in the exception's MRO is taken.
TABLE: dict[type[BaseException], Row] = {
    HostKeyProblem: Row(HostKeyRefused, "host_key"),  # code and hint are its own
    NotAnSshServer: Row(None, "no_banner"),  # code and hint are its own
    KeyFileProblem: Row(LoginRefused, "key_file", "correct `key` in the inventory"),
    ssh_exception.BadHostKeyException: Row(HostKeyRefused, "host_key_changed"),
    ssh_exception.PasswordRequiredException: Row(
        LoginRefused, "key_encrypted", "load the key into ssh-agent"
    ),
    ssh_exception.BadAuthenticationType: Row(LoginRefused, "login_refused", _LOGIN),
    ssh_exception.PartialAuthentication: Row(
        LoginRefused, "second_factor", "the host asks for a second factor"
    ),
    ssh_exception.UnableToAuthenticate: Row(LoginRefused, "login_refused", _LOGIN),
    ssh_exception.AuthenticationException: Row(LoginRefused, "login_refused", _LOGIN),
    ssh_exception.IncompatiblePeer: Row(
        None, "incompatible", "update sshd: only finite-field or CBC is offered"
    ),
    ssh_exception.MessageOrderError: Row(None, "protocol", "the server broke the SSH protocol (strict kex)"),
    ssh_exception.ChannelException: Row(
        None, "channel_refused", "raise MaxSessions, or allow forwarding on a jump"
    ),
    ssh_exception.ProxyCommandFailure: Row(None, "proxy", "the proxy command failed"),
    ssh_exception.NoValidConnectionsError: Row(None, "connect", _DOWN),
    ssh_exception.CouldNotCanonicalize: Row(None, "name", _CONFIG),
    ssh_exception.ConfigParseError: Row(None, "config", _CONFIG),
    ssh_exception.SSHException: Row(None, "ssh", _BROKE),
    socket.gaierror: Row(None, "name", "check `address` in the inventory"),
    socket.herror: Row(None, "name", "check `address` in the inventory"),
    TimeoutError: Row(None, "deadline", _SLOW),
    ConnectionRefusedError: Row(None, "refused", _DOWN),
    ConnectionResetError: Row(None, "reset", _BROKE),
    ConnectionAbortedError: Row(None, "reset", _BROKE),
    BrokenPipeError: Row(None, "reset", _BROKE),
    EOFError: Row(None, "closed", _BROKE),
    OSError: Row(None, "network", "check the route to the host from this machine"),
}

CAUGHT: tuple[type[BaseException], ...] = tuple(TABLE)


def translate(error: BaseException, host: str, step: str, phase: Phase) -> HostError:
    """The error of our tree for `error`; its cause is not chained here: `raise translate(...) from error`."""
    row = next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    kind = row.error or PHASES[phase]
    code, hint = getattr(error, "code", None), getattr(error, "hint", row.hint)
    message = _sentence(error)
    if isinstance(error, ssh_exception.IncompatiblePeer) and "host key" in message:
        kind, code = HostKeyRefused, "host_key_type"
        hint = "the host no longer offers a key of the type that is pinned or known: compare its keys"
    elif phase is Phase.LOGIN and message == "No authentication methods available":
        kind, code, hint = LoginRefused, "no_key", "set `key` in the inventory or load a key into ssh-agent"
    if not isinstance(code, str):  # ChannelException's code is the protocol's number
        code = row.code
    errno = error.errno if isinstance(error, OSError) else None
    return kind(host, step, message, hint=hint, code=code, errno=errno)


def _sentence(error: BaseException) -> str:
    """What happened, in words: OSError without its "[Errno 111]", an empty message by the type's name."""
    if isinstance(error, paramiko.ChannelException):
        return f"the server refused to open a channel: {error.text or error.code}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError):
        return "the connection was closed"
    if isinstance(error, TimeoutError) and not str(error):
        return "the deadline passed"
    return str(error) or type(error).__name__


_SUDO_LINE = re.compile(
    r"^sudo(?:-rs)?: |not in the sudoers file|is not allowed to execute|may not run sudo", re.M
)
_SUDO_MISSES_COMMAND = re.compile(r"^sudo(?:-rs)?: .*command not found", re.M)


def refusal(
    host: str, step: str, program: str, status: int, stderr: str, *, sudo: bool
) -> HostRefused | None:
    """What a program's end says if it never ran: sudo refused, or there is no such program. None: it did run.

    With `sudo` the environment's LC_ALL is C, so sudo's words are the ones of its source (plugins/sudoers).
    """
    said = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {status}"
    missing = status == 127 and not (sudo and "sudo" in stderr)
    if missing or (sudo and status != 0 and _SUDO_MISSES_COMMAND.search(stderr)):
        code = "no_python" if program == "python3" else "no_command"
        return HostRefused(
            host, step, f"no {program} on the host: {said}", code=code, hint=f"install {program} there"
        )
    if sudo and status != 0 and (status == 127 or _SUDO_LINE.search(stderr)):
        hint = "allow `sudo -n` for this user (NOPASSWD in sudoers), or log in as root"
        return HostRefused(host, step, f"sudo refused: {said}", code="no_sudo", hint=hint)
    return None
