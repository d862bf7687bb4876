"""What an attempt leaves on the host's disk before it jumps: the end of the old kernel's log.

/var/lib/kexec-fleet/evidence/<nonce>.log: one line of JSON ({"nonce", "boot_id", "realtime_ns", "complete"}),
then the records as the collector `log` has them. A kernel that dies in the jump cannot tell what it saw.
"""

import json
import os
import re
import time
from typing import Any, Dict, List

from workers.hostagent.environment import Environment
from workers.hostagent.files import names, sync_directory, unlink_quietly, write_durably
from workers.hostagent.kmsg import KernelLog

_MOST_BYTES = 256 << 10
_MOST_RING = 64 << 20  # log_buf_len= of the largest hosts; all of it is read to find its end
_KEEP = 8
# A nonce becomes a file's name.
_NONCE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}\Z")
_SUFFIX = ".log"


def directory(env: Environment) -> str:
    return env.lib_dir + "/evidence"


def path_of(env: Environment, nonce: str) -> str:
    """Raises ValueError where the nonce cannot be part of a file's name."""
    if not _NONCE.match(nonce):
        raise ValueError("the nonce {!r} cannot name a file".format(nonce[:80]))
    return "{}/{}{}".format(directory(env), nonce, _SUFFIX)


def write(env: Environment, nonce: str) -> Dict[str, Any]:
    """-> {"path", "bytes", "detail"}: on the disk, file and directory, or `path` None and why in
    `detail`. Never raises: what cannot be kept does not keep a host from jumping."""
    try:
        path = path_of(env, nonce)
        data = _text(env, nonce)
        os.makedirs(directory(env), 0o700, exist_ok=True)
        write_durably(path, data, 0o600)
        sync_directory(env.lib_dir)
        _prune(env)
    except (OSError, ValueError) as error:
        return {"path": None, "bytes": 0, "detail": str(error)}
    return {"path": path, "bytes": len(data), "detail": ""}


def _text(env: Environment, nonce: str) -> bytes:
    with KernelLog(env.dev_kmsg, from_now=False) as log:
        lines = log.read(_MOST_RING)
    kept: List[bytes] = []
    used = 0
    for line in reversed(lines.lines):
        record = line.encode("utf-8", "replace") + b"\n"
        used += len(record)
        if used > _MOST_BYTES:
            break
        kept.append(record)
    head = {
        "nonce": nonce,
        "boot_id": env.boot_id(),
        "realtime_ns": int(time.time() * 1e9),
        "complete": lines.complete and len(kept) == len(lines.lines),
    }
    return json.dumps(head, sort_keys=True).encode("ascii") + b"\n" + b"".join(reversed(kept))


def _prune(env: Environment) -> None:
    paths = [directory(env) + "/" + name for name in names(directory(env))]
    paths.sort(key=os.path.getmtime, reverse=True)
    for path in paths[_KEEP:]:
        unlink_quietly(path)
