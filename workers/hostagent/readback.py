"""The rehearsal's reader: what physical memory holds of a loaded image, through /proc/kcore, beside its file.

/proc/kcore is an ELF64 core whose PT_LOAD headers name in p_paddr where RAM and the kernel's own image lie;
all other ranges have p_paddr -1 (read_kcore_iter, fs/proc/kcore.c; before Linux 4.11 it is 0 everywhere,
which names nothing). For pages that it will not read kcore answers zeros (offline, poisoned): whoever judges
a zero tail looks whether the body matched.
"""

import os
import struct
import time
from typing import Any, Dict, List, NamedTuple, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.files import open_regular
from workers.hostagent.protocol import Request

_CHUNK = 1 << 20
# include/linux/kexec.h, KEXEC_SEGMENT_MAX.
_MOST_SEGMENTS = 16
_MOST_SEARCHES = 16
_LONGEST_SEARCH = 4096
# elf(5): e_ident of a 64-bit file, little-endian as on every machine that the agent knows kexec's number of.
_IDENT = b"\x7fELF\x02\x01"
_PT_LOAD = 1
_NO_ADDRESS = (1 << 64) - 1
_LARGEST_OFFSET = (1 << 63) - 1


class _Range(NamedTuple):
    """Bytes [first, end) of physical memory lie at `offset` of the file."""

    first: int
    end: int
    offset: int


class _Segment(NamedTuple):
    """One entry of the request; sizes and addresses in bytes."""

    number: int
    address: int
    memsz: int
    bufsz: int
    file: Optional[str]
    file_offset: int
    file_length: int
    search: List[bytes]


class _Unreadable(Exception):
    """Memory that cannot be read; the text says why."""


class Kcore(object):
    """An open /proc/kcore. Lockdown (confidentiality) and other reasons not to open it are _Unreadable."""

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _Unreadable("{}: {}".format(path, error.strerror)) from error
        try:
            self._ranges = self._headers()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _headers(self) -> List[_Range]:
        head = self._pread(64, 0)
        if len(head) < 64 or head[:6] != _IDENT:
            raise _Unreadable("kcore is no 64-bit ELF core")
        table, size, count = struct.unpack_from("<Q14xHH", head, 32)
        if size < 56:
            raise _Unreadable("kcore has program headers of {} bytes".format(size))
        raw = self._pread(size * count, table)
        loads = []
        for at in range(0, len(raw) - 55, size):
            kind, _, offset, _, physical, filesz = struct.unpack_from("<IIQQQQ", raw, at)
            if kind == _PT_LOAD and physical != _NO_ADDRESS and offset + filesz <= _LARGEST_OFFSET:
                loads.append(_Range(physical, physical + filesz, offset))
        if sum(1 for load in loads if load.first == 0) > 1:
            loads = [load for load in loads if load.first != 0]
        if not loads:
            raise _Unreadable("kcore names no physical addresses")
        return loads

    def read(self, address: int, most: int) -> bytes:
        """Between 1 and `most` bytes from the physical address on. Raises _Unreadable."""
        for load in self._ranges:
            if load.first <= address < load.end:
                data = self._pread(min(most, load.end - address), load.offset + address - load.first)
                if data:
                    return data
                raise _Unreadable("kcore ends at physical address {:#x}".format(address))
        raise _Unreadable("no part of kcore holds physical address {:#x}".format(address))

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, min(offset, _LARGEST_OFFSET))
        except OSError as error:
            raise _Unreadable("reading kcore at {:#x}: {}".format(offset, error.strerror)) from error


class _Body(object):
    """The file that a segment was loaded from: its bytes beside the memory's, one piece after the other."""

    def __init__(self, segment: _Segment) -> None:
        """Raises AgentError `no_file`."""
        assert segment.file is not None
        self._descriptor = open_regular(segment.file)
        self._start = segment.file_offset
        size = os.fstat(self._descriptor).st_size
        self.whole = segment.file_offset + segment.file_length <= size
        self.differs = 0
        self.first: Optional[int] = None

    def compare(self, memory: bytes, at: int) -> None:
        """`memory`: the segment's bytes from `at` on."""
        file = os.pread(self._descriptor, len(memory), self._start + at)
        if file == memory:
            return
        if len(file) < len(memory):
            self.whole = False
            return
        mixed = int.from_bytes(file, "big") ^ int.from_bytes(memory, "big")
        apart = mixed.to_bytes(len(memory), "big")
        count = len(apart) - apart.count(0)
        if self.first is None and count:
            self.first = at + len(apart) - len(apart.lstrip(b"\0"))
        self.differs += count

    def close(self) -> None:
        os.close(self._descriptor)


class _Search(object):
    """Which byte strings occur in what is fed piece by piece, also across the pieces' borders."""

    def __init__(self, wanted: List[bytes]) -> None:
        self._wanted = wanted
        self.found = [False] * len(wanted)
        self._overlap = max([len(text) for text in wanted] or [1]) - 1
        self._last = b""

    def feed(self, piece: bytes) -> None:
        if all(self.found):
            return
        window = self._last + piece
        for number, text in enumerate(self._wanted):
            self.found[number] = self.found[number] or text in window
        self._last = window[-self._overlap :] if self._overlap else b""


def read(env: Environment, request: Request) -> Dict[str, Any]:
    """-> {"source": "kcore", "seconds", "segments": [...]} as docs/agent-protocol.md has it.

    What cannot be read or compared is an answer with its reason, no error. Raises AgentError `bad_request`,
    `not_root`.
    """
    segments = _parse(request.arg("segments", list))
    if not env.kernel.is_root():
        raise AgentError(
            "not_root",
            "physical memory is read by root only, the agent runs as user {}".format(os.getuid()),
            "log in as root, or give the login a sudo that needs no password",
        )
    start = time.monotonic()
    try:
        kcore = Kcore(env.proc + "/kcore")
    except _Unreadable as reason:
        answers = [_answer(segment, str(reason)) for segment in segments]
    else:
        try:
            answers = [_segment(kcore, segment) for segment in segments]
        finally:
            kcore.close()
    return {"source": "kcore", "seconds": round(time.monotonic() - start, 6), "segments": answers}


def _answer(segment: _Segment, why_not: str) -> Dict[str, Any]:
    """The answer as long as nothing is known."""
    return {
        "index": segment.number,
        "readable": False,
        "why_not": why_not,
        "bytes_read": 0,
        "body_compared": False,
        "body_differs": None,
        "first_difference": None,
        "tail_nonzero": None,
        "first_tail_nonzero": None,
        "found": [False] * len(segment.search),
    }


def _segment(kcore: Kcore, segment: _Segment) -> Dict[str, Any]:
    answer = _answer(segment, "")
    body: Optional[_Body] = None
    try:
        if segment.file is not None:
            try:
                body = _Body(segment)
            except AgentError as error:
                answer["why_not"] = error.message
        try:
            _read_all(kcore, segment, body, answer)
        except _Unreadable as reason:
            answer["why_not"] = str(reason)
            return answer
        answer["readable"] = True
        if body is not None:
            _judge_body(segment, body, answer)
    finally:
        if body is not None:
            body.close()
    return answer


def _read_all(kcore: Kcore, segment: _Segment, body: Optional[_Body], answer: Dict[str, Any]) -> None:
    """Fills in what every readable segment has. Pieces end at the body's end, so none is both."""
    compared = min(segment.bufsz, segment.file_length) if body is not None else 0
    search = _Search(segment.search)
    borders = sorted({compared, segment.bufsz, segment.memsz})
    nonzero, first, at = 0, None, 0
    while at < segment.memsz:
        border = next(border for border in borders if border > at)
        piece = kcore.read(segment.address + at, min(_CHUNK, border - at))
        if at < compared:
            assert body is not None
            body.compare(piece, at)
        elif at >= segment.bufsz:
            count = len(piece) - piece.count(0)
            if first is None and count:
                first = at + len(piece) - len(piece.lstrip(b"\0"))
            nonzero += count
        search.feed(piece)
        at += len(piece)
        answer["bytes_read"] = at
    answer.update(tail_nonzero=nonzero, first_tail_nonzero=first, found=search.found)


def _judge_body(segment: _Segment, body: _Body, answer: Dict[str, Any]) -> None:
    if not body.whole:
        answer["why_not"] = "{} has fewer than {} bytes".format(
            segment.file, segment.file_offset + segment.file_length
        )
        return
    answer.update(body_compared=True, body_differs=body.differs, first_difference=body.first)
    apart = abs(segment.bufsz - segment.file_length)
    if apart:
        answer["why_not"] = "the segment holds {} bytes, the file has {} for it".format(
            segment.bufsz, segment.file_length
        )
        answer["body_differs"] = min(body.differs + apart, segment.memsz)
        if body.first is None:
            answer["first_difference"] = min(segment.bufsz, segment.file_length)


def _parse(raw: List[Any]) -> List[_Segment]:
    """Raises AgentError `bad_request`."""
    if len(raw) > _MOST_SEGMENTS:
        raise AgentError("bad_request", "readback takes at most {} segments".format(_MOST_SEGMENTS))
    return [_parse_one(item) for item in raw]


def _parse_one(raw: Any) -> _Segment:
    if not isinstance(raw, dict):
        raise AgentError("bad_request", "a segment of readback is an object")
    numbers = {}
    for name in ("index", "address", "memsz", "bufsz", "file_offset", "file_length"):
        value = raw.get(name, 0 if name.startswith("file_") else None)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_OFFSET:
            raise AgentError("bad_request", "a segment of readback wants a number {!r}".format(name))
        numbers[name] = value
    file = raw.get("file")
    if not (file is None or (isinstance(file, str) and file.startswith("/") and "\0" not in file)):
        raise AgentError("bad_request", "a segment's file is an absolute path or null")
    if numbers["bufsz"] > numbers["memsz"] or numbers["address"] + numbers["memsz"] > _LARGEST_OFFSET:
        raise AgentError("bad_request", "a segment's bufsz is over its memsz, or it ends beyond all memory")
    return _Segment(
        number=numbers["index"],
        address=numbers["address"],
        memsz=numbers["memsz"],
        bufsz=numbers["bufsz"],
        file=file,
        file_offset=numbers["file_offset"],
        file_length=numbers["file_length"],
        search=_searches(raw.get("search")),
    )


def _searches(raw: Any) -> List[bytes]:
    raw = [] if raw is None else raw
    if not isinstance(raw, list) or len(raw) > _MOST_SEARCHES:
        raise AgentError("bad_request", "search is a list of at most {}".format(_MOST_SEARCHES))
    try:
        wanted = [bytes.fromhex(text) for text in raw]
    except (TypeError, ValueError) as error:
        raise AgentError("bad_request", "search wants hexadecimal bytes: {}".format(error)) from error
    if any(not 0 < len(text) <= _LONGEST_SEARCH for text in wanted):
        raise AgentError("bad_request", "search wants 1 to {} bytes".format(_LONGEST_SEARCH))
    return wanted
