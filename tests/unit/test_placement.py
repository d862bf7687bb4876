"""Placements from real loads of five stock Debian kernels, and what damaged or contradicting witnesses give.

The files in data/loads were recorded in QEMU (2 GiB, one CPU) by a tiny init that called kexec_file_load with
its own kernel and a 30 MB initrd three times: flags DEBUG, DEBUG|NO_CMA, DEBUG. A name's suffix is the cma=
option, 192M where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.facts import HostFacts, parse_facts
from orchestrator.domain.placement import Placement, Role, parse_placement

DATA = Path(__file__).parent / "data" / "loads"
MIB2 = 2 << 20

INITRD = 0x1C9D000
PARAMETERS_AND_PURGATORY = 0x7000


@dataclass
class Recorded:
    """One load of a data file."""

    lines: list[str] = field(default_factory=list)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)

    def side(self, when: str) -> dict[str, Any]:
        """As the agent's cma_before and cma_after: an empty `areas` where sysfs has no counters."""
        return {"areas": {"reserved": self.counters[when]} if when in self.counters else {}}


def recorded(name: str) -> tuple[HostFacts, dict[str, Recorded]]:
    """A data file -> the host's facts before the first load, and its loads by name."""
    loads: dict[str, Recorded] = {}
    boot, meminfo, probes = [], [], {}
    for line in (DATA / f"{name}.txt").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "LOAD":
            loads[rest] = Recorded()
        elif word == "record":
            loads[list(loads)[-1]].lines.append(rest)
        elif word in ("before", "after", "unloaded"):
            counter, value = rest.split()
            if value != "-":
                loads[list(loads)[-1]].counters.setdefault(word, {})[counter] = int(value)
        elif word == "probe":
            flag, errno = rest.split()
            probes[flag] = {9: True, 22: False}[int(errno)]
        elif word == "boot":
            boot.append(rest)
        elif word == "meminfo":
            meminfo.append(rest)
    areas = next(iter(loads.values())).side("before")["areas"]
    raw = {
        "machine": "x86_64",
        "page_size": 4096,
        "meminfo": "\n".join(meminfo),
        "cma": {"areas": areas, "boot_log": [line for line in boot if "cma:" in line]},
        "flags": probes,
    }
    return parse_facts(raw), loads


def placed(name: str, load: str, **changes: Any) -> Placement:
    facts, loads = recorded(name)
    one = loads[load]
    given_: dict[str, Any] = {
        "before": one.side("before"),
        "after": one.side("after"),
        "kernel_alignment": MIB2,
    }
    given_ |= changes
    lines = given_.pop("lines", one.lines)
    return parse_placement(lines, given_.pop("facts", facts), **given_)


@pytest.mark.parametrize("name", ["7.2.12", "7.3.4"])
@pytest.mark.parametrize("load", ["plain", "plain2"])
def test_wholly_in_cma_and_misaligned(name: str, load: str) -> None:
    placement = placed(name, load)
    assert placement.known, placement.why_unknown
    assert [segment.role for segment in placement.segments] == [
        Role.PURGATORY,
        Role.BOOT_PARAMETERS,
        Role.KERNEL,
        Role.INITRD,
    ]
    assert all(segment.inside_area for segment in placement.segments)
    assert placement.head == 0x4
    assert placement.wholly_in_cma is True
    assert placement.bytes_in_cma == placement.bytes_total
    assert placement.bytes_to_copy == 0
    assert placement.kernel_misaligned is True  # on an odd MiB: what corrupts the initrd (facts/kernel.md)


def test_figures_of_one_load() -> None:
    placement = placed("7.3.4", "plain")
    kernel = placement.of(Role.KERNEL)
    assert kernel is not None
    assert (kernel.index, kernel.address, kernel.bufsz, kernel.memsz) == (2, 0x71500000, 0xD4C7C0, 0x3C39000)
    assert placement.bytes_total == PARAMETERS_AND_PURGATORY + 0x3C39000 + INITRD
    assert placement.flags == 0x8


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("6.16.12", "plain"),  # does not know NO_CMA
        ("6.17.13", "plain"),  # knows the flag, CONFIG_CMA not set
        ("6.17.13", "no_cma"),
        ("7.2.12-0", "plain"),  # CONFIG_CMA, no area; another CPU's messages between the records
        ("7.2.12", "no_cma"),
        ("7.3.4", "no_cma"),
        ("7.3.4-40M", "no_cma"),
    ],
)
def test_nothing_in_cma(name: str, load: str) -> None:
    placement = placed(name, load)
    assert placement.known, placement.why_unknown
    assert placement.wholly_in_cma is False
    assert placement.bytes_in_cma == 0
    assert placement.bytes_to_copy == placement.bytes_total != 0
    assert placement.kernel_misaligned is False
    assert [segment.role for segment in placement.segments][2:] == [Role.KERNEL, Role.INITRD]


@pytest.mark.parametrize("load", ["plain", "plain2"])
def test_partly_in_cma(load: str) -> None:
    # The initrd fitted into the 40 MiB, but over the copied kernel's destination: the kernel gave it back, so
    # alloc_pages_success and release_pages_success moved by its 7325 pages as well.
    placement = placed("7.3.4-40M", load)
    assert placement.known, placement.why_unknown
    assert placement.wholly_in_cma is False
    assert placement.bytes_in_cma == PARAMETERS_AND_PURGATORY
    assert placement.bytes_to_copy == 0x3C39000 + INITRD
    assert [segment.inside_area for segment in placement.segments] == [True, True, False, False]


def test_a_refused_load_has_no_placement() -> None:
    placement = placed("6.16.12", "no_cma")  # EINVAL: no records at all
    assert not placement.known
    assert placement.segments == ()
    assert placement.bytes_total is None and placement.kernel_misaligned is None


def test_forms_of_the_lines() -> None:
    _, loads = recorded("7.3.4")
    whole = placed("7.3.4", "plain")
    bare = [line.split(";", 1)[1] for line in loads["plain"].lines]
    dmesg = [f"[    4.155926] {line}" for line in bare]
    assert placed("7.3.4", "plain", lines=bare) == whole
    assert placed("7.3.4", "plain", lines=dmesg) == whole
    mixed = [
        text for line in loads["plain"].lines for text in (line, "4,1,2,-;usb 1-1: new device", "", "\x00")
    ]
    assert placed("7.3.4", "plain", lines=mixed) == whole


def test_of_several_loads_the_last_counts() -> None:
    _, loads = recorded("7.3.4")
    both = [*loads["no_cma"].lines, *loads["plain"].lines]
    assert placed("7.3.4", "plain", lines=both) == placed("7.3.4", "plain")
    assert placed("7.3.4", "no_cma", lines=[*loads["plain"].lines, *loads["no_cma"].lines]) == placed(
        "7.3.4", "no_cma"
    )
    unnamed = [line for line in both if "Loaded" not in line and "nr_segments" not in line]
    assert placed("7.3.4", "plain", lines=unnamed) == placed("7.3.4", "plain")


def without(lines: list[str], *texts: str) -> list[str]:
    return [line for line in lines if not any(text in line for text in texts)]


def test_roles_by_order_where_no_record_names_them() -> None:
    lines = without(recorded("7.3.4")[1]["plain"].lines, "Loaded")
    assert placed("7.3.4", "plain", lines=lines) == placed("7.3.4", "plain")
    # On aarch64 the order is another one: not guessed.
    facts = HostFacts(machine="aarch64", page_size=4096)
    elsewhere = parse_placement(lines, facts, kernel_alignment=MIB2)
    assert {segment.role for segment in elsewhere.segments} == {Role.OTHER}
    assert elsewhere.kernel_misaligned is None


def test_names_win_over_order() -> None:
    # IMA and KHO add segments of their own (security/integrity/ima/ima_kexec.c).
    lines = [
        "kexec_file(Image): Loaded kernel at 0x40200000 bufsz=0x1000 memsz=0x2000",
        "kexec_file: Loaded initrd at 0x41000000 bufsz=0x3000 memsz=0x3000",
        "kexec_file: Loaded dtb at 0x42000000 bufsz=0x10 memsz=0x1000",
        "kexec_file: nr_segments = 4",
        "kexec_file: segment[0]: buf=0x01 bufsz=0x1000 mem=0x40200000 memsz=0x2000",
        "kexec_file: segment[1]: buf=0x02 bufsz=0x3000 mem=0x41000000 memsz=0x3000",
        "kexec_file: segment[2]: buf=0x03 bufsz=0x10 mem=0x42000000 memsz=0x1000",
        "kexec_file: segment[3]: buf=0x04 bufsz=0x10 mem=0x43000000 memsz=0x1000",
        "kexec_file: kexec_file_load: type:0, start:0x40200000 head:0x77001002 flags:0x8",
    ]
    facts = parse_facts({"machine": "aarch64", "page_size": 4096, "meminfo": "MemTotal: 4 kB\n", "flags": {}})
    placement = parse_placement(lines, facts, kernel_alignment=MIB2)
    assert [segment.role for segment in placement.segments] == [
        Role.KERNEL,
        Role.INITRD,
        Role.DTB,
        Role.OTHER,
    ]
    assert placement.known and placement.kernel_misaligned is False


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (("segment[",), "no segment"),
        (("segment[3]",), "3 of 4 segments"),
        (("segment[1]", "nr_segments"), "segments are missing"),
        (("segment[3]", "nr_segments", "kexec_file_load"), "does not have the whole load"),
    ],
)
def test_missing_records(texts: tuple[str, ...], why: str) -> None:
    lines = without(recorded("7.3.4")[1]["plain"].lines, *texts)
    placement = placed("7.3.4", "plain", lines=lines)
    assert not placement.known
    assert why in placement.why_unknown
    assert (
        placement.wholly_in_cma is None and placement.bytes_in_cma is None and placement.bytes_total is None
    )


def test_lost_records_matter_only_where_the_count_is_lost_too() -> None:
    lines = recorded("7.3.4")[1]["plain"].lines
    assert placed("7.3.4", "plain", log_complete=False).known
    assert not placed("7.3.4", "plain", lines=without(lines, "nr_segments"), log_complete=False).known


@given(st.integers(0, 4), st.integers(1, 100))
def test_a_record_that_is_cut_off_is_never_believed(which: int, cut: int) -> None:
    lines = list(recorded("7.3.4")[1]["plain"].lines)
    index = [number for number, line in enumerate(lines) if "segment[" in line or "kexec_file_load" in line][
        which
    ]
    lines[index] = lines[index][:-cut]
    alone = placed("7.3.4", "plain", lines=lines, before=None, after=None)
    assert not alone.known or alone.bytes_total == placed("7.3.4", "plain").bytes_total
    placement = placed("7.3.4", "plain", lines=lines)
    # The end record's own figures: a head or flags cut short must not turn into another truth.
    assert not placement.known or (placement.wholly_in_cma is True and placement.bytes_to_copy == 0)


def moved(load: str, **by: int) -> dict[str, Any]:
    """The counters after that load of 7.3.4, each moved by so much."""
    counters = dict(recorded("7.3.4")[1][load].counters["after"])
    for name, pages in by.items():
        counters[name] += pages
    return {"areas": {"reserved": counters}}


@pytest.mark.parametrize(
    ("load", "by", "why"),
    [
        # The list is empty, but a page of the image was not taken from the area.
        ("plain", {"alloc_pages_success": -1, "available_pages": 1}, "taken for 22749"),
        # One counter moved by another amount than the other.
        ("plain", {"alloc_pages_success": 3}, "disagree"),
        ("plain", {"available_pages": 3}, "disagree"),
    ],
)
def test_witnesses_that_contradict_each_other(load: str, by: dict[str, int], why: str) -> None:
    placement = placed("7.3.4", load, after=moved(load, **by))
    assert not placement.known
    assert why in placement.why_unknown
    assert placement.wholly_in_cma is None and placement.bytes_in_cma is None
    assert placement.bytes_total is not None  # what was loaded is known all the same


def test_a_list_that_is_not_empty_against_counters() -> None:
    def changed(head: str, after: dict[str, Any]) -> Placement:
        lines = [line.replace("head:0x4 ", f"head:{head} ") for line in recorded("7.3.4")[1]["plain"].lines]
        # A kernel outside CMA is aligned: with 1 MiB asked for, this one is.
        return placed("7.3.4", "plain", lines=lines, after=after, kernel_alignment=1 << 20)

    whole = changed("0x317f002", moved("plain"))
    assert not whole.known and "not empty" in whole.why_unknown
    # 5 pages are purgatory's, 6 are nobody's.
    five = changed("0x317f002", moved("plain", alloc_pages_success=5 - 22749, available_pages=22749 - 5))
    assert five.known and five.bytes_in_cma == 5 * 4096
    six = changed("0x317f002", moved("plain", alloc_pages_success=6 - 22749, available_pages=22749 - 6))
    assert not six.known and "no set of the segments" in six.why_unknown


def test_an_empty_list_where_cma_is_impossible() -> None:
    facts, loads = recorded("7.2.12-0")
    lines = [line.replace("head:0x27c6002", "head:0x4") for line in loads["plain"].lines]
    placement = parse_placement(lines, facts, kernel_alignment=MIB2)
    assert not placement.known and "could not use CMA" in placement.why_unknown


def test_an_empty_list_with_a_segment_outside_the_area() -> None:
    lines = [line.replace("0x75139000", "0x15139000") for line in recorded("7.3.4")[1]["plain"].lines]
    placement = placed("7.3.4", "plain", lines=lines)
    assert not placement.known and "outside the CMA area" in placement.why_unknown


@pytest.mark.parametrize("load", ["plain", "no_cma"])
def test_one_witness_is_enough(load: str) -> None:
    whole = placed("7.3.4", load)
    no_counters = placed("7.3.4", load, before=None, after=None)
    assert no_counters.known
    assert no_counters.bytes_in_cma == whole.bytes_in_cma
    lines = without(recorded("7.3.4")[1][load].lines, "kexec_file_load:")
    no_head = placed("7.3.4", load, lines=lines)
    assert no_head.known and no_head.head is None
    assert (no_head.wholly_in_cma, no_head.bytes_in_cma) == (whole.wholly_in_cma, whole.bytes_in_cma)
    neither = placed("7.3.4", load, lines=lines, before=None, after=None)
    assert not neither.known and "no CMA counters" in neither.why_unknown


def test_copied_segments_without_counters_are_not_counted() -> None:
    placement = placed("7.3.4-40M", "plain", before=None, after=None)
    assert placement.known
    assert placement.wholly_in_cma is False
    assert placement.bytes_in_cma is None and placement.bytes_to_copy is None


def test_alignment_not_known() -> None:
    assert placed("7.3.4", "plain", kernel_alignment=None).kernel_misaligned is None


@given(st.lists(st.text(max_size=60), max_size=20))
def test_anything_else_never_raises(lines: list[str]) -> None:
    assert not parse_placement(lines, HostFacts(), kernel_alignment=MIB2).known
