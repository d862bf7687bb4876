"""Waves and the failure budget."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.playbook import FailureBudget, WaveSize
from orchestrator.domain.strategy import waves


def sizes(*texts: int | str) -> list[WaveSize]:
    return [WaveSize.model_validate(text) for text in texts]


def lengths(fleet: int, *texts: int | str) -> list[int]:
    hosts = [f"h{number}" for number in range(fleet)]
    cut = waves(hosts, sizes(*texts))
    assert [host for wave in cut for host in wave] == hosts[: sum(map(len, cut))], "the order is the hosts'"
    return [len(wave) for wave in cut]


@pytest.mark.parametrize(
    ("fleet", "texts", "expected"),
    [
        (4, [1, "50%", "100%"], [1, 1, 2]),
        (10, [1, "50%", "100%"], [1, 4, 5]),
        (1, [1, "50%", "100%"], [1]),
        (2, [1, "50%", "100%"], [1, 1]),
        (3, ["50%", "100%"], [2, 1]),
        (3, [2, "10%", "100%"], [2, 1]),
        (3, [10, "100%"], [3]),
        (10, [1, "20%"], [1, 1]),
        (0, [1, "100%"], []),
        (100, ["7%", "100%"], [7, 93]),
        (1000, ["0.1%", "100%"], [1, 999]),
        (250, ["64.4%", "100%"], [161, 89]),  # 161.00000000000003 in binary fractions
    ],
)
def test_sizes_are_cumulative_rounded_up_and_never_empty(
    fleet: int, texts: list[int | str], expected: list[int]
) -> None:
    assert lengths(fleet, *texts) == expected


@given(st.integers(0, 5000), st.lists(st.integers(1, 1000), max_size=5, unique=True))
def test_percentages_round_up_exactly(fleet: int, tenths: list[int]) -> None:
    percents = sorted(tenths)
    cut = waves(range(fleet), [WaveSize(percent=tenth / 10) for tenth in percents])  # type: ignore[arg-type]
    ends = {ceil(Fraction(fleet * tenth, 1000)) for tenth in percents}
    total, seen = 0, set()
    for wave in cut:
        assert wave
        total += len(wave)
        seen.add(total)
    assert seen == ends - {0}


@pytest.mark.parametrize(
    ("budget", "fleet", "most"),
    [(0, 10, 0), (2, 10, 2), ("10%", 10, 1), ("10%", 9, 0), ("100%", 3, 3), ("0%", 9, 0), ("18.4%", 375, 69)],
)
def test_budget_is_over_the_fleet_and_rounds_down(budget: int | str, fleet: int, most: int) -> None:
    parsed = FailureBudget.model_validate(budget)
    assert parsed.limit(fleet) == most
    assert parsed.allows(most, fleet)
    assert not parsed.allows(most + 1, fleet)


@given(st.integers(0, 10_000), st.integers(0, 1000))
def test_budget_percentage_is_exact(fleet: int, tenths: int) -> None:
    assert FailureBudget(percent=tenths / 10).limit(fleet) == floor(Fraction(fleet * tenths, 1000))
