"""Power through QEMU's monitor: the reset button of a virtual machine.

QEMU serves one client at a time on a monitor; whoever comes second waits for its greeting until the first
goes. So each call connects, asks and goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.power import QmpPower
from workers.deadline import Deadline
from workers.power.base import STEP, Power, PowerResult, PowerState
from workers.power.secrets import Redactor

KIND = "qmp"

# The library writes each failed connection to its log as an error; ours says it, with host and hint.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

_RUNNING = "running"
# RunState in qapi/run-state.json (QEMU 7.2 to 10.1). In these the machine's state is being moved or written,
# and a reset would spoil it.
_BUSY = frozenset(("inmigrate", "postmigrate", "finish-migrate", "restore-vm", "save-vm", "colo"))
_OFF = frozenset(("shutdown", "prelaunch"))
_ON = frozenset((_RUNNING, "paused", "suspended", "watchdog", "guest-panicked", "io-error", "debug"))
_EVENT_S = 10.0
_RETRY_S = 0.05
_CLOSE_S = 5.0

_T = TypeVar("_T")


class _Refused(Exception):
    """QEMU will not, or we must not: message and hint."""


class QmpDriver:
    """See `workers.power.base.PowerDriver`."""

    def __init__(self, host: str, power: QmpPower) -> None:
        self._host = host
        self._socket = Path(power.socket)

    def cycle(self, deadline: Deadline) -> PowerResult:
        return PowerResult(KIND, self._asked(_cycle, deadline))

    def status(self, deadline: Deadline) -> PowerState:
        status = self._asked(_status, deadline)
        power = Power.ON if status in _ON else Power.OFF if status in _OFF else Power.UNKNOWN
        return PowerState(power, f"QEMU says {Redactor(()).line(status, 40)}")

    def _asked(self, question: Callable[[QMPClient], Awaitable[_T]], deadline: Deadline) -> _T:
        """The answer to one conversation. Raises PowerFailed."""
        if deadline.expired:
            raise self._failed("timeout", "no time was left to ask QEMU", "give `deadlines` more time")
        try:
            return asyncio.run(self._conversation(question, deadline))
        except TimeoutError:
            message = "QEMU's monitor gave no answer in time"
            raise self._failed(
                "timeout", message, "does another client hold the monitor, or is QEMU stopped?"
            ) from None
        except _Refused as error:
            message, hint = error.args
            raise self._failed("refused", message, hint) from None
        except ExecuteError as error:
            raise self._failed("refused", f"QEMU refused: {error}", "ask it by hand") from None
        except ConnectError as error:
            raise self._not_connected(error.exc) from None
        except OSError as error:
            raise self._not_connected(error) from None
        except Exception as error:
            # The library's own errors, and its AssertionError, ValueError and others from what is no QEMU.
            message = f"QEMU's monitor broke off: {error or 'it hung up'}"
            raise self._failed("no_monitor", message, "is QEMU still running?") from None

    async def _conversation(self, question: Callable[[QMPClient], Awaitable[_T]], deadline: Deadline) -> _T:
        async with asyncio.timeout(deadline.left()):
            client = QMPClient("power")
            await self._connect(client)
            try:
                return await question(client)
            finally:
                await _close(client)

    async def _connect(self, client: QMPClient) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await self._reach(connection)
            await client.connect(connection)
        except BaseException:
            connection.close()
            raise

    async def _reach(self, connection: socket.socket) -> None:
        """Through the folder's descriptor: a socket's address holds 107 bytes (unix(7)).

        Where QEMU's queue is full connect(2) says EAGAIN, after which nothing tells when to try again;
        asyncio takes that for "in progress" and fails.
        """
        connection.setblocking(False)
        folder = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    connection.connect(f"/proc/self/fd/{folder}/{self._socket.name}")
                    return
                except BlockingIOError:
                    await asyncio.sleep(_RETRY_S)
        finally:
            os.close(folder)

    def _not_connected(self, error: Exception) -> PowerFailed:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            message, hint = "there is no monitor socket", "is the machine started, and the path right?"
        elif isinstance(error, ConnectionRefusedError):
            message, hint = "nobody listens on the monitor socket", "QEMU has ended: start the machine"
        elif isinstance(error, EOFError):
            message, hint = "QEMU hung up before it said a word", "is QEMU still running?"
        elif isinstance(error, OSError):  # an address that is too long has no errno
            message, hint = f"the monitor socket: {error.strerror or error}", "may we write to it?"
        else:
            message = f"this is no QMP monitor: {Redactor(()).line(str(error))}"
            hint = "name the socket of a chardev with `-mon ...,mode=control` (or of `-qmp`)"
        return self._failed("no_monitor", message, hint)

    def _failed(self, code: str, message: str, hint: str) -> PowerFailed:
        clean = Redactor(()).line(message)
        return PowerFailed(self._host, STEP, f"{clean} ({self._socket})", hint=hint, code=code)


async def _close(client: QMPClient) -> None:
    """What was asked is answered; how the connection ends no longer matters."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.disconnect()
    except Exception:  # disconnect() raises again whatever the library's reader or writer died of
        pass


async def _status(client: QMPClient) -> str:
    answer: Any = await client.execute("query-status")
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, str):
        raise _Refused("QEMU's answer to query-status is none", "is this QEMU's monitor?")
    return status


async def _cycle(client: QMPClient) -> str:
    before = await _status(client)
    if before in _BUSY:
        raise _Refused(
            f"the machine is {before}: it is being moved or written, and a reset would spoil that",
            "wait for it to end, or end it",
        )
    listener = EventListener(("RESET", "SHUTDOWN"))
    with client.listen(listener):
        await client.execute("system_reset")
        try:
            async with asyncio.timeout(_EVENT_S):
                event = await listener.get()
        except TimeoutError:
            raise _Refused(
                f"QEMU took system_reset and did not reset the machine in {_EVENT_S:g} s", "is QEMU stuck?"
            ) from None
    if event["event"] == "SHUTDOWN":
        raise _Refused("QEMU ends at a reset", "start it without -no-reboot (-action reboot=reset)")
    text = f"QEMU reset the machine, which was {Redactor(()).line(before, 40)}"
    if await _status(client) == _RUNNING:
        return text
    # Stopped, panicked or not yet begun: the CPUs stand still after the reset too.
    await client.execute("cont")
    return f"{text}, and let it run"
