"""Secrets of a power command: read when they are needed, and kept out of everything that is said.

A secret's file must not be open to others: with any of the permissions of "other" it is refused (as OpenSSH
does with keys, though a group may read ours: a service account shares a secret that way). A volume of
secrets that comes world-readable (Kubernetes: `defaultMode: 0400`) has to be mounted otherwise.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

from orchestrator.domain.consoletext import CONTROL
from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.power import Secret
from workers.power.base import STEP

# A secret goes into an environment variable: Linux takes 128 KiB for one (MAX_ARG_STRLEN, execve(2)).
_MOST_BYTES = 64 * 1024
_OTHERS = stat.S_IRWXO
_HIDDEN = "[secret]"


def read_secrets(host: str, secrets: Mapping[str, Secret], environment: Mapping[str, str]) -> dict[str, str]:
    """The texts by the name of the variable that carries them. Raises PowerFailed (code `secret`)."""
    return {name: _read(host, name, secret, environment) for name, secret in secrets.items()}


def _read(host: str, name: str, secret: Secret, environment: Mapping[str, str]) -> str:
    if secret.file is not None:
        text, hint = _read_file(host, name, secret.file), "write the secret into the file"
    else:
        variable = secret.environment or ""
        if variable not in environment:
            raise _failed(host, name, f"{variable} is not set", f"set {variable} where the rollout is run")
        text, hint = environment[variable], f"set {variable} where the rollout is run"
    if not text:
        raise _failed(host, name, "it is empty", hint)
    if "\0" in text:
        raise _failed(host, name, "it has a NUL character in it", "a secret is a text")
    return text


def _read_file(host: str, name: str, path: str) -> str:
    """The file's text without the line end that an editor leaves."""
    try:
        # Non-blocking: a FIFO without a writer must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise _failed(host, name, f"{path}: {why}", "check the path and who may read it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _failed(host, name, f"{path} is no regular file", "name a file")
        if status.st_mode & _OTHERS:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise _failed(host, name, f"{path} is open to others (mode {mode})", f"chmod o= {path}")
        if status.st_size > _MOST_BYTES:
            raise _failed(host, name, f"{path} is larger than {_MOST_BYTES} bytes", "is it the right file?")
        data = os.read(descriptor, _MOST_BYTES)
    except OSError as error:
        raise _failed(host, name, f"{path}: {error.strerror}", "check the file") from None
    finally:
        os.close(descriptor)
    return re.sub(r"\r?\n\Z", "", os.fsdecode(data))


def _failed(host: str, name: str, message: str, hint: str) -> PowerFailed:
    return PowerFailed(host, STEP, f"the secret {name}: {message}", hint=hint, code="secret")


class Redactor:
    """Takes secrets out of texts, and what a terminal would obey."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._forms = sorted(forms, key=len, reverse=True)

    @property
    def longest(self) -> int:
        """Characters of the longest text that is hidden; 0 where there is none."""
        return len(self._forms[0]) if self._forms else 0

    def line(self, text: str, most: int = 300) -> str:
        """`text` as one clean line of at most `most` characters, without secrets."""
        # Before and after cleaning: colours may stand inside a secret, and a secret may hold what is cleaned.
        clean = self._hide(CONTROL.sub("", self._hide(text).replace("\t", " ")))
        shown = "".join(letter if letter.isprintable() else "?" for letter in clean).strip()
        return shown if len(shown) <= most else shown[: most - 3] + "..."

    def last_line(self, text: str, most: int = 300) -> str:
        """The last line of `text` that says something, as `line` gives it; "" where there is none."""
        lines = re.split(r"[\r\n\x0b\x0c\x85\u2028\u2029]+", self._hide(text))
        return next((clean for one in reversed(lines) if (clean := self.line(one, most))), "")

    def _hide(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        return text


def _forms(secret: str) -> set[str]:
    """A secret, its lines, and how tools print it: in URLs, JSON, shell traces, base64. A line of fewer than
    four characters (a brace of a JSON key) is no secret by itself."""
    raw = {secret, secret.strip(), *(line.strip() for line in secret.splitlines() if len(line.strip()) >= 4)}
    forms = set(raw)
    for one in raw:
        data = os.fsencode(one)
        forms |= {quote(data, safe=""), quote(data), quote_plus(data), data.decode("utf-8", "replace")}
        forms |= {json.dumps(one)[1:-1], repr(one)[1:-1], one.replace("'", "'\\''")}
        forms |= {_base64_after(data, before) for before in range(3)}
    return {form for form in forms if form}


def _base64_after(data: bytes, before: int) -> str:
    """The letters that `data` alone decides where it stands in something longer, `before` bytes (modulo 3)
    from its beginning, as a password does in HTTP's `Authorization: Basic`. "" where those are too few."""
    letters = base64.b64encode(bytes(before) + data).decode().rstrip("=")
    whole = letters if (before + len(data)) % 3 == 0 else letters[:-1]
    own = whole[-(-before * 8 // 6) :]
    return own if len(own) >= 6 else ""
