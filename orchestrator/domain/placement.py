"""Where the segments of a loaded image lie: kernel log records and CMA counters of one load -> Placement.

The kernel prints the records when KEXEC_FILE_DEBUG is set (since 6.7: kernel/kexec_file.c and, for the roles,
arch/x86/kernel/kexec-bzimage64.c). Two witnesses tell what is in CMA: the copy list that `head` starts, and
the area's page counters. Where they contradict each other, or the records are not whole, the placement is
unknown and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from orchestrator.domain.facts import CmaArea, HostFacts, parse_areas
from orchestrator.domain.ladder import KEXEC_FILE_NO_CMA
from orchestrator.domain.loadrecords import Records, incomplete, read_records, roles_of
from orchestrator.domain.loadrecords import Role as Role
from orchestrator.domain.raw import mapping_of
from orchestrator.domain.words import split_words

EMPTY_COPY_LIST = 0x4
"""`head` when nothing is to be copied: the list's first entry is IND_DONE (include/linux/kexec.h)."""

_SMALLEST_PAGE = 4096  # where the facts do not tell the page size


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment. `address` is the physical destination, sizes are bytes."""

    index: int
    address: int
    bufsz: int
    memsz: int
    role: Role
    inside_area: bool | None  # its destination lies in the area: needed for "in CMA", not enough
    in_cma: bool | None = None  # it lies where it will run already; None: the witnesses leave that open

    @property
    def end(self) -> int:
        """First address behind the segment."""
        return self.address + self.memsz


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
    bytes_to_hash: int | None = None  # what purgatory's SHA-256 goes over; 0: no digest, None: not known
    kernel_misaligned: bool | None = None
    known: bool = False
    why_unknown: str = ""

    def of(self, role: Role) -> Segment | None:
        """The segment with that role."""
        return next((segment for segment in self.segments if segment.role is role), None)


def with_digest(placement: Placement, stored: bool | None) -> Placement:
    """The placement with `bytes_to_hash` as the rehearsal saw it; None leaves what was known before.

    The regions are whole segments, tails included, but purgatory itself and IMA's list
    (kexec_calculate_store_digests, kernel/kexec_file.c, Linux 7.3).
    """
    if stored is None or not placement.known:
        return placement
    return replace(placement, bytes_to_hash=_hashable(placement.segments) if stored else 0)


def _hashable(segments: Iterable[Segment]) -> int:
    return sum(segment.memsz for segment in segments if segment.role is not Role.PURGATORY)


def free_pages(answer: Mapping[str, Any] | None, facts: HostFacts) -> int | None:
    """available_pages of the default area in an agent's cma_before, cma_after or `unload` answer."""
    area = _area_of(answer, facts)
    return None if area is None else area.available_pages


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
    records = read_records(lines)
    segments = _segments(records, facts)
    page_size = facts.page_size or _SMALLEST_PAGE
    pages = [-(-segment.memsz // page_size) for segment in segments]
    possible = _cma_possible(facts, records)
    moved = _pages_moved(before, after, facts) if possible is not False else ()
    broken = incomplete(records, facts.machine, page_size, log_complete)
    why = broken or _contradiction(records, segments, pages, moved, possible)
    total = sum(segment.memsz for segment in segments)
    in_cma = None if why else _bytes_in_cma(records, total, sum(pages), moved, page_size, possible)
    wholly = None if why else _wholly(records, total, in_cma)
    if not why:
        segments = _each_in_cma(segments, in_cma)
    kernel = next((segment for segment in segments if segment.role is Role.KERNEL), None)
    misaligned = kernel.address % kernel_alignment != 0 if kernel and kernel_alignment else None
    if kernel and misaligned and kernel.in_cma is False and facts.machine == "x86_64":
        why = "the kernel segment is not in CMA, and yet not on its alignment"
        segments = tuple(replace(segment, in_cma=None) for segment in segments)
        wholly = in_cma = None
    return Placement(
        segments=segments,
        head=records.head,
        flags=records.flags,
        wholly_in_cma=wholly,
        bytes_total=None if broken else total,
        bytes_in_cma=in_cma,
        bytes_to_copy=None if in_cma is None else total - in_cma,
        bytes_to_hash=None if why else _bytes_to_hash(segments, facts, wholly),
        kernel_misaligned=misaligned,
        known=not why,
        why_unknown=why,
    )


def _segments(records: Records, facts: HostFacts) -> tuple[Segment, ...]:
    roles = roles_of(records, facts.machine)
    area = facts.default_area
    placed = []
    for index, sizes in sorted(records.segments.items()):
        inside = False if facts.has_cma_area is False else None
        if facts.has_cma_area and area is not None:
            inside = area.holds(sizes.address, sizes.memsz)
        placed.append(
            Segment(
                index=index,
                address=sizes.address,
                bufsz=sizes.bufsz,
                memsz=sizes.memsz,
                role=roles[index],
                inside_area=inside,
            )
        )
    return tuple(placed)


def _each_in_cma(segments: tuple[Segment, ...], in_cma: int | None) -> tuple[Segment, ...]:
    """Which segments make up the bytes in CMA: settled where every set of that size has, or lacks, one."""
    able = [segment for segment in segments if segment.inside_area is not False]
    sets = [
        {segment.index for segment in some}
        for count in range(len(able) + 1)
        for some in combinations(able, count)
        if in_cma is not None and sum(segment.memsz for segment in some) == in_cma
    ]

    def settled(segment: Segment) -> bool | None:
        if segment not in able:
            return False
        having = sum(segment.index in some for some in sets)
        return None if not sets or 0 < having < len(sets) else having > 0

    return tuple(replace(segment, in_cma=settled(segment)) for segment in segments)


def _bytes_to_hash(segments: tuple[Segment, ...], facts: HostFacts, wholly: bool | None) -> int | None:
    """What purgatory will hash as far as the load alone tells.

    arm64 has no purgatory. On x86_64 a kernel may store no digest where all is in CMA, or where KHO is on
    (kexec_calculate_store_digests, Linux 7.3): then only the rehearsal can tell.
    """
    if facts.machine == "aarch64":
        return 0
    if facts.machine != "x86_64" or wholly is not False or handover_possible(facts):
        return None
    return _hashable(segments)


def handover_possible(facts: HostFacts) -> bool:
    """Whether KHO may be on, by its config and parameter (kernel/liveupdate/kexec_handover.c, Linux 7.2)."""
    config = facts.config or {}
    if config.get("CONFIG_KEXEC_HANDOVER") == "n":
        return False
    asked = any(word.startswith("kho=") for word in split_words(facts.cmdline or ""))
    return asked or config.get("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT") == "y"


def _cma_possible(facts: HostFacts, records: Records) -> bool | None:
    """Whether anything of this load can be in CMA at all; None: not known."""
    if facts.knows_no_cma is False or facts.has_cma_area is False:
        return False
    if records.flags is not None and records.flags & KEXEC_FILE_NO_CMA:
        return False
    return True if facts.knows_no_cma and facts.has_cma_area else None


def _pages_moved(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, facts: HostFacts
) -> tuple[int, ...]:
    """How many pages of the default area the load holds: one figure a witness, or none.

    A segment that was placed in CMA and then given back inside the load (its hole overlapped another segment,
    run on 7.3.4 with cma=40M) counts as allocated and as released: only the difference is held.
    """
    old, new = _area_of(before, facts), _area_of(after, facts)
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


def _area_of(answer: Mapping[str, Any] | None, facts: HostFacts) -> CmaArea | None:
    """The default area in one of the agent's answers."""
    name = "reserved" if facts.default_area is None else facts.default_area.name
    areas = parse_areas(mapping_of(answer).get("areas"), None) or ()
    return next((area for area in areas if area.name == name), None)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _contradiction(
    records: Records,
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
    records: Records,
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


def _wholly(records: Records, total: int, in_cma: int | None) -> bool | None:
    if records.head is not None:
        return records.head == EMPTY_COPY_LIST
    return None if in_cma is None else in_cma == total
