"""The table of connection errors is complete, and says how much is known after each of them."""

from __future__ import annotations

import errno
import inspect
import socket

import pytest
from paramiko import RSAKey, ssh_exception

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostLost,
    HostState,
    HostUnreachable,
    LoginRefused,
    TransportError,
)
from workers.connection.errors import (
    CAUGHT,
    PHASES,
    TABLE,
    HostKeyProblem,
    NotAnSshServer,
    Phase,
    refusal,
    translate,
)

PARAMIKO = [
    value
    for _, value in inspect.getmembers(ssh_exception, inspect.isclass)
    if issubclass(value, Exception) and value.__module__ == ssh_exception.__name__
]
SOCKET = [socket.error, socket.gaierror, socket.herror, socket.timeout]
# Every subclass of OSError that CPython raises for an errno a socket call can give (Objects/exceptions.c).
BY_ERRNO = [
    type(OSError(number, ""))
    for number in (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EACCES,
        errno.EINTR,
        errno.EAGAIN,
    )
]


def test_paramiko_has_the_exceptions_that_we_think_it_has() -> None:
    assert ssh_exception.SSHException in PARAMIKO
    assert len(PARAMIKO) >= 10


@pytest.mark.parametrize("cls", PARAMIKO)
def test_each_exception_of_paramiko_has_a_row_of_its_own(cls: type[Exception]) -> None:
    assert cls in TABLE, f"{cls.__name__} is new in paramiko: say what it means"


@pytest.mark.parametrize("cls", [*SOCKET, *BY_ERRNO])
def test_each_exception_of_the_socket_module_is_caught(cls: type[Exception]) -> None:
    assert issubclass(cls, CAUGHT)


def example(cls: type[BaseException]) -> BaseException:
    """An instance, with the arguments that its constructor insists on."""
    key = RSAKey.generate(1024)
    arguments: dict[type[BaseException], tuple[object, ...]] = {
        ssh_exception.BadHostKeyException: ("web1", key, key),
        ssh_exception.BadAuthenticationType: ("bad type", ["publickey"]),
        ssh_exception.PartialAuthentication: (["password"],),
        ssh_exception.ChannelException: (1, "Administratively prohibited"),
        ssh_exception.ProxyCommandFailure: ("nc", "failed"),
        ssh_exception.NoValidConnectionsError: ({("127.0.0.1", 22): OSError()},),
    }
    own = {HostKeyProblem: {"code": "c", "hint": "h"}, NotAnSshServer: {"code": "c", "hint": "h"}}
    return cls(*arguments.get(cls, ("words",)), **own.get(cls, {}))


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("cls", TABLE)
def test_every_row_makes_an_error_with_a_code_and_words(cls: type[BaseException], phase: Phase) -> None:
    error = translate(example(cls), "web1", "connect", phase)
    assert isinstance(error, HostError)
    assert (error.host, error.step) == ("web1", "connect")
    assert error.code
    assert error.message


def test_the_phase_decides_what_is_known() -> None:
    broken = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    expected = {
        Phase.DIAL: (HostUnreachable, HostState.KNOWN),
        Phase.HANDSHAKE: (HostUnreachable, HostState.KNOWN),
        Phase.LOGIN: (HostUnreachable, HostState.KNOWN),
        Phase.REQUEST: (TransportError, HostState.UNKNOWN),
        Phase.ANSWER: (HostLost, HostState.UNKNOWN),
    }
    assert set(PHASES) == set(expected)
    for phase, (kind, state) in expected.items():
        error = translate(broken, "web1", "step", phase)
        assert (type(error), error.state) == (kind, state)
        assert error.code == "reset"
        assert error.message == "Connection reset by peer"
        assert error.errno == errno.ECONNRESET


def test_the_nearest_row_wins() -> None:
    refused = translate(ssh_exception.AuthenticationException("no"), "h", "s", Phase.LOGIN)
    assert (type(refused), refused.code) == (LoginRefused, "login_refused")
    encrypted = translate(ssh_exception.PasswordRequiredException("no"), "h", "s", Phase.LOGIN)
    assert (type(encrypted), encrypted.code) == (LoginRefused, "key_encrypted")
    assert translate(TimeoutError(), "h", "s", Phase.DIAL).code == "deadline"
    assert translate(FileNotFoundError(2, "x"), "h", "s", Phase.DIAL).code == "network"


def test_special_cases_of_paramiko_s_words() -> None:
    no_key = ssh_exception.SSHException("No authentication methods available")
    assert translate(no_key, "h", "s", Phase.LOGIN).code == "no_key"
    other_type = ssh_exception.IncompatiblePeer("Incompatible ssh peer (no acceptable host key)")
    error = translate(other_type, "h", "s", Phase.HANDSHAKE)
    assert (type(error), error.code) == (HostKeyRefused, "host_key_type")
    old = ssh_exception.IncompatiblePeer("Incompatible ssh peer (no acceptable kex algorithm)")
    assert type(translate(old, "h", "s", Phase.HANDSHAKE)) is HostUnreachable


def test_a_host_key_problem_keeps_its_code_and_hint() -> None:
    error = translate(HostKeyProblem("m", code="host_key_changed", hint="do"), "h", "s", Phase.HANDSHAKE)
    assert (type(error), error.code, error.hint) == (HostKeyRefused, "host_key_changed", "do")


@pytest.mark.parametrize(
    ("program", "status", "stderr", "sudo", "code"),
    [
        ("python3", 127, "bash: line 1: python3: command not found\n", False, "no_python"),
        ("python3", 127, "sh: 1: python3: not found\n", False, "no_python"),
        ("python3", 127, "", False, "no_python"),
        ("kexec", 127, "bash: line 1: kexec: command not found\n", False, "no_command"),
        ("python3", 1, "sudo: a password is required\n", True, "no_sudo"),
        ("python3", 1, "sudo: a terminal is required to read the password; either use\n", True, "no_sudo"),
        ("python3", 1, "sudo-rs: interactive authentication is required\n", True, "no_sudo"),
        ("python3", 1, "bob is not in the sudoers file.\n", True, "no_sudo"),
        ("python3", 1, "Sorry, user bob is not allowed to execute 'x' as root on h.\n", True, "no_sudo"),
        ("python3", 1, "sudo: sorry, you must have a tty to run sudo\n", True, "no_sudo"),
        ("python3", 127, "env: 'sudo': No such file or directory\n", True, "no_sudo"),
        ("python3", 1, "sudo: python3: command not found\n", True, "no_python"),
        ("python3", 1, "Traceback (most recent call last):\nValueError\n", True, None),
        ("python3", 1, "sudo: a password is required\n", False, None),
        ("python3", 0, "sudo: unable to resolve host web1\n", True, None),
        ("python3", 3, "", False, None),
    ],
)
def test_why_a_program_never_ran(
    program: str, status: int, stderr: str, sudo: bool, code: str | None
) -> None:
    refused = refusal("web1", "run", program, status, stderr, sudo=sudo)
    assert (refused.code if refused else None) == code
