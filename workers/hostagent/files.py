"""Small reads and writes: text of /proc and /sys, atomic JSON, hashes through a descriptor."""

import hashlib
import json
import os
import stat
from typing import Any, List, Optional, Union

from workers.hostagent.errors import AgentError

_BLOCK = 1 << 20


def read_text(path: str, limit: int = 1 << 20) -> Optional[str]:
    """The file's text (at most `limit` bytes, undecodable ones replaced), or None where it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return handle.read(limit).decode("utf-8", "replace")
    except OSError:
        return None


def read_line(path: str) -> Optional[str]:
    """The file's text without surrounding white space, or None."""
    text = read_text(path)
    return None if text is None else text.strip()


def read_int(path: str) -> Optional[int]:
    """The file's one number (decimal), or None."""
    text = read_line(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def names(path: str) -> List[str]:
    """The directory's entries, sorted; empty where it cannot be read."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def link_name(path: str) -> Optional[str]:
    """The last part of a symbolic link's target (how /sys names drivers), or None."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def read_json(path: str) -> Any:
    """The file's JSON value, or None where there is none or it is damaged."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def write_json(path: str, value: Any) -> None:
    """Replaces the file in one step: a reader without the lock never sees half of it. Raises OSError."""
    temporary = "{}.{}".format(path, os.getpid())
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(descriptor, json.dumps(value, sort_keys=True).encode("ascii"))
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def write_durably(path: str, data: Union[bytes, str], mode: int) -> None:
    """Replaces the file in one step, and returns when it is on the disk: a direct jump unmounts nothing.

    A missing directory is made. Raises OSError.
    """
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        write_all(descriptor, data if isinstance(data, bytes) else data.encode("utf-8"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(path + ".new", path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Brings the directory's names to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes every byte. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def open_regular(path: str) -> int:
    """A descriptor to read the file with. Raises AgentError `no_file`, also for what is no regular file."""
    try:
        # Without O_NONBLOCK a FIFO would hold the agent until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why, number = getattr(error, "strerror", None) or error, getattr(error, "errno", None)
        raise AgentError("no_file", "{}: {}".format(path, why), errno=number) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AgentError("no_file", "{}: not a regular file".format(path))
    return descriptor


def sha256_of(descriptor: int) -> str:
    """SHA-256 (hex) of the whole file, by pread: the descriptor's position stays where it is."""
    digest = hashlib.sha256()
    offset = 0
    while True:
        block = os.pread(descriptor, _BLOCK, offset)
        if not block:
            return digest.hexdigest()
        digest.update(block)
        offset += len(block)


def unlink_quietly(path: str) -> bool:
    """Removes the file; False where there was none or it could not be removed."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
