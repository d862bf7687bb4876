"""Damaged logs of real loads: a placement is right or unknown, never known and wrong; and what each segment's
place makes of the digest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.facts import HostFacts, parse_facts
from orchestrator.domain.loadrecords import read_records
from orchestrator.domain.placement import (
    Placement,
    Role,
    free_pages,
    handover_possible,
    parse_placement,
    with_digest,
)
from tests.unit.test_placement import INITRD, MIB2, placed, recorded

LOADS = [
    ("6.16.12", "plain"),
    ("6.17.13", "no_cma"),
    ("7.2.12", "plain"),
    ("7.2.12", "no_cma"),
    ("7.2.12-0", "plain"),
    ("7.3.4", "plain2"),
    ("7.3.4-40M", "plain"),
]
NOISE = [
    "4,1,2,-;usb 1-1: new device",
    "6,9,9,-;kexec_file: kernel: 00000000b2c34d69 kernel_size: 0xd517c0",
    " SUBSYSTEM=usb",
    "\x00\xff;;;",
    "6,1,1,-;kexec-bzImage64: E820 memmap:",
    "",
]


@st.composite
def damaged(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Some of: records lost, doubled, in another order, cut off, others between them."""
    lines = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["lose", "double", "move", "cut", "noise", "shuffle", "tail", "head"]))
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        if kind == "noise" or not lines:
            lines.insert(at, draw(st.one_of(st.sampled_from(NOISE), st.text(max_size=80))))
        elif kind == "lose":
            del lines[at]
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        elif kind == "tail":
            lines = lines[at:]
        elif kind == "head":
            lines = lines[:at]
        else:
            lines = draw(st.permutations(lines))
    return lines


def assert_not_wrong(found: Placement, true: Placement) -> None:
    if not found.known:
        assert found.why_unknown
        assert found.wholly_in_cma is None and found.bytes_in_cma is None and found.bytes_to_hash is None
        assert all(segment.in_cma is None for segment in found.segments)
        return
    assert found.segments == true.segments
    assert found.wholly_in_cma == true.wholly_in_cma
    assert found.bytes_to_copy == true.bytes_to_copy and found.bytes_to_hash == true.bytes_to_hash
    assert found.kernel_misaligned == true.kernel_misaligned


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(LOADS))
def test_never_known_and_wrong(data: st.DataObject, load: tuple[str, str]) -> None:
    true = placed(*load)
    assert true.known
    lines = data.draw(damaged(recorded(load[0])[1][load[1]].lines))
    assert_not_wrong(placed(*load, lines=lines), true)
    without_counters = placed(*load, lines=lines, before=None, after=None)
    if without_counters.known:
        assert without_counters.wholly_in_cma == true.wholly_in_cma
        assert [one.address for one in without_counters.segments] == [one.address for one in true.segments]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_two_loads_mixed_up(data: st.DataObject) -> None:
    """Records of a load with CMA and of one without, put into each other in any way, each in its order."""
    loads = recorded("7.3.4")[1]
    first, second = list(loads["plain"].lines), list(loads["no_cma"].lines)
    mixed: list[str] = []
    while first or second:
        take = first if first and (not second or data.draw(st.booleans())) else second
        mixed.append(take.pop(0))
    found = placed("7.3.4", "plain", lines=mixed, before=None, after=None)
    spots = [(one.role, one.address, one.bufsz, one.memsz) for one in found.segments]
    whole = [placed("7.3.4", load) for load in ("plain", "no_cma")]
    assert not found.known or spots in [
        [(one.role, one.address, one.bufsz, one.memsz) for one in load.segments] for load in whole
    ]


def changed(load: tuple[str, str], old: str, new: str) -> Placement:
    lines = recorded(load[0])[1][load[1]].lines
    assert any(old in line for line in lines)
    return placed(*load, lines=[line.replace(old, new) for line in lines], before=None, after=None)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("mem=0x7ac40000", "mem=0x7ac40004", "damaged"),
        ("memsz=0x5000", "memsz=0x0", "damaged"),
        ("bufsz=0x4000 mem", "bufsz=0x14000 mem", "damaged"),
        ("mem=0x78fa3000", "mem=0x7c2fa000", "overlaps"),
        ("initrd at 0x78fa3000", "initrd at 0x78fa4000", "where no segment lies"),
        ("0x7c200000 bufsz=0xd4c7c0", "0x7c200000 bufsz=0xd4c7c1", "two sizes of the kernel"),
        ("boot_param, command line and misc at", "64bit kernel at", "names one role twice"),
    ],
)
def test_records_that_contradict_each_other(old: str, new: str, why: str) -> None:
    found = changed(("7.3.4-40M", "plain"), old, new)
    assert not found.known and why in found.why_unknown


def test_a_copied_kernel_off_its_alignment_contradicts_the_kernel() -> None:
    """locate_mem_hole_top_down (kernel/kexec_file.c) honours buf_align."""
    found = placed("7.3.4", "no_cma", kernel_alignment=64 << 20)
    assert not found.known and "not on its alignment" in found.why_unknown
    assert found.bytes_in_cma is None and found.bytes_to_hash is None
    assert [one.in_cma for one in found.segments] == [None] * 4


def test_roles_are_wanted_on_x86() -> None:
    lines = [line for line in recorded("7.3.4")[1]["plain"].lines if "boot_param" not in line]
    assert placed("7.3.4", "plain", lines=lines) == placed("7.3.4", "plain")  # three names fix the fourth
    swapped = [
        line.replace("64bit kernel", "*").replace("Loaded initrd", "Loaded 64bit kernel") for line in lines
    ]
    found = placed("7.3.4", "plain", lines=swapped)
    assert not found.known and "which segment holds what" in found.why_unknown


def test_which_segments_are_in_cma() -> None:
    whole = placed("7.3.4", "plain")
    assert [one.in_cma for one in whole.segments] == [True] * 4
    assert [one.in_cma for one in placed("7.3.4", "no_cma").segments] == [False] * 4
    part = placed("7.3.4-40M", "plain")
    assert [one.in_cma for one in part.segments] == [True, True, False, False]
    # Without counters a copied segment inside the area cannot be told from a placed one.
    open_ = placed("7.3.4-40M", "plain", before=None, after=None)
    assert [one.in_cma for one in open_.segments] == [None, None, False, False]
    assert [one.in_cma for one in Placement().segments] == []


def test_what_will_be_hashed() -> None:
    no_cma = placed("7.3.4", "no_cma")
    assert no_cma.bytes_to_hash == 0x2000 + 0x3C39000 + INITRD  # all but purgatory, tails included
    assert placed("7.3.4-40M", "plain").bytes_to_hash == no_cma.bytes_to_hash
    whole = placed("7.3.4", "plain")
    assert whole.bytes_to_hash is None  # only the rehearsal can tell
    assert with_digest(whole, True).bytes_to_hash == no_cma.bytes_to_hash
    assert with_digest(whole, False).bytes_to_hash == 0
    assert with_digest(whole, None) == whole
    assert with_digest(Placement(), True).bytes_to_hash is None


def arm64(*, head: str = "0x77001002", **facts: Any) -> Placement:
    lines = [
        "kexec_file: Loaded initrd at 0x41000000 bufsz=0x3000 memsz=0x3000",
        "kexec_file: Loaded initrd at 0x41800000 bufsz=0x3000 memsz=0x3000",  # placed anew after a failed try
        "kexec_file: Loaded dtb at 0x42000000 bufsz=0x10 memsz=0x1000",
        "kexec_file(Image): Loaded kernel at 0x40300000 bufsz=0x1000 memsz=0x2000",
        "kexec_file: nr_segments = 3",
        "kexec_file: segment[0]: buf=0x01 bufsz=0x1000 mem=0x40300000 memsz=0x2000",
        "kexec_file: segment[1]: buf=0x02 bufsz=0x3000 mem=0x41800000 memsz=0x3000",
        "kexec_file: segment[2]: buf=0x03 bufsz=0x10 mem=0x42000000 memsz=0x1000",
        f"kexec_file: kexec_file_load: type:0, start:0x40300000 head:{head} flags:0x8",
    ]
    return parse_placement(
        lines, HostFacts(machine="aarch64", page_size=4096, **facts), kernel_alignment=MIB2
    )


def test_arm64_hashes_nothing() -> None:
    copied = arm64(knows_no_cma=False)
    assert copied.known, copied.why_unknown
    assert [one.role for one in copied.segments] == [Role.KERNEL, Role.INITRD, Role.DTB]
    assert copied.bytes_to_hash == 0 and copied.wholly_in_cma is False
    placed_ = arm64(head="0x4", knows_no_cma=True)
    assert placed_.known and placed_.wholly_in_cma and placed_.kernel_misaligned
    assert placed_.bytes_to_hash == 0


def test_an_unknown_machine_hashes_nobody_knows_what() -> None:
    facts = replace(recorded("7.3.4")[0], machine="riscv64")
    assert placed("7.3.4", "no_cma", facts=facts).bytes_to_hash is None


@pytest.mark.parametrize(
    ("cmdline", "config", "possible"),
    [
        ("quiet", None, False),
        ("quiet kho=on", None, True),
        ("kho=on", {"CONFIG_KEXEC_HANDOVER": "n"}, False),
        ("quiet", {"CONFIG_KEXEC_HANDOVER": "y"}, False),
        ("", {"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}, True),
    ],
)
def test_a_handover_may_skip_the_digest(cmdline: str, config: dict[str, str] | None, possible: bool) -> None:
    facts = replace(recorded("7.3.4")[0], cmdline=cmdline, config=config)
    assert handover_possible(facts) is possible
    found = placed("7.3.4", "no_cma", facts=facts)
    assert (found.bytes_to_hash is None) is possible


def test_a_load_whose_end_was_lost_does_not_spoil_the_next() -> None:
    lines = [line for line in recorded("7.3.4")[1]["plain"].lines if "Loaded" not in line]
    both = [*(line for line in lines if "kexec_file_load:" not in line), *lines]
    records = read_records(both)
    assert records.count == 4 and sorted(records.segments) == [0, 1, 2, 3]
    assert placed("7.3.4", "plain", lines=both) == placed("7.3.4", "plain")


def test_free_pages() -> None:
    facts, loads = recorded("7.3.4")
    assert free_pages(loads["plain"].side("before"), facts) == 49088
    assert free_pages(loads["plain"].side("after"), facts) == 26339
    assert free_pages({"areas": {"other": {"available_pages": 5}}}, facts) is None
    assert free_pages(None, facts) is None


@pytest.mark.parametrize(
    ("raw", "ranges"),
    [
        ([[4096, 8191], [1 << 32, 1 << 33]], ((4096, 8191), (1 << 32, 1 << 33))),
        ([], None),  # not root
        (None, None),
        ("x", None),
        ([[1, 2], [3]], None),
        ([[1, 2], "x"], None),
        ([[2, 1]], None),
        ([[1, True]], None),
    ],
)
def test_ranges_of_ram(raw: object, ranges: object) -> None:
    assert parse_facts({"iomem_ram": raw}).iomem_ram == ranges


@given(st.lists(st.one_of(st.text(max_size=100), st.sampled_from(NOISE)), max_size=30))
def test_reading_never_raises(lines: list[str]) -> None:
    assert not read_records(lines).segments
