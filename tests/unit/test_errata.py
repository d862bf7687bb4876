"""Errata are matched by version, machine and size, and never by what is not known."""

from __future__ import annotations

import pytest

from orchestrator.domain.errata import ERRATA, Erratum, VersionRange, match_errata

BIG = 2 << 30


def names(running: str | None, size: int | None, *, machine: str | None = "x86_64") -> list[str]:
    matched = match_errata(ERRATA, running=running, target="7.3.4", machine=machine, initrd_size=size)
    return [one.name for one in matched]


@pytest.mark.parametrize(
    ("running", "size", "hit"),
    [
        ("6.12.49+deb13-amd64", BIG, True),
        ("6.12.50+deb13-amd64", BIG, False),
        ("6.12.49", BIG - 1, False),
        ("6.0", BIG, True),
        ("5.19.17", BIG, False),
        ("6.6.108", BIG, True),
        ("6.6.109", BIG, False),
        ("6.7.1", BIG, True),
        ("6.13.2", BIG, True),
        ("6.15.11", BIG, True),
        ("6.16-rc1", BIG, True),
        ("6.16", BIG, False),
        ("7.3.4", BIG, False),
        ("6.12.49", None, False),
        (None, BIG, False),
        ("odd", BIG, False),
    ],
)
def test_the_load_that_crashes(running: str | None, size: int | None, hit: bool) -> None:
    assert ("sha256-2g" in names(running, size)) is hit
    assert ("sha256-2g" in names(running, size, machine=None)) is hit


def test_each_condition_counts() -> None:
    one = Erratum(
        name="x",
        hazard="h",
        action="a",
        reference="r",
        fatal=False,
        running=(VersionRange(before="6.0"),),
        target=(VersionRange(first="6.1"), VersionRange(first="5.0", before="5.1")),
        machine="aarch64",
    )

    def hit(running: str | None, target: str | None, machine: str | None) -> bool:
        matched = match_errata([one], running=running, target=target, machine=machine, initrd_size=None)
        return bool(matched)

    assert hit("5.9", "6.1", "aarch64") and hit("5.9", "5.0.7", "aarch64") and hit("5.9", "9.9", "aarch64")
    assert not hit("6.0", "6.1", "aarch64")
    assert not hit("5.9", "5.1", "aarch64")
    assert not hit("5.9", "6.1", "x86_64")
    assert not hit("5.9", "6.1", None)
    assert not hit("5.9", None, "aarch64")


def test_every_entry_says_what_to_do_and_where_it_is_written() -> None:
    assert ERRATA
    for one in ERRATA:
        assert one.name and one.hazard and one.action and one.reference
    assert len({one.name for one in ERRATA}) == len(ERRATA)
