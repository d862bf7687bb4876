"""Advice for a host: said where it helps, and not said where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.advice import advice
from orchestrator.domain.cmamodel import MIB
from orchestrator.domain.facts import CmaArea, HostFacts
from orchestrator.domain.placement import Placement, with_digest
from orchestrator.domain.spacers import needed_area
from tests.unit.cmaworld import header
from tests.unit.test_placement import placed

HEADER = header(0x3C39000)
INITRD = 30 * MIB
NEEDED = 96  # MiB: 60.2 of kernel, 30 of initrd, a spacer of 2, small segments, rounded up


def area(mebibytes: int, held_pages: int = 64) -> CmaArea:
    pages = mebibytes * 256
    return CmaArea(
        name="reserved", size=mebibytes * MIB, total_pages=pages, available_pages=pages - held_pages
    )


def host(**changes: Any) -> HostFacts:
    known = {
        "machine": "x86_64",
        "page_size": 4096,
        "meminfo_read": True,
        "knows_no_cma": True,
        "cma_areas": (area(NEEDED),),
        "cmdline": "root=/dev/vda1 panic=10",
        "kexec_loaded": False,
    }
    return HostFacts(**{**known, **changes})


def told(facts: HostFacts, placement: Placement | None = None, initrd: int = INITRD, **more: Any) -> str:
    return "\n".join(advice(facts, placement, HEADER, 13 * MIB, initrd, **more))


def test_nothing_to_say() -> None:
    assert told(host(), placed("7.3.4", "plain"), power_control=True, watchdog=True) == ""
    assert told(host()) == ""


def test_cma_missing_or_too_small() -> None:
    assert needed_area(HostFacts(), HEADER, INITRD, signed_only=False) == NEEDED * MIB
    assert "no CMA area: cma=96M" in told(host(cma_areas=None))
    assert "has 80 MiB: cma=96M" in told(host(cma_areas=(area(80),)))
    signed = told(host(), signed_only=True)
    assert "has 96 MiB: cma=160M" in signed
    assert "pinned" in told(host(), placed("7.3.4-40M", "plain"))


def test_no_word_of_cma_where_the_kernel_cannot_use_it() -> None:
    assert told(host(knows_no_cma=False, cma_areas=None)) == ""
    assert told(host(knows_no_cma=None, cma_areas=None)) == ""
    without = told(host(cma_areas=None, config={"CONFIG_CMA": "n"}))
    assert "built without CMA" in without and "cma=" not in without


def test_what_others_hold_counts_and_a_leak_is_named() -> None:
    leaked = host(cma_areas=(area(NEEDED, held_pages=60 * 256),))
    text = told(leaked)
    assert "60 MiB of CMA are taken though nothing is loaded" in text
    assert "cma=160M" in text
    assert "taken" not in told(replace(leaked, kexec_loaded=True))


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (None, "copied and hashed"),
        (placed("7.3.4", "no_cma"), "copied and hashed"),
        (with_digest(placed("7.3.4", "plain"), True), "is hashed"),
        (with_digest(placed("7.3.4", "plain"), False), "read and placed at the load"),
    ],
)
def test_a_large_initrd(placement: Placement | None, words: str) -> None:
    facts = host(cma_areas=(area(512),))
    text = told(facts, placement, initrd=100 * MIB)
    assert "the initrd has 100 MiB" in text and words in text
    assert "the initrd has" not in told(facts, placement, initrd=64 * MIB)


@pytest.mark.parametrize(
    ("cmdline", "config", "missing"),
    [
        ("quiet", None, True),
        ("quiet panic=30", None, False),
        ("quiet panic_on_oops=1", None, True),
        ("quiet -- panic=30", None, True),
        ("quiet", {"CONFIG_PANIC_TIMEOUT": "10"}, False),
        ("quiet", {"CONFIG_PANIC_TIMEOUT": "0"}, True),
        (None, None, False),
    ],
)
def test_panic(cmdline: str | None, config: dict[str, str] | None, missing: bool) -> None:
    assert ("panic=10" in told(host(cmdline=cmdline, config=config))) is missing


def test_ways_back() -> None:
    assert "neither power control nor a watchdog" in told(host(), power_control=False, watchdog=False)
    assert "no power control" in told(host(), power_control=False, watchdog=True)
    assert "no watchdog" in told(host(), power_control=True, watchdog=False)
    assert "no watchdog" in told(host(), watchdog=False)
