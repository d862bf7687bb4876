"""What earlier boots left behind: the log that an attempt wrote before its jump, and pstore's records."""

import os
from typing import Any, Dict, List, Optional, Tuple

from workers.hostagent import evidence
from workers.hostagent.environment import Environment

_MOST_RECORDS = 20
_MOST_RECORD = 64 << 10  # bytes of each, from its end: there the death is
_MOST_TOTAL = 512 << 10
_MOST_LOG = 1 << 20  # more than evidence.write ever writes
# systemd-pstore.service moves records to the disk, a kernel log's into a folder of its own (pstore.conf(5)).
_MOST_DEPTH = 3


def collect(env: Environment, args: Dict[str, Any]) -> Dict[str, Any]:
    """args {"nonce"} -> {"log": [lines] or None, "pstore": [{"name": path, "mtime", "text", "truncated"}],
    newest first, "why_not": text or None}: why the log or every record is missing."""
    reasons: List[str] = []
    log: Optional[List[str]] = None
    try:
        nonce = args.get("nonce")
        if not isinstance(nonce, str):
            raise ValueError("evidence wants a nonce")
        path = evidence.path_of(env, nonce)
        with open(path, "rb") as handle:
            log = handle.read(_MOST_LOG).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError) as error:
        reasons.append("no log of this attempt: {}".format(error))
    records = _records(env, reasons)
    return {"log": log, "pstore": records, "why_not": "; ".join(reasons) or None}


def _records(env: Environment, reasons: List[str]) -> List[Dict[str, Any]]:
    found: List[Tuple[float, str, int]] = []
    for place in (env.sys + "/fs/pstore", env.systemd_pstore):
        _find(place, _MOST_DEPTH, found)
    records: List[Dict[str, Any]] = []
    total = 0
    for mtime, path, size in sorted(found, reverse=True)[:_MOST_RECORDS]:
        most = min(_MOST_RECORD, _MOST_TOTAL - total)
        if most <= 0:
            break
        try:
            data = _tail(path, size, most)
        except OSError as error:
            reasons.append("{}: {}".format(path, error))
            continue
        total += len(data)
        records.append(
            {
                "name": path,
                "mtime": mtime,
                "text": data.decode("utf-8", "replace"),
                "truncated": size > len(data),
            }
        )
    if not found:
        reasons.append("pstore kept nothing")
    return records


def _find(place: str, depth: int, found: List[Tuple[float, str, int]]) -> None:
    """Appends (mtime, path, size) of the regular files at most `depth` levels down."""
    try:
        entries = list(os.scandir(place))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False) and depth > 1:
                _find(entry.path, depth - 1, found)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime, entry.path, status.st_size))
        except OSError:
            continue  # moved to the disk meanwhile


def _tail(path: str, size: int, most: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        data = b""
        offset = max(0, size - most)
        while len(data) < most:
            block = os.pread(descriptor, most - len(data), offset + len(data))
            if not block:
                break
            data += block
        return data
    finally:
        os.close(descriptor)
