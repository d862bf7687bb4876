"""Artifacts in /var/lib/kexec-fleet/artifacts/<sha256>: taken in over the channel, resumable, bounded."""

import errno
import os
import shutil
from typing import Any, Dict, List, Set

from workers.hostagent import files
from workers.hostagent.deadline import Deadline, interrupting
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.protocol import Channel

# The newest of each kind that stay, besides those that this session uses. A derived file is made again from
# its source: it never takes a source's place.
_KEEP = 2
KINDS = ("kernel", "initrd")
_DERIVED = "derived "
# A derived file until it is whole; its hash is not known before.
_UNFINISHED = "derived.partial"
# Left free on the file system that also holds the host's own data. Bytes.
_RESERVE = 32 << 20
# The largest chunk: what a worker may have to send again. Bytes.
MAX_CHUNK = 64 << 20


class Staging(object):
    """`sha256` is always checked to be 64 hex digits before it becomes part of a path."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._directory = env.lib_dir + "/artifacts"
        self._index = self._directory + "/index.json"
        self._ours: Set[str] = set()

    def protect(self, path: str) -> None:
        """An artifact that this session loads or derives from is never pruned by it."""
        self._ours.add(os.path.basename(path))

    def begin(self, sha256: str, size: int, kind: str) -> Dict[str, Any]:
        """-> {"have", "offset", "free"}. Raises AgentError `disk_full` with the figures, `bad_request`."""
        path = self._path(sha256)
        if size < 0 or kind not in KINDS:
            raise AgentError("bad_request", "stage_begin wants a size and one of {}".format(", ".join(KINDS)))
        self._make_directory()
        self._ours.add(sha256)
        self._remember(sha256, kind)
        self._prune()
        free = self._env.kernel.free_bytes(self._directory)
        if _size(path) == size:
            os.utime(path, None)  # newest again
            return {"have": True, "offset": size, "free": free}
        files.unlink_quietly(path)
        partial = path + ".partial"
        if _size(partial) > size:
            files.unlink_quietly(partial)
        offset = max(_size(partial), 0)
        needed = size - offset + _RESERVE
        if needed > free:
            raise self._full(needed, free)
        return {"have": False, "offset": offset, "free": free}

    def chunk(
        self, channel: Channel, sha256: str, offset: int, length: int, deadline: Deadline
    ) -> Dict[str, Any]:
        """Takes exactly `length` raw bytes off the channel, also when it refuses them. -> {"offset"}."""
        refusal: Any = None
        descriptor = -1
        try:
            descriptor = self._open_partial(sha256, offset)
        except (AgentError, OSError) as error:
            refusal = error
        left = length
        try:
            while left:
                data = channel.take_bytes(left, deadline)
                left -= len(data)
                if refusal is None:
                    try:
                        files.write_all(descriptor, data)
                    except OSError as error:
                        refusal = error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if refusal is not None:
            raise self.explain(refusal)
        return {"offset": offset + length}

    def end(self, sha256: str, size: int, deadline: Deadline) -> Dict[str, Any]:
        """Hashes, renames. -> {"path", "sha256", "size"}. Raises AgentError `hash_mismatch`, `incomplete`."""
        path = self._path(sha256)
        partial = path + ".partial"
        if _size(path) == size:
            return {"path": path, "sha256": sha256, "size": size}
        have = _size(partial)
        if have != size:
            raise AgentError(
                "incomplete",
                "{} of {} bytes are here".format(max(have, 0), size),
                "go on with stage_chunk",
                detail={"offset": max(have, 0)},
            )
        with open(partial, "rb") as handle, interrupting(deadline, "hashing an artifact"):
            actual = files.sha256_of(handle.fileno())
        if actual != sha256:
            os.unlink(partial)
            raise AgentError(
                "hash_mismatch",
                "{} bytes arrived with SHA-256 {}, expected {}".format(size, actual, sha256),
                "stage the file again from its beginning",
                detail={"sha256": actual, "expected": sha256},
            )
        os.rename(partial, path)
        return {"path": path, "sha256": sha256, "size": size}

    def unfinished(self, size: int) -> str:
        """Where a derived file of that size may be written. Raises AgentError `disk_full`, OSError."""
        self._make_directory()
        self._prune()
        free = self._env.kernel.free_bytes(self._directory)
        if size + _RESERVE > free:
            raise self._full(size + _RESERVE, free)
        return self._directory + "/" + _UNFINISHED

    def finished(self, sha256: str, kind: str) -> str:
        """Gives the unfinished file its name and takes it among this session's own. -> its path."""
        path = self._path(sha256)
        self._ours.add(sha256)
        os.rename(self._directory + "/" + _UNFINISHED, path)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._known().get(sha256) not in KINDS:  # derived into what was staged as it is
            self._remember(sha256, _DERIVED + kind)
        return path

    def explain(self, refusal: Exception) -> AgentError:
        """The refusal as an answer: `disk_full` with the figures, `io_error`."""
        if isinstance(refusal, AgentError):
            return refusal
        assert isinstance(refusal, OSError)
        if refusal.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full(0, self._env.kernel.free_bytes(self._directory))
        return AgentError("io_error", "writing the artifact: {}".format(refusal), errno=refusal.errno)

    def clean(self) -> List[str]:
        """Removes everything staged. -> what was removed."""
        if not os.path.isdir(self._env.lib_dir):
            return []
        shutil.rmtree(self._env.lib_dir)
        return [self._env.lib_dir]

    # -- inside -------------------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        for directory in (self._env.lib_dir, self._directory):
            os.chmod(directory, 0o700)

    def _path(self, sha256: str) -> str:
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise AgentError("bad_request", "{!r} is no SHA-256".format(sha256[:80]))
        return self._directory + "/" + sha256

    def _open_partial(self, sha256: str, offset: int) -> int:
        path = self._path(sha256) + ".partial"
        if sha256 not in self._ours:
            raise AgentError("bad_request", "stage_chunk comes after stage_begin")
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        have = os.fstat(descriptor).st_size
        if have != offset:
            os.close(descriptor)
            raise AgentError(
                "bad_offset",
                "the chunk begins at {}, {} bytes are here".format(offset, have),
                "go on at the offset that stage_begin answers",
                detail={"offset": have},
            )
        return descriptor

    def _full(self, needed: int, free: int) -> AgentError:
        return AgentError(
            "disk_full",
            "{} has {} bytes free, {} are needed".format(self._directory, free, needed or "more"),
            "make room there; {} bytes always stay free".format(_RESERVE),
            errno=errno.ENOSPC,
            detail={"path": self._directory, "free": free, "needed": needed, "reserve": _RESERVE},
        )

    def _known(self) -> Dict[str, str]:
        """{artifact's name: its kind}"""
        index = files.read_json(self._index)
        return index if isinstance(index, dict) else {}

    def _remember(self, sha256: str, kind: str) -> None:
        index = self._known()
        known = {name: index[name] for name in index if _size(self._directory + "/" + name) >= 0}
        known[sha256] = kind
        files.write_json(self._index, known)

    def _prune(self) -> None:
        """Whole and partial files alike: all but the newest two of each kind and this session's own."""
        index = self._known()
        entries: Dict[str, List[Any]] = {}
        for name in files.names(self._directory):
            if name == "index.json" or name.partition(".")[0] in self._ours:
                continue
            kind = "partial" if name.endswith(".partial") else str(index.get(name))
            if name == _UNFINISHED or kind.startswith(_DERIVED):
                files.unlink_quietly(self._directory + "/" + name)
                continue
            entries.setdefault(kind, []).append((os.stat(self._directory + "/" + name).st_mtime, name))
        for kind, found in entries.items():
            ours = sum(1 for name in self._ours if index.get(name) == kind)
            for _, name in sorted(found, reverse=True)[max(0, _KEEP - ours) :]:
                files.unlink_quietly(self._directory + "/" + name)


def _size(path: str) -> int:
    """The file's size, -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
