"""What of a host's read-back is believed."""

from __future__ import annotations

import copy
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.bootimage import ImageKind
from orchestrator.domain.placement import Placement, Role
from orchestrator.domain.rehearsal import parse_rehearsal, readback_segments
from tests.unit.cmaworld import SETUP, header
from tests.unit.test_placement import placed

WHOLE = placed("7.3.4", "plain")
PURGATORY, PARAMETERS, KERNEL, INITRD = range(4)


def answer(placement: Placement = WHOLE, *, found: bool = True) -> dict[str, Any]:
    """A read-back of that image without any fault."""
    segments = []
    for segment in placement.segments:
        file = segment.role in (Role.KERNEL, Role.INITRD)
        segments.append(
            {
                "index": segment.index,
                "readable": True,
                "why_not": "",
                "bytes_read": segment.memsz,
                "body_compared": file,
                "body_differs": 0 if file else None,
                "first_difference": None,
                "tail_nonzero": 0,
                "first_tail_nonzero": None,
                "found": [found] if segment.role is Role.PURGATORY else [],
            }
        )
    return {"source": "kcore", "seconds": 1.0, "segments": segments}


def changed(*indexes: int, **values: Any) -> dict[str, Any]:
    raw = answer()
    for index in indexes:
        raw["segments"][index].update(values)
    return raw


def test_what_is_asked_for() -> None:
    kernel, initrd = WHOLE.of(Role.KERNEL), WHOLE.of(Role.INITRD)
    assert kernel is not None and initrd is not None
    asked = readback_segments(WHOLE, header(kernel.memsz), "/k", kernel.bufsz + SETUP, "/i", initrd.bufsz)
    assert [one["index"] for one in asked] == [0, 1, 2, 3]
    assert asked[KERNEL] == {
        "index": 2,
        "address": 0x71500000,
        "memsz": 0x3C39000,
        "bufsz": 0xD4C7C0,
        "file": "/k",
        "file_offset": SETUP,
        "file_length": 0xD4C7C0,
        "search": [],
    }
    assert (asked[INITRD]["file"], asked[INITRD]["file_offset"]) == ("/i", 0)
    assert asked[INITRD]["file_length"] == 0x1C9C380
    # purgatory_sha_regions: {u64 start, u64 len}, little-endian.
    assert asked[PURGATORY]["search"] == [struct.pack("<QQ", 0x71500000, 0x3C39000).hex()]
    assert asked[PARAMETERS]["file"] is None and asked[PARAMETERS]["file_length"] == 0


def test_only_what_lies_in_cma_is_asked_for() -> None:
    part = placed("7.3.4-40M", "plain")
    asked = readback_segments(part, header(0x3C39000), "/k", 0xD517C0, None, 0)
    assert [one["index"] for one in asked] == [PURGATORY, PARAMETERS]
    assert readback_segments(placed("7.3.4", "no_cma"), header(0x3C39000), "/k", 1, None, 0) == []
    assert readback_segments(Placement(), header(0x3C39000), "/k", 1, None, 0) == []
    arm = readback_segments(WHOLE, header(0x3C39000, kind=ImageKind.ARM64), "/k", 0xD4C7C0, "/i", 5)
    assert arm[PURGATORY]["search"] == [] and arm[KERNEL]["file_offset"] == 0


def test_a_clean_image() -> None:
    read = parse_rehearsal(answer(), WHOLE)
    assert read.source == "kcore" and read.why_not == ""
    assert read.digest_stored is True
    assert [one.tail_nonzero for one in read.readings] == [0, 0, 0, 0]
    assert [one.body_matched for one in read.readings] == [False, False, True, True]
    assert parse_rehearsal(answer(found=False), WHOLE).digest_stored is False


def test_stale_tails_and_bodies_that_differ_are_always_believed() -> None:
    raw = changed(KERNEL, tail_nonzero=4411392, first_tail_nonzero=0xD4C7C0)
    raw["segments"][INITRD].update(body_differs=2, first_difference=7)
    read = parse_rehearsal(raw, WHOLE)
    assert (read.readings[KERNEL].tail_nonzero, read.readings[KERNEL].first_tail_nonzero) == (
        4411392,
        0xD4C7C0,
    )
    assert (read.readings[INITRD].body_differs, read.readings[INITRD].first_difference) == (2, 7)
    assert read.readings[INITRD].tail_nonzero is None  # zeros behind a body that did not match


def test_zeros_prove_nothing_where_no_body_matched() -> None:
    """kcore answers zeros for pages that it will not read: then all looks clean, and no digest is found."""
    raw = changed(KERNEL, INITRD, body_differs=100)
    raw["segments"][PURGATORY]["found"] = [False]
    read = parse_rehearsal(raw, WHOLE)
    assert [one.tail_nonzero for one in read.readings] == [None] * 4
    assert read.digest_stored is None
    not_compared = changed(KERNEL, INITRD, body_compared=False, body_differs=None, why_not="/k is gone")
    read = parse_rehearsal(not_compared, WHOLE)
    assert [one.tail_nonzero for one in read.readings] == [None] * 4
    assert read.digest_stored is True  # found is found
    assert "kernel: /k is gone" in read.why_not


def test_a_zero_tail_of_one_leans_on_the_body_of_another() -> None:
    raw = changed(KERNEL, readable=False, why_not="reading kcore: EIO")
    read = parse_rehearsal(raw, WHOLE)
    assert [one.tail_nonzero for one in read.readings] == [0, 0, None, 0]
    assert read.digest_stored is True
    assert read.why_not == "kernel: reading kcore: EIO"


@pytest.mark.parametrize(
    "change",
    [
        {"readable": False},
        {"readable": None},
        {"readable": 2},
        {"bytes_read": 4096},
        {"bytes_read": None},
        {"bytes_read": "x"},
    ],
)
def test_a_segment_that_was_not_read_to_its_end(change: dict[str, Any]) -> None:
    read = parse_rehearsal(changed(KERNEL, **change), WHOLE)
    reading = read.readings[KERNEL]
    assert not reading.readable and not reading.body_compared and reading.tail_nonzero is None
    assert read.why_not.startswith("kernel: ")


@pytest.mark.parametrize("tail", [-1, 1 << 40, "x", None, True, 1.5])
def test_figures_that_cannot_be(tail: object) -> None:
    assert parse_rehearsal(changed(KERNEL, tail_nonzero=tail), WHOLE).readings[KERNEL].tail_nonzero is None
    read = parse_rehearsal(changed(KERNEL, body_differs=tail), WHOLE).readings[KERNEL]
    assert not read.body_compared and read.body_differs is None


def test_the_digest_where_purgatory_is_copied() -> None:
    """One segment outside brings the digest back (kexec_only_cma_segments)."""
    copied = placed("7.3.4", "no_cma")
    read = parse_rehearsal({"segments": []}, copied)
    assert read.readings == () and read.digest_stored is True and "in CMA" in read.why_not
    part = placed("7.3.4-40M", "plain")
    raw = answer(part)
    raw["segments"] = raw["segments"][:2]
    read = parse_rehearsal(raw, part)
    assert read.digest_stored is True
    assert [one.tail_nonzero for one in read.readings] == [None, None]  # no body to lean on


def test_a_host_that_answers_for_half_of_it() -> None:
    raw = answer()
    del raw["segments"][1:]
    read = parse_rehearsal(raw, WHOLE)
    assert [one.readable for one in read.readings] == [True, False, False, False]
    assert "did not answer" in read.why_not


json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["index", "readable", "bytes_read", "tail_nonzero", "found", "segments", "x"]),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=12,
)


@given(st.data(), json)
def test_never_raises_and_never_calls_zeros_proof(data: st.DataObject, odd: Any) -> None:
    parse_rehearsal({"segments": odd, "source": odd}, WHOLE)
    parse_rehearsal(odd, WHOLE)
    raw = copy.deepcopy(answer())
    for _ in range(data.draw(st.integers(1, 4))):
        item = data.draw(st.sampled_from(raw["segments"]))
        item[data.draw(st.sampled_from(sorted(item)))] = data.draw(json)
    read = parse_rehearsal(raw, WHOLE)
    if not any(one.body_matched for one in read.readings):
        assert all(one.tail_nonzero != 0 for one in read.readings)
        assert read.digest_stored is not False
