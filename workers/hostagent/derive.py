"""Derived images: a file on the host cut, patched, filled up with zeros; for the spacer and for padding."""

import hashlib
import os
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from workers.hostagent import files
from workers.hostagent.errors import AgentError
from workers.hostagent.protocol import Request
from workers.hostagent.staging import KINDS, Staging

_CHUNK = 1 << 20
_MOST_BYTES = 2 << 30
_MOST_PATCHES = 16
_LONGEST_PATCH = 4096


class _Recipe(NamedTuple):
    """`take` bytes of the source (None: all), zeros up to `size`, then the patches in their order."""

    source: str
    expect: Optional[str]
    take: Optional[int]
    size: int
    patches: List[Tuple[int, bytes]]
    name: str


def derive(staging: Staging, request: Request, still_wanted: Callable[[], None]) -> Dict[str, Any]:
    """-> {"path", "sha256", "size", "seconds"}. Raises AgentError `bad_request`, `no_file`, `hash_mismatch`,
    `disk_full`, `io_error`, `deadline`, `bootconfig`, and what `still_wanted` raises: what is loaded
    meanwhile must not outlive a lost session for long. Nothing new is left behind then.

    The source is hashed as it is copied, so what is derived comes from the bytes that were expected.
    """
    recipe = _parse(request)
    start = time.monotonic()

    def go_on() -> None:
        request.deadline.check("deriving a file")
        still_wanted()

    staging.protect(recipe.source)
    source = files.open_regular(recipe.source)
    partial = ""
    try:
        take = _taken(recipe, os.fstat(source).st_size)
        _check_bootconfig(source, take, recipe)
        partial = staging.unfinished(recipe.size)
        sha256 = _write(partial, source, take, recipe, go_on)
        path = staging.finished(sha256, recipe.name)
        partial = ""
    except OSError as error:
        raise staging.explain(error) from error
    finally:
        os.close(source)
        if partial:
            files.unlink_quietly(partial)
    seconds = round(time.monotonic() - start, 6)
    return {"path": path, "sha256": sha256, "size": recipe.size, "seconds": seconds}


def _taken(recipe: _Recipe, have: int) -> int:
    take = have if recipe.take is None else recipe.take
    if take > have or take > recipe.size:
        raise AgentError(
            "bad_request",
            "derive: {} bytes of {}, which has {}, into a file of {}".format(
                take, recipe.source, have, recipe.size
            ),
        )
    return take


def _check_bootconfig(source: int, take: int, recipe: _Recipe) -> None:
    """The kernel looks for a bootconfig in the initrd's last 12 bytes, at most three further back
    (get_boot_config_from_initrd, init/main.c, Linux 7.3): behind padding it is lost without a word.
    """
    if recipe.name != "initrd" or recipe.size == take or take < 12:
        return
    if b"#BOOTCONFIG\n" in os.pread(source, 15, max(0, take - 15)):
        raise AgentError(
            "bootconfig",
            "{} ends in a bootconfig, which padding would hide".format(recipe.source),
            "load without CMA, or put the bootconfig into the kernel (CONFIG_BOOT_CONFIG_EMBED)",
        )


def _write(path: str, source: int, take: int, recipe: _Recipe, go_on: Callable[[], None]) -> str:
    """Writes and syncs the derived file. -> its SHA-256."""
    original, derived = hashlib.sha256(), hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    target = os.open(path, flags, 0o600)
    try:
        for at in range(0, recipe.size, _CHUNK):
            go_on()
            piece = _read(source, at, min(_CHUNK, take - at)) if at < take else b""
            original.update(piece)
            piece = _patched(piece.ljust(min(_CHUNK, recipe.size - at), b"\0"), at, recipe.patches)
            derived.update(piece)
            files.write_all(target, piece)
        _verify(source, take, original, recipe, go_on)
        os.fsync(target)
    finally:
        os.close(target)
    return derived.hexdigest()


def _read(source: int, at: int, length: int) -> bytes:
    """Exactly `length` bytes. Raises AgentError `hash_mismatch`: the source became shorter meanwhile."""
    data = os.pread(source, length, at)
    if len(data) != length:
        raise AgentError("hash_mismatch", "the source became shorter while it was read", "stage it again")
    return data


def _patched(piece: bytes, at: int, patches: List[Tuple[int, bytes]]) -> bytes:
    """The bytes [at, at + len(piece)) of the derived file, with what the patches have for them."""
    end = at + len(piece)
    for offset, data in patches:
        first, last = max(offset, at), min(offset + len(data), end)
        if first < last:
            piece = piece[: first - at] + data[first - offset : last - offset] + piece[last - at :]
    return piece


def _verify(source: int, take: int, original: Any, recipe: _Recipe, go_on: Callable[[], None]) -> None:
    """Hashes what was not taken, too. Raises AgentError `hash_mismatch`."""
    if recipe.expect is None:
        return
    at = take
    while True:
        go_on()
        block = os.pread(source, _CHUNK, at)
        if not block:
            break
        original.update(block)
        at += len(block)
    actual = original.hexdigest()
    if actual != recipe.expect:
        raise AgentError(
            "hash_mismatch",
            "{} has SHA-256 {}, expected {}".format(recipe.source, actual, recipe.expect),
            "stage the file again; if it happens twice look at the host's disk and memory",
            detail={"path": recipe.source, "sha256": actual, "expected": recipe.expect},
        )


def _parse(request: Request) -> _Recipe:
    """Raises AgentError `bad_request`."""
    source, name = request.arg("source", str), request.arg("name", str)
    size, take = request.arg("size", int), request.args.get("take")
    if not source.startswith("/") or name not in KINDS:
        raise AgentError("bad_request", "derive wants an absolute path, and one of " + ", ".join(KINDS))
    if not 0 < size <= _MOST_BYTES:
        raise AgentError("bad_request", "derive wants a size of 1 to {}".format(_MOST_BYTES))
    if take is not None and request.arg("take", int) < 0:
        raise AgentError("bad_request", "derive takes 0 bytes or more")
    expect = request.arg("expect", str) if request.args.get("expect") is not None else None
    return _Recipe(source, expect, take, size, _patches(request.arg("patches", list, []), size), name)


def _patches(raw: List[Any], size: int) -> List[Tuple[int, bytes]]:
    if len(raw) > _MOST_PATCHES:
        raise AgentError("bad_request", "derive takes at most {} patches".format(_MOST_PATCHES))
    patches = []
    for item in raw:
        try:
            offset, text = item
            data = bytes.fromhex(text)
        except (TypeError, ValueError) as error:
            raise AgentError(
                "bad_request", "a patch is [offset, hexadecimal bytes]: {}".format(error)
            ) from error
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise AgentError("bad_request", "a patch's offset is a number")
        if not 0 <= offset <= offset + len(data) <= size or len(data) > _LONGEST_PATCH:
            raise AgentError(
                "bad_request",
                "a patch of {} bytes at {} does not fit into {}".format(len(data), offset, size),
            )
        patches.append((offset, data))
    return patches
