"""The rehearsal: what physical memory holds of a placed image -> what of it may be believed.

The agent's `readback` reads the segments that lie in CMA through /proc/kcore, beside the files that they
were loaded from. kcore answers zeros for pages that it will not read (read_kcore_iter, fs/proc/kcore.c, Linux
7.2), so a zero tail, and a digest that was not found, count only where a body was read and matched.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.bootimage import BootHeader, ImageKind
from orchestrator.domain.placement import Placement, Role, Segment
from orchestrator.domain.raw import mapping_of, optional_bool, optional_int, optional_text


@dataclass(frozen=True, kw_only=True)
class SegmentReading:
    """One segment as it was read. Offsets count from the segment's start, all figures are bytes."""

    index: int
    readable: bool = False
    why_not: str = ""
    body_compared: bool = False
    body_differs: int | None = None  # None: not compared
    first_difference: int | None = None
    tail_nonzero: int | None = None  # in [bufsz, memsz); None: not read, or zeros that prove nothing
    first_tail_nonzero: int | None = None
    found: tuple[bool, ...] = ()

    @property
    def body_matched(self) -> bool:
        """The whole body was compared with its file, and no byte differs."""
        return self.readable and self.body_compared and self.body_differs == 0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One reading of an image. `digest_stored`: whether purgatory will check it; None: not known."""

    readings: tuple[SegmentReading, ...] = ()
    digest_stored: bool | None = None
    source: str = ""  # "kcore"
    why_not: str = ""  # why nothing, or not all that was asked for, could be read; empty: all was

    def of(self, segment: Segment) -> SegmentReading | None:
        """The reading of that segment."""
        return next((reading for reading in self.readings if reading.index == segment.index), None)


def readback_segments(
    placement: Placement,
    header: BootHeader,
    kernel_path: str,
    kernel_size: int,
    initrd_path: str | None,
    initrd_size: int,
) -> list[dict[str, Any]]:
    """The `segments` argument of the agent's `readback`: what is known to lie in CMA, and no more.

    Paths and sizes are those of the files that were loaded (derived ones where the image was repaired). On
    x86_64 the setup part in front of the kernel's file is not loaded (bzImage64_load).
    """
    files = {
        Role.KERNEL: (kernel_path, header.setup_size, kernel_size - header.setup_size),
        Role.INITRD: (initrd_path, 0, initrd_size),
    }
    asked = []
    for segment in placement.segments:
        if segment.in_cma is not True:
            continue
        file, offset, length = files.get(segment.role, (None, 0, 0))
        search = _digest_marks(placement) if segment.role is Role.PURGATORY else []
        asked.append(
            {
                "index": segment.index,
                "address": segment.address,
                "memsz": segment.memsz,
                "bufsz": segment.bufsz,
                "file": file,
                "file_offset": offset if file else 0,
                "file_length": max(length, 0) if file else 0,
                "search": search if header.kind is ImageKind.BZIMAGE else [],
            }
        )
    return asked


def _digest_marks(placement: Placement) -> list[str]:
    """Bytes that stand in purgatory exactly where a digest is stored: the kernel's {u64 start, u64 len}.

    kexec_calculate_store_digests (kernel/kexec_file.c) fills purgatory_sha_regions with every segment's mem
    and memsz; where it skips the digest (7.3: kexec_only_cma_segments, KHO) the array stays zero.
    """
    kernel = placement.of(Role.KERNEL)
    return [] if kernel is None else [struct.pack("<QQ", kernel.address, kernel.memsz).hex()]


def parse_rehearsal(raw: Mapping[str, Any], placement: Placement) -> Rehearsal:
    """The agent's `readback` answer -> Rehearsal. Never raises; what is missing or odd counts as not read."""
    answer = mapping_of(raw)
    listed = answer.get("segments")
    by_index: dict[int, Mapping[str, Any]] = {}
    for item in listed if isinstance(listed, list | tuple) else ():
        index = optional_int(mapping_of(item).get("index"))
        if index is not None:
            by_index[index] = mapping_of(item)
    wanted = [segment for segment in placement.segments if segment.in_cma is True]
    readings = [_reading(segment, by_index.get(segment.index)) for segment in wanted]
    trusted = any(reading.body_matched for reading in readings)
    readings = [_believed(reading, trusted) for reading in readings]
    return Rehearsal(
        readings=tuple(readings),
        digest_stored=_digest_stored(placement, readings, trusted),
        source=optional_text(answer.get("source")) or "",
        why_not=_why_not(readings, wanted, placement),
    )


def _reading(segment: Segment, item: Mapping[str, Any] | None) -> SegmentReading:
    """One segment's answer with what contradicts itself, or the placement, taken as not read."""
    if item is None:
        return SegmentReading(index=segment.index, why_not="the host did not answer for it")
    why = optional_text(item.get("why_not")) or ""
    readable = optional_bool(item.get("readable")) is True
    if readable and optional_int(item.get("bytes_read")) != segment.memsz:
        readable, why = False, "not read to its end"
    if not readable:
        return SegmentReading(index=segment.index, why_not=why or "the host could not read it")
    differs = _within(item.get("body_differs"), segment.memsz)
    compared = optional_bool(item.get("body_compared")) is True and differs is not None
    tail = _within(item.get("tail_nonzero"), segment.memsz - segment.bufsz)
    found = item.get("found")
    return SegmentReading(
        index=segment.index,
        readable=True,
        why_not=why,
        body_compared=compared,
        body_differs=differs if compared else None,
        first_difference=_within(item.get("first_difference"), segment.memsz) if compared else None,
        tail_nonzero=tail,
        first_tail_nonzero=_within(item.get("first_tail_nonzero"), segment.memsz),
        found=tuple(value is True for value in found) if isinstance(found, list | tuple) else (),
    )


def _within(value: object, most: int) -> int | None:
    number = optional_int(value)
    return number if number is not None and 0 <= number <= most else None


def _believed(reading: SegmentReading, trusted: bool) -> SegmentReading:
    """A zero tail only where that segment's body matched; a segment without a file leans on another one's.

    All segments in CMA lie in one area, an area lies in one range of RAM, and kcore has one program header a
    range (kclist_add_private, fs/proc/kcore.c), so they are read through the same one.
    """
    proven = reading.body_matched if reading.body_compared else trusted
    if reading.tail_nonzero != 0 or proven:
        return reading
    return SegmentReading(**{**reading.__dict__, "tail_nonzero": None, "first_tail_nonzero": None})


def _digest_stored(placement: Placement, readings: list[SegmentReading], trusted: bool) -> bool | None:
    purgatory, kernel = placement.of(Role.PURGATORY), placement.of(Role.KERNEL)
    if purgatory is None or kernel is None:
        return None
    reading = next((one for one in readings if one.index == purgatory.index), None)
    if reading is not None and reading.readable and reading.found:
        return True if any(reading.found) else (False if trusted else None)
    # Outside CMA cannot be read; there a digest is stored, unless KHO is on (Linux 7.3, kernel/kexec_file.c).
    return True if placement.known and placement.bytes_to_hash else None


def _why_not(readings: list[SegmentReading], wanted: list[Segment], placement: Placement) -> str:
    if not wanted:
        return "no segment is known to lie in CMA" if placement.known else placement.why_unknown
    named = {segment.index: segment.role for segment in wanted}
    reasons = [
        f"{named[reading.index]}: {reading.why_not or 'not read'}"
        for reading in readings
        if not reading.readable or (reading.why_not and not reading.body_compared)
    ]
    return "; ".join(reasons)
