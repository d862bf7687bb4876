"""Inventories that `lab up --inventory` wrote outside the lab's folder: `lab down` clears away those that are
still as we wrote them, and names those that are not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from orchestrator.domain.errors import InputError
from orchestrator.lab import progress as say
from orchestrator.lab.paths import LabPaths, write_atomically


def write_copy(paths: LabPaths, place: Path, text: str) -> None:
    data = text.encode()
    # Written down first: a record without its file does no harm.
    records = {**_read(paths), str(place): hashlib.sha256(data).hexdigest()}
    write_atomically(paths.copies, json.dumps(records).encode())
    try:
        write_atomically(place, data)
    except OSError as error:
        raise InputError(f"the inventory {place} cannot be written: {error.strerror}") from None


def remove_copies(paths: LabPaths, progress: say.Progress) -> None:
    for name, digest in _read(paths).items():
        place = Path(name)
        try:
            ours = not place.is_symlink() and hashlib.sha256(place.read_bytes()).hexdigest() == digest
            if ours:
                place.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            say.notice(progress, f"the inventory {place} stays: {error.strerror}")
            continue
        if ours:
            say.done(progress, f"removed the inventory {place}")
        else:
            say.notice(progress, f"the inventory {place} was changed since; it stays")


def _read(paths: LabPaths) -> dict[str, str]:
    try:
        records = json.loads(paths.copies.read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in records.items()} if isinstance(records, dict) else {}
