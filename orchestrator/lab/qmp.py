"""Short conversations with QEMU's monitor socket: one question, one answer, gone again.

A plain socket, not an asyncio library: there is nothing to wait for beside the answer.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import LabError

SECONDS = 20.0


class QmpError(LabError):
    """QEMU did not answer or refused the command."""


def connect_in_folder(path: Path, timeout: float) -> socket.socket:
    """Connects through the folder's descriptor: a socket's address holds 107 bytes, a path may be longer."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(folder)


def execute(path: Path, command: str, *, timeout: float = SECONDS) -> Any:
    """Runs one QMP command and returns its answer."""
    try:
        with (
            connect_in_folder(path, timeout) as connection,
            connection.makefile("rw", encoding="utf-8") as stream,
        ):
            json.loads(stream.readline())  # the greeting
            for request in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": request}) + "\n")
                stream.flush()
                answer = _read_answer(stream.readline)
                if "error" in answer:
                    raise QmpError(f"QEMU refused {request}: {answer['error'].get('desc', answer['error'])}")
            return answer["return"]
    except (OSError, ValueError) as error:
        raise QmpError(f"QEMU's monitor did not answer {command}: {error}", hint=f"socket: {path}") from None


def _read_answer(readline: Any) -> dict[str, Any]:
    """The next line that is an answer: events come in between."""
    while line := readline():
        message: dict[str, Any] = json.loads(line)
        if "return" in message or "error" in message:
            return message
    raise ValueError("the connection was closed")
