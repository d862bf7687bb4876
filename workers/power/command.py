"""Power through a command of the user's own: `ipmitool`, a cloud's CLI, a script that knows the rack.

The command is given no terminal, no input and a small environment (`PASSED` of ours, what the inventory
sets, the secrets): our own environment may hold what is none of its business. It runs in a process group of
its own, which is killed whole when the time is up; a child with a session of its own (a daemon) lives on.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.power import CommandPower
from workers.deadline import Deadline
from workers.power.base import STEP, Power, PowerResult, PowerState
from workers.power.secrets import Redactor, read_secrets

KIND = "command"

PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES",
    "SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip
"""Variables of ours that every power command gets. Others have to be named in the inventory."""

_KEPT_BYTES = 64 * 1024  # of each stream: its end
_SLICE_S = 0.05  # how often we look whether the command has ended while it says nothing
_REAP_S = 5.0  # a killed process in an uninterruptible sleep may never go

# ipmitool: "Chassis Power is on"; virsh domstate: "running", "shut off"; others: "off", "down", "poweredOn".
_ON = re.compile(r"\b(?:on|up|running|active|powered ?on)\b", re.IGNORECASE)
_OFF = re.compile(r"\b(?:off|down|stopped|halted|powered ?off)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Ended:
    """A command that ran: `status` is None where it was killed at its time."""

    status: int | None
    stdout: bytes
    stderr: bytes
    cut: tuple[bool, bool]  # whether the beginning of stdout and of stderr was dropped
    gone: bool = True  # whether a killed command did end


class CommandDriver:
    """See `workers.power.base.PowerDriver`."""

    def __init__(self, host: str, power: CommandPower, environment: Mapping[str, str] | None = None) -> None:
        """`environment` stands for our own where a test says so."""
        self._host = host
        self._power = power
        self._environment = os.environ if environment is None else environment

    def cycle(self, deadline: Deadline) -> PowerResult:
        said = self._run(self._power.run, deadline)
        return PowerResult(
            KIND, f"{_name(self._power.run)} exited with status 0" + (f": {said}" if said else "")
        )

    def status(self, deadline: Deadline) -> PowerState:
        if self._power.status is None:
            # What can be seen without switching anything: the program is there and the secrets can be read.
            read_secrets(self._host, self._power.secrets, self._environment)
            program = self._find(self._power.run)
            return PowerState(Power.UNKNOWN, f"{program} is there; no `status` command to ask")
        said = self._run(self._power.status, deadline)
        on, off = bool(_ON.search(said)), bool(_OFF.search(said))
        if on == off:
            text = f"{_name(self._power.status)} says neither on nor off: {said or 'nothing'}"
            return PowerState(Power.UNKNOWN, text)
        return PowerState(Power.ON if on else Power.OFF, said)

    def _run(self, argv: Sequence[str], deadline: Deadline) -> str:
        """The last line that it wrote to stdout. Raises PowerFailed where it does not exit with 0."""
        secrets = read_secrets(self._host, self._power.secrets, self._environment)
        redactor = Redactor(secrets.values())
        program = self._find(argv)
        passed = {name: self._environment[name] for name in PASSED if name in self._environment}
        seconds = min(self._power.timeout, deadline.left())
        if deadline.expired:
            raise self._failed("timeout", "no time was left to start it", "give `deadlines` more time", argv)
        ended = self._carry_out(
            [program, *argv[1:]], {**passed, **self._power.environment, **secrets}, deadline, redactor
        )
        error = redactor.last_line(_text(ended.stderr, ended.cut[1], redactor.longest))
        if ended.status == 0:
            return redactor.last_line(_text(ended.stdout, ended.cut[0], redactor.longest))
        last = f"; its last words: {error}" if error else "; it wrote nothing to stderr"
        if ended.status is None:
            left = "" if ended.gone else " (its process does not end even so)"
            raise self._failed(
                "timeout",
                f"it hung and was killed after {seconds:.3g} s{left}{last}",
                "run it by hand; `timeout` gives it more time",
                argv,
            )
        how = f"exit status {ended.status}" if ended.status >= 0 else f"killed by {_signal(-ended.status)}"
        raise self._failed("exit_status", f"{how}{last}", "run it by hand", argv)

    def _find(self, argv: Sequence[str]) -> str:
        """The program's path. Raises PowerFailed."""
        found = shutil.which(argv[0], path=self._power.environment.get("PATH", self._environment.get("PATH")))
        if found is None:
            raise self._failed(
                "no_command",
                "there is no such program, or it may not be run",
                "a name without `/` is looked for in PATH, one with `/` starts at the inventory's folder",
                argv,
            )
        return found

    def _carry_out(
        self, argv: Sequence[str], environment: Mapping[str, str], deadline: Deadline, redactor: Redactor
    ) -> _Ended:
        try:
            process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (
            OSError,
            ValueError,
        ) as error:  # a script without an interpreter, too long a list of arguments
            why = redactor.line((isinstance(error, OSError) and error.strerror) or str(error))
            raise self._failed(
                "no_command", f"it could not be started: {why}", "run it by hand", argv
            ) from None
        try:
            return _await(process, deadline.sooner(self._power.timeout))
        finally:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            if process.returncode is None:  # an interrupt, or it does not go
                _kill(process)

    def _failed(self, code: str, message: str, hint: str, argv: Sequence[str]) -> PowerFailed:
        return PowerFailed(
            self._host, STEP, f"the power command {_name(argv)}: {message}", hint=hint, code=code
        )


def _name(argv: Sequence[str]) -> str:
    """The program without its arguments, which may be long."""
    return Redactor(()).line(argv[0], 100)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Tail:
    """The end of what a stream carries."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.cut = False

    def take(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > _KEPT_BYTES:
            del self.data[:-_KEPT_BYTES]
            self.cut = True


def _text(data: bytes, cut: bool, longest: int) -> str:
    """The text, less what may be the rest of a secret whose beginning was dropped."""
    text = data.decode("utf-8", "replace")
    return text[longest:] if cut else text


def _await(process: subprocess.Popen[bytes], deadline: Deadline) -> _Ended:
    """Wait for the command's end, not for that of its streams: a child that it leaves may hold those."""
    tails = {stream: _Tail() for stream in (process.stdout, process.stderr) if stream is not None}
    with selectors.DefaultSelector() as selector:
        for stream in tails:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while (status := process.poll()) is None and not deadline.expired:
            _drain(selector, tails, min(_SLICE_S, deadline.left()))
        gone = True
        if status is None:
            gone = _kill(process)
        _drain(selector, tails, 0.0)
    out, err = tails.values()
    return _Ended(status, bytes(out.data), bytes(err.data), (out.cut, err.cut), gone)


def _drain(selector: selectors.BaseSelector, tails: dict[IO[bytes], _Tail], seconds: float) -> None:
    """Take what is there, at most a pipe's worth of each stream; wait up to `seconds` for the first byte."""
    if not selector.get_map():
        # Both streams are closed and the command goes on: nothing to wait on but its end.
        time.sleep(seconds)
        return
    for key, _events in selector.select(seconds):
        stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
        for _piece in range(32):
            try:
                data = os.read(stream.fileno(), _KEPT_BYTES)
            except BlockingIOError:
                break
            if not data:
                selector.unregister(stream)
                break
            tails[stream].take(data)


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill the process group; whether its leader is gone. It is not reaped yet, so the number is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return False
    return True
