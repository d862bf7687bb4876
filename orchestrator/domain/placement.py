"""Where the segments of a loaded image lie: kernel log records and CMA counters of one load -> Placement.

The kernel prints the records when KEXEC_FILE_DEBUG is set (since 6.7: kernel/kexec_file.c and, for the roles,
arch/x86/kernel/kexec-bzimage64.c). Two witnesses tell what is in CMA: the copy list that `head` starts, and
the area's page counters. Where they contradict each other, or the records are not whole, the placement is
unknown and says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.domain.facts import HostFacts, parse_areas
from orchestrator.domain.ladder import KEXEC_FILE_NO_CMA
from orchestrator.domain.raw import mapping_of

EMPTY_COPY_LIST = 0x4
"""`head` when nothing is to be copied: the list's first entry is IND_DONE (include/linux/kexec.h)."""

_HEX = "0x([0-9a-f]+)"
_SEGMENT = re.compile(
    rf"\bkexec_file: segment\[(\d+)\]: buf=\S+ bufsz={_HEX} mem={_HEX} memsz={_HEX}$", re.ASCII
)
_SEGMENT_COUNT = re.compile(r"\bkexec_file: nr_segments = (\d+)$", re.ASCII)
_LOADED = re.compile(rf"\bkexec_file: kexec_file_load: type:\d+, start:{_HEX} head:{_HEX} flags:{_HEX}$")
# The prefix is kexec-bzImage64 on x86, kexec_file(Image) and kexec_file on arm64 (arch/*/kernel, pr_fmt).
_NAMED = re.compile(
    rf"\bkexec[-\w()]*: Loaded "
    rf"(purgatory|boot_param, command line and misc|64bit kernel|kernel|initrd|dtb) at {_HEX}\b"
)
_RECORD_PREFIX = re.compile(r"^\d+,\d+,\d+,[^;]*;")
_PRINTK_TIME = re.compile(r"^\[\s*\d+\.\d+\]\s*")


class Role(StrEnum):
    """What a segment holds."""

    PURGATORY = "purgatory"
    BOOT_PARAMETERS = "boot parameters"
    KERNEL = "kernel"
    INITRD = "initrd"
    DTB = "device tree"
    OTHER = "other"


_SMALLEST_PAGE = 4096  # where the facts do not tell the page size

_NAMES = {
    "purgatory": Role.PURGATORY,
    "boot_param, command line and misc": Role.BOOT_PARAMETERS,
    "64bit kernel": Role.KERNEL,
    "kernel": Role.KERNEL,
    "initrd": Role.INITRD,
    "dtb": Role.DTB,
}

# bzImage64_load adds them in this order; used where the records that name them are missing.
_X86_ORDER = (Role.PURGATORY, Role.BOOT_PARAMETERS, Role.KERNEL, Role.INITRD)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment. `address` is the physical destination, sizes are bytes."""

    index: int
    address: int
    bufsz: int
    memsz: int
    role: Role
    inside_area: bool | None  # its destination lies in the area: needed for "in CMA", not enough


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one loaded image lies. `known` False: nothing here may be relied on, `why_unknown` says why."""

    segments: tuple[Segment, ...] = ()
    head: int | None = None  # first entry of the copy list; 0x4 is the empty list
    flags: int | None = None  # as the kernel printed them
    wholly_in_cma: bool | None = None
    bytes_total: int | None = None
    bytes_in_cma: int | None = None
    bytes_to_copy: int | None = None
    kernel_misaligned: bool | None = None
    known: bool = False
    why_unknown: str = ""

    def of(self, role: Role) -> Segment | None:
        """The segment with that role."""
        return next((segment for segment in self.segments if segment.role is role), None)


@dataclass(frozen=True)
class _Records:
    """What the records of the last load in the log say, before any judgement."""

    segments: Mapping[int, tuple[int, int, int]]  # index -> bufsz, address, memsz
    roles: Mapping[int, Role]  # address -> role
    count: int | None
    head: int | None
    flags: int | None


def parse_placement(
    lines: Iterable[str],
    facts: HostFacts,
    *,
    kernel_alignment: int | None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    log_complete: bool = True,
) -> Placement:
    """Records of one load (raw /dev/kmsg records or bare text) -> Placement. Never raises.

    `facts`: the host before the load. `kernel_alignment`: header 0x230 of the bzImage, bytes. `before` and
    `after`: the agent's cma_before and cma_after. Of several loads in the records the last one counts.
    """
    records = _read(lines)
    segments = _segments(records, facts)
    page_size = facts.page_size or _SMALLEST_PAGE
    pages = [-(-segment.memsz // page_size) for segment in segments]
    possible = _cma_possible(facts, records)
    moved = _pages_moved(before, after, facts) if possible is not False else ()
    broken = _incomplete(records, segments, page_size, log_complete)
    why = broken or _contradiction(records, segments, pages, moved, possible)
    total = sum(segment.memsz for segment in segments)
    in_cma = None if why else _bytes_in_cma(records, total, sum(pages), moved, page_size, possible)
    kernel = next((segment for segment in segments if segment.role is Role.KERNEL), None)
    return Placement(
        segments=segments,
        head=records.head,
        flags=records.flags,
        wholly_in_cma=None if why else _wholly(records, total, in_cma),
        bytes_total=None if broken else total,
        bytes_in_cma=in_cma,
        bytes_to_copy=None if in_cma is None else total - in_cma,
        kernel_misaligned=kernel.address % kernel_alignment != 0 if kernel and kernel_alignment else None,
        known=not why,
        why_unknown=why,
    )


def _read(lines: Iterable[str]) -> _Records:
    """Collect the records of the last load: `nr_segments` or a first `segment[0]` begins one anew."""
    segments: dict[int, tuple[int, int, int]] = {}
    roles: dict[int, Role] = {}
    count = head = flags = None
    ended = False
    for line in lines:
        text = _PRINTK_TIME.sub("", _RECORD_PREFIX.sub("", line)).rstrip()
        if match := _NAMED.search(text):
            if ended:  # the records that name the roles come before those that place the segments
                segments, roles, count, head, flags, ended = {}, {}, None, None, None, False
            roles[int(match[2], 16)] = _NAMES[match[1]]
        elif match := _SEGMENT_COUNT.search(text):
            segments, count, head, flags, ended = {}, int(match[1]), None, None, False
        elif match := _SEGMENT.search(text):
            index = int(match[1])
            if index in segments or ended:
                segments, count, head, flags, ended = {}, None, None, None, False
            segments[index] = (int(match[2], 16), int(match[3], 16), int(match[4], 16))
        elif match := _LOADED.search(text):
            head, flags, ended = int(match[2], 16), int(match[3], 16), True
    return _Records(segments=segments, roles=roles, count=count, head=head, flags=flags)


def _segments(records: _Records, facts: HostFacts) -> tuple[Segment, ...]:
    by_order = (
        facts.machine == "x86_64"
        and not records.roles
        and sorted(records.segments) in ([0, 1, 2], [0, 1, 2, 3])
    )
    area = facts.default_area
    placed = []
    for index, (bufsz, address, memsz) in sorted(records.segments.items()):
        inside = False if facts.has_cma_area is False else None
        if facts.has_cma_area and area is not None:
            inside = area.holds(address, memsz)
        role = _X86_ORDER[index] if by_order else records.roles.get(address, Role.OTHER)
        placed.append(
            Segment(index=index, address=address, bufsz=bufsz, memsz=memsz, role=role, inside_area=inside)
        )
    return tuple(placed)


def _cma_possible(facts: HostFacts, records: _Records) -> bool | None:
    """Whether anything of this load can be in CMA at all; None: not known."""
    if facts.knows_no_cma is False or facts.has_cma_area is False:
        return False
    if records.flags is not None and records.flags & KEXEC_FILE_NO_CMA:
        return False
    return True if facts.knows_no_cma and facts.has_cma_area else None


def _incomplete(records: _Records, segments: tuple[Segment, ...], page_size: int, log_complete: bool) -> str:
    """Why the records do not place the whole image; empty when they do."""
    found = [segment.index for segment in segments]
    if not found:
        return "the kernel log has no segment of this load"
    if records.count is not None and found != list(range(records.count)):
        return f"the kernel log has {len(found)} of {records.count} segments"
    if found != list(range(len(found))):
        return "segments are missing from the kernel log"
    if records.count is None and (records.head is None or not log_complete):
        return "the kernel log does not have the whole load"
    for segment in segments:
        # kexec_add_buffer (kernel/kexec_file.c) rounds memsz up to a page: a cut-off number betrays itself.
        if segment.memsz % page_size or segment.bufsz > segment.memsz:
            return f"the record of segment {segment.index} is damaged"
    return ""


def _pages_moved(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, facts: HostFacts
) -> tuple[int, ...]:
    """How many pages of the default area the load holds: one figure a witness, or none.

    A segment that was placed in CMA and then given back inside the load (its hole overlapped another segment,
    run on 7.3.4 with cma=40M) counts as allocated and as released: only the difference is held.
    """
    name = "reserved" if facts.default_area is None else facts.default_area.name
    found = []
    for answer in (before, after):
        areas = parse_areas(mapping_of(answer).get("areas"), None) or ()
        found.append(next((area for area in areas if area.name == name), None))
    old, new = found
    if old is None or new is None:
        return ()
    moved = []
    allocated = _difference(old.alloc_pages_success, new.alloc_pages_success)
    released = _difference(old.release_pages_success, new.release_pages_success)
    if allocated is not None and released is not None:
        moved.append(allocated - released)
    if old.available_pages is not None and new.available_pages is not None:
        moved.append(old.available_pages - new.available_pages)
    return tuple(moved)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _contradiction(
    records: _Records,
    segments: tuple[Segment, ...],
    pages: list[int],
    moved: tuple[int, ...],
    possible: bool | None,
) -> str:
    """Why the witnesses do not agree, or are not enough; empty when the placement can be told."""
    empty_list = records.head == EMPTY_COPY_LIST
    if empty_list and possible is False:
        return "the copy list is empty, but this load could not use CMA"
    if empty_list and any(segment.inside_area is False for segment in segments):
        return "the copy list is empty, but a segment lies outside the CMA area"
    if records.head is None and not moved and possible is not False:
        return "the kernel log lacks the end of the load, and there are no CMA counters"
    if not moved:
        return ""
    if len(set(moved)) > 1:
        return f"the CMA counters disagree: {moved[0]} pages allocated, {moved[1]} not available"
    if empty_list and moved[0] != sum(pages):
        return f"the copy list is empty, but {moved[0]} pages of CMA were taken for {sum(pages)}"
    if not empty_list and records.head is not None and moved[0] == sum(pages):
        return "the CMA counters moved by the whole image, but the copy list is not empty"
    may_be = [n for n, segment in zip(pages, segments, strict=True) if segment.inside_area is not False]
    if moved[0] not in _subset_sums(may_be):
        return f"{moved[0]} pages of CMA were taken, which no set of the segments makes up"
    return ""


def _subset_sums(numbers: list[int]) -> set[int]:
    """Every sum of some of the numbers: CMA is tried segment by segment."""
    sums = {0}
    for number in numbers[:16]:  # KEXEC_SEGMENT_MAX, include/linux/kexec.h
        sums |= {known + number for known in sums}
    return sums


def _bytes_in_cma(
    records: _Records,
    total: int,
    pages: int,
    moved: tuple[int, ...],
    page_size: int,
    possible: bool | None,
) -> int | None:
    """Bytes that already lie where they will run, after the witnesses were found to agree."""
    if possible is False:
        return 0
    if records.head == EMPTY_COPY_LIST:
        return total
    if moved:
        return total if moved[0] == pages else moved[0] * page_size
    return None


def _wholly(records: _Records, total: int, in_cma: int | None) -> bool | None:
    if records.head is not None:
        return records.head == EMPTY_COPY_LIST
    return None if in_cma is None else in_cma == total
