"""Requests that change nothing: no claim needed. Each is cut off at its deadline."""

import base64
import glob
import os
import stat
import time
from typing import Any, Callable, Dict

from workers.hostagent import bootdefault, facts, processes, readback, shutdown
from workers.hostagent.claims import ClaimStore
from workers.hostagent.collectors import COLLECTORS
from workers.hostagent.counter import Counter, invariant
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.files import open_regular, read_text, sha256_of
from workers.hostagent.protocol import Request

_HEAD = 131072
_MOST_MATCHES = 200
_NUMBER = (int, float)


def _facts(env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    return facts.collect(env, request.arg("devices", bool, True))


def _clock(env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    samples, span = request.arg("samples", int, 9), float(request.arg("span", _NUMBER, 1.0))
    if not 2 <= samples <= 1000 or not 0 < span <= 60:
        raise AgentError("bad_request", "clock wants 2 to 1000 samples over up to 60 s")
    counter = Counter()
    pairs = counter.pairs(samples, span)
    return {
        "pairs": [[pair.counter, pair.raw_ns] for pair in pairs],
        "widths_ns": [pair.width_ns for pair in pairs],
        "counter": counter.name,
        "span_s": (pairs[-1].raw_ns - pairs[0].raw_ns) / 1e9,
        "invariant": invariant(counter.name, read_text(env.proc + "/cpuinfo") or ""),
        "realtime_ns": int(time.time() * 1e9),
    }


def _status(env: Environment, store: ClaimStore, _request: Request) -> Dict[str, Any]:
    record = store.record()
    return {
        "boot_id": env.boot_id(),
        "phase": store.phase(record),
        "kexec_loaded": env.kexec_loaded(),
        "claim": None if record is None else dict(record.claim._asdict()),
        "recorded_phase": None if record is None else record.phase,
        "note": {} if record is None else record.note,
        "session_alive": record is not None and store.session_alive(record),
        "keeper_alive": store.keeper_alive(),
        "keeper": None if record is None else processes.to_json(record.keeper),
        "shutdown": shutdown.state(env),
        "fences": store.fences(),
    }


def _check(env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    name = request.arg("collector", str)
    collector = COLLECTORS.get(name)
    if collector is None:
        raise AgentError(
            "unknown_collector", "no collector {!r}".format(name[:80]), detail={"known": sorted(COLLECTORS)}
        )
    start = time.monotonic()
    data = collector(env, request.arg("args", dict, {}))
    return {"collector": name, "data": data, "seconds": round(time.monotonic() - start, 6)}


def _resolve(_env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    pattern = request.arg("pattern", str)
    if not pattern.startswith("/"):
        raise AgentError("bad_request", "resolve wants an absolute path")
    matches = []
    for path in sorted(glob.glob(pattern)):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            matches.append({"path": path, "size": found.st_size, "mtime": found.st_mtime})
    return {"matches": matches[:_MOST_MATCHES], "total": len(matches)}


def _digest(_env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    path = request.arg("path", str)
    descriptor = open_regular(path)
    try:
        head = base64.b64encode(os.pread(descriptor, _HEAD, 0)).decode("ascii")
        return {"sha256": sha256_of(descriptor), "size": os.fstat(descriptor).st_size, "head": head}
    finally:
        os.close(descriptor)


def _readback(env: Environment, _store: ClaimStore, request: Request) -> Dict[str, Any]:
    return readback.read(env, request)


def _boot_default_show(env: Environment, _store: ClaimStore, _request: Request) -> Dict[str, Any]:
    return bootdefault.show(env)


OPERATIONS: Dict[str, Callable[[Environment, ClaimStore, Request], Dict[str, Any]]] = {
    "facts": _facts,
    "clock": _clock,
    "status": _status,
    "check": _check,
    "resolve": _resolve,
    "digest": _digest,
    "boot_default_show": _boot_default_show,
    "readback": _readback,
}
