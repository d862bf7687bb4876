"""Downtime: the counter bridge against a simulated pair of kernels, and every way to have no figure."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.downtime import (
    ClockSamples,
    JumpStamp,
    Measurement,
    Pair,
    describe,
    fit,
    hot_phase,
    outage,
    pairs_from,
    samples_from_clock,
    stamp_from_arm,
    time_to_ssh,
)
from orchestrator.domain.facts import HostFacts

GHZ = 2_995_200_000


def sampled(
    zero: int, rate: float, start_s: float, count: int = 9, noise: list[int] | None = None
) -> tuple[Pair, ...]:
    """What a kernel whose time zero is at counter `zero` samples over a second from `start_s` on."""
    jitter = noise or [0] * count
    return tuple(
        (zero + round(rate * (raw / 1e9)) + jitter[index], raw)
        for index in range(count)
        for raw in [round((start_s + index / count) * 1e9)]
    )


def bridge(
    hot_s: float,
    *,
    rate: float = GHZ,
    new_rate: float | None = None,
    boot_s: float = 20.0,
    uptime_s: float = 4e5,
) -> tuple[JumpStamp, ClockSamples]:
    """A jump 2 s after the old kernel's samples, and the new kernel's samples `boot_s` after its zero."""
    old_zero = 12345
    appointment = old_zero + round(rate * (uptime_s + 3))
    new_zero = appointment + round(rate * hot_s)
    return (
        JumpStamp(
            appointment=appointment, counter="tsc", pairs=sampled(old_zero, rate, uptime_s), invariant=True
        ),
        ClockSamples(
            counter="tsc", pairs=sampled(new_zero, new_rate or rate, boot_s), tick_s=0.004, invariant=True
        ),
    )


def test_hot_phase_of_a_clean_bridge() -> None:
    measured = hot_phase(*bridge(0.84), kexec_proven=True)
    assert measured.value == pytest.approx(0.84, abs=1e-6)
    assert measured.uncertainty == pytest.approx(0.004, abs=1e-4)
    assert measured.resolution == 0.004
    assert measured.unit == "s"
    assert "counter bridge: tsc, appointment" in measured.source
    assert describe(measured) == "0.840 s ±0.005 s"


def test_counter_of_a_long_running_machine_keeps_its_low_bits() -> None:
    measured = hot_phase(*bridge(0.84, uptime_s=3e7, rate=5e9), kexec_proven=True)  # past 2**53
    assert measured.value == pytest.approx(0.84, abs=1e-5)


@given(
    hot=st.floats(0.5, 60),
    rate=st.floats(1e7, 5e9),
    boot=st.floats(1, 300),
    seed=st.integers(0, 2**32),
    width_us=st.integers(0, 200),
)
def test_the_truth_lies_within_the_stated_uncertainty(
    hot: float, rate: float, boot: float, seed: int, width_us: int
) -> None:
    stamp, after = bridge(hot, rate=rate, boot_s=boot)
    dice = random.Random(seed)
    noise = [round(dice.uniform(0, width_us * 1e-6) * rate) for _ in after.pairs]
    noisy = tuple((c + n, raw) for (c, raw), n in zip(after.pairs, noise, strict=True))
    measured = hot_phase(stamp, replace(after, pairs=noisy), kexec_proven=True)
    assert measured.value is not None and measured.uncertainty is not None
    assert abs(measured.value - hot) <= measured.uncertainty


def test_a_recalibrated_clock_widens_the_uncertainty() -> None:
    measured = hot_phase(*bridge(10.0, new_rate=GHZ * 1.002), kexec_proven=True)
    assert measured.uncertainty is not None and measured.uncertainty > 10 * 0.0019
    assert "ppm apart" in measured.source


def test_rates_that_disagree_give_no_figure() -> None:
    measured = hot_phase(*bridge(0.84, new_rate=GHZ * 1.05), kexec_proven=True)
    assert measured.value is None
    assert "apart" in measured.why_not and measured.why_not.startswith("not measurable")


def test_an_unknown_tick_is_taken_as_the_slowest() -> None:
    stamp, after = bridge(0.84)
    measured = hot_phase(stamp, replace(after, tick_s=None), kexec_proven=True)
    assert measured.uncertainty == pytest.approx(0.01, abs=1e-4)
    assert "CONFIG_HZ unknown" in measured.source


def test_a_clock_that_gave_up_the_tsc_widens_the_uncertainty() -> None:
    # Seen on 7.2.12 under emulation: "clocksource: Switched to clocksource hpet" 8 s after the boot.
    stamp, after = bridge(0.84, boot_s=20.0)
    measured = hot_phase(stamp, replace(after, clocksource="hpet"), kexec_proven=True)
    assert measured.uncertainty == pytest.approx(0.004 + 20.5 * 1e-3, rel=0.01)
    assert "switched to hpet" in measured.source


@pytest.mark.parametrize("promised", [False, None])
def test_a_counter_without_a_promise_is_measured_and_says_so(promised: bool | None) -> None:
    stamp, after = bridge(0.84)
    measured = hot_phase(replace(stamp, invariant=promised), after, kexec_proven=True)
    assert measured.value is not None
    assert "does not promise an invariant counter" in measured.source


def test_no_nonce_no_figure() -> None:
    measured = hot_phase(*bridge(0.84), kexec_proven=False)
    assert measured.value is None and "nonce" in measured.why_not


def _changed(**changes: object) -> tuple[JumpStamp, ClockSamples]:
    stamp, after = bridge(0.84)
    for name, value in changes.items():
        side, _, attribute = name.partition("_")
        if side == "old":
            stamp = replace(stamp, **{attribute: value})  # type: ignore[arg-type]
        else:
            after = replace(after, **{attribute: value})  # type: ignore[arg-type]
    return stamp, after


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"old_counter": None}, "no counter"),
        ({"new_counter": None}, "no counter"),
        ({"new_counter": "cntvct"}, "tsc before the jump, cntvct after"),
        ({"old_appointment": None}, "stamped"),
        ({"old_pairs": ()}, "0 clock samples of the old kernel"),
        ({"new_pairs": ((1, 1), (2, 2))}, "2 clock samples of the new kernel"),
        ({"new_pairs": sampled(1000, GHZ, 20)}, "backwards"),  # a firmware boot: the counter began anew
        ({"old_appointment": 1}, "before the samples"),
        ({"new_pairs": tuple(reversed(sampled(2**60, GHZ, 20)))}, "does not run forward"),
        ({"new_pairs": ((2**60, 1), (2**60 + 9, 1), (2**60 + 18, 2))}, "does not run forward"),
        ({"old_pairs": ((5, 1), (5, 2), (6, 3))}, "does not run forward"),
    ],
)
def test_no_bridge_no_figure(changes: dict[str, object], why: str) -> None:
    measured = hot_phase(*_changed(**changes), kexec_proven=True)
    assert measured.value is None and measured.uncertainty is None
    assert why in measured.why_not
    assert describe(measured).startswith("not measur")


def test_a_zero_before_the_jump_gives_no_figure() -> None:
    # A clock that already ran when the jump was called: the new kernel is not the one that we jumped to.
    measured = hot_phase(*bridge(-5.0), kexec_proven=True)
    assert measured.value is None and "before the jump" in measured.why_not


def test_fit_of_exact_pairs() -> None:
    line = fit(sampled(7_000_000, 1e9, 30.0))
    assert line.rate == pytest.approx(1e9, rel=1e-12)
    assert line.zero == pytest.approx(7_000_000, abs=2)
    assert 0 < line.zero_error_s < 1e-6


def test_answers_of_the_agent_become_values() -> None:
    arm = {
        "method": "direct",
        "counter": "tsc",
        "appointment": 5000,
        "pairs": [[1, 10], [2, 20], ["3", 30], [None, 40], 7],
        "invariant": True,
    }
    stamp = stamp_from_arm(arm)
    assert stamp == JumpStamp(
        appointment=5000, counter="tsc", pairs=((1, 10), (2, 20), (3, 30)), invariant=True
    )
    facts = HostFacts(machine="aarch64", clocksource="arch_sys_counter", config={"CONFIG_HZ": "250"})
    assert samples_from_clock({"pairs": [[1, 2]], "counter": "cntvct"}, facts) == ClockSamples(
        counter="cntvct", pairs=((1, 2),), tick_s=0.004, invariant=True, clocksource="arch_sys_counter"
    )
    assert samples_from_clock({}, HostFacts()).counter is None
    assert pairs_from("no") == ()


AFTER_A_STOP = ClockSamples(counter="tsc", pairs=((1, 10), (2, 20), (3, 30)))


def test_an_orderly_stop_has_a_hot_phase_only_with_a_stamp() -> None:
    arm = {"method": "systemd", "counter": "tsc", "appointment": 5000, "pairs": []}
    assert stamp_from_arm(arm).appointment is None
    why = hot_phase(stamp_from_arm(arm, why_not="no pstore"), AFTER_A_STOP, True).why_not
    assert why == "not measured: no pstore"
    stamped = stamp_from_arm(arm, stamped=9000)
    assert stamped.appointment == 9000 and "hook" in stamped.source


def test_outage_and_time_to_ssh() -> None:
    assert describe(outage(41.34, 0.5, "banner on port 80")) == "41.3 s (resolution 0.5 s)"
    assert describe(outage(None, None, "banner", "the prober saw no answer")) == (
        "not measured: the prober saw no answer"
    )
    assert time_to_ssh(100.0, 112.5, 1.0) == Measurement(
        value=12.5, resolution=1.0, source="worker's clock: go told to first SSH login"
    )
    assert time_to_ssh(100.0, None, reason="never came back").value is None
    assert time_to_ssh(100.0, 90.0).value is None


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (Measurement(value=0.8412, uncertainty=0.0153), "0.84 s ±0.02 s"),
        (Measurement(value=0.8412, uncertainty=0.02), "0.84 s ±0.02 s"),
        (Measurement(value=12.0, uncertainty=3.2), "12 s ±4 s"),
        (Measurement(value=12.0, uncertainty=25.0), "12 s ±25 s"),
        (Measurement(value=1.23456), "1.23 s"),
        (Measurement(value=None), "not measured"),
    ],
)
def test_describe(measurement: Measurement, text: str) -> None:
    assert describe(measurement) == text
