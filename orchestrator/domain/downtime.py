"""How long the host was away: hot phase by the counter bridge, outage by the prober, time to SSH.

The hot phase runs from the call of reboot(2) in the old kernel to the new kernel's time zero. Between them
only the CPU's counter (TSC, CNTVCT) runs on, so both kernels sample it together with CLOCK_MONOTONIC_RAW,
which starts at zero in timekeeping_init (kernel/time/timekeeping.c) and NTP does not slew. A jump whose end
cannot be placed on the counter has no hot phase: the measurement says why and carries no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.domain.facts import HostFacts
from orchestrator.domain.raw import mapping_of, optional_bool, optional_int, optional_text

Pair = tuple[int, int]  # (counter, CLOCK_MONOTONIC_RAW in nanoseconds), sampled together

RATE_DISAGREEMENT_BOUND = 0.01
"""Relative difference of the two kernels' counter rates above which the counter is not taken for one and the
same. Each kernel calibrates its clock anew; quick_pit_calibrate (arch/x86/kernel/tsc.c) stops at 500 ppm on a
quiet machine and emulated timers are worse, so the bound is wide enough for them and far below a counter that
was restarted, scaled or migrated."""

SLOWEST_TICK_S = 0.01
"""Tick assumed where CONFIG_HZ is not known: HZ=100, the slowest of kernel/Kconfig.hz."""

FALLBACK_CLOCKSOURCES = frozenset({"hpet", "acpi_pm", "pit", "refined-jiffies", "jiffies"})
"""What an x86 kernel turns to when it gives up the TSC (the watchdog in kernel/time/clocksource.c)."""

SWITCHED_CLOCK_ERROR = 1e-3
"""Relative error granted to the new kernel's early clock when it runs on a fallback source: it started on the
TSC as calibrated at boot (quick_pit_calibrate accepts 500 ppm) and goes on by a timer that may be as far off
(IA-PC HPET specification 1.0a, Timer Accuracy Rules: 500 ppm)."""

_MIN_PAIRS = 3  # two pairs give a rate, but no witness of how good it is


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A figure with its unit, or the reason why there is none (`value` None, `why_not` set)."""

    value: float | None
    unit: str = "s"
    uncertainty: float | None = None  # half-width, worst case, in `unit`
    resolution: float | None = None  # the step in which the source can see, in `unit`
    source: str = ""
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class JumpStamp:
    """The old kernel's side: when reboot(2) was called, on the counter."""

    appointment: int | None  # counter value at which the jump was called
    counter: str | None  # "tsc", "cntvct"; None: this host has no counter that user space can read
    pairs: tuple[Pair, ...] = ()
    invariant: bool | None = None
    source: str = "appointment"
    why_not: str = ""  # why there is no appointment


@dataclass(frozen=True, kw_only=True)
class ClockSamples:
    """The new kernel's side."""

    counter: str | None
    pairs: tuple[Pair, ...] = ()
    tick_s: float | None = None  # 1 / CONFIG_HZ, None where not known
    invariant: bool | None = None
    clocksource: str | None = None  # the new kernel's, as its facts tell it


@dataclass(frozen=True, kw_only=True)
class Line:
    """counter = zero + rate * CLOCK_MONOTONIC_RAW, by least squares."""

    rate: float  # counts per second
    zero: int  # counter value at raw time 0
    rate_error: float  # relative, worst case
    zero_error_s: float  # at raw time 0, seconds, worst case
    reach_s: float  # from raw time 0 to the middle of the samples


def stamp_from_arm(raw: Mapping[str, Any], *, stamped: int | None = None, why_not: str = "") -> JumpStamp:
    """The agent's answer to `arm` -> JumpStamp; `stamped`: the counter that a shutdown hook wrote instead, or
    None and `why_not`."""
    appointment = optional_int(raw.get("appointment")) if stamped is None else stamped
    systemd_without_stamp = raw.get("method") == "systemd" and stamped is None
    return JumpStamp(
        appointment=None if systemd_without_stamp else appointment,
        counter=optional_text(raw.get("counter")),
        pairs=pairs_from(raw.get("pairs")),
        invariant=optional_bool(raw.get("invariant")),
        source="appointment" if stamped is None else "stamp of the last shutdown hook",
        why_not=why_not,
    )


def samples_from_clock(raw: Mapping[str, Any], facts: HostFacts) -> ClockSamples:
    """The agent's answer to `clock` and the facts of the same boot -> ClockSamples."""
    answer = mapping_of(raw)
    return ClockSamples(
        counter=optional_text(answer.get("counter")),
        pairs=pairs_from(answer.get("pairs")),
        tick_s=facts.tick_seconds,
        invariant=facts.invariant_counter,
        clocksource=facts.clocksource,
    )


def pairs_from(raw: object) -> tuple[Pair, ...]:
    """[[counter, raw_ns], ...] -> pairs; anything that is no pair of integers is left out."""
    if not isinstance(raw, list | tuple):
        return ()
    pairs = []
    for item in raw:
        if isinstance(item, list | tuple) and len(item) >= 2:
            counter, raw_ns = optional_int(item[0]), optional_int(item[1])
            if counter is not None and raw_ns is not None:
                pairs.append((counter, raw_ns))
    return tuple(pairs)


def hot_phase(stamp: JumpStamp, after: ClockSamples, kexec_proven: bool) -> Measurement:
    """The hot phase in seconds, with the worst-case sum of its errors, or the reason why there is none.

    `kexec_proven`: our nonce is on the new kernel's command line. Time that the new kernel spent after
    timekeeping_init without counting ticks is part of the hot phase, not of the boot.
    """
    if why := _no_bridge(stamp, after, kexec_proven):
        return Measurement(value=None, why_not=why)
    old, new = fit(stamp.pairs), fit(after.pairs)
    assert stamp.appointment is not None  # _no_bridge has seen to it
    disagreement = abs(old.rate - new.rate) / new.rate
    if disagreement > RATE_DISAGREEMENT_BOUND:
        return Measurement(
            value=None,
            why_not=f"not measurable: the counter's rate is {old.rate:.0f} Hz by the old kernel and "
            f"{new.rate:.0f} Hz by the new one, more than {RATE_DISAGREEMENT_BOUND:.0%} apart",
        )
    tick = after.tick_s if after.tick_s is not None else SLOWEST_TICK_S
    seconds = (new.zero - stamp.appointment) / new.rate
    if seconds < 0:
        return Measurement(
            value=None,
            why_not=f"not measurable: the new kernel's time zero lies {-seconds:.3f} s before the jump",
        )
    early_clock = SWITCHED_CLOCK_ERROR * new.reach_s if after.clocksource in FALLBACK_CLOCKSOURCES else 0.0
    uncertainty = new.zero_error_s + early_clock + tick + seconds * (disagreement + new.rate_error)
    return Measurement(
        value=seconds, uncertainty=uncertainty, resolution=tick, source=_source(stamp, after, disagreement)
    )


def _no_bridge(stamp: JumpStamp, after: ClockSamples, kexec_proven: bool) -> str:
    """Why the two kernels' samples cannot be put on one counter; empty when they can."""
    if not kexec_proven:
        return "not measured: no nonce on the command line, so no kexec is proven"
    if stamp.counter is None or after.counter is None:
        return "not measured: no counter that survives the jump can be read on this host"
    if stamp.counter != after.counter:
        return f"not measurable: {stamp.counter} before the jump, {after.counter} after it"
    if stamp.appointment is None:
        return f"not measured: {stamp.why_not or 'nothing of ours stamped the moment of the jump'}"
    for name, pairs in (("old", stamp.pairs), ("new", after.pairs)):
        if len(pairs) < _MIN_PAIRS:
            return f"not measurable: {len(pairs)} clock samples of the {name} kernel, {_MIN_PAIRS} are needed"
        if any(b[0] <= a[0] or b[1] <= a[1] for a, b in pairwise(pairs)):
            return f"not measurable: the counter or the clock of the {name} kernel does not run forward"
    if stamp.pairs[-1][0] > stamp.appointment:
        return "not measurable: the jump's stamp lies before the samples that were taken ahead of it"
    if after.pairs[0][0] <= stamp.appointment:
        return "not measurable: the counter went backwards across the jump"
    return ""


def _source(stamp: JumpStamp, after: ClockSamples, disagreement: float) -> str:
    text = f"counter bridge: {stamp.counter}, {stamp.source}, rates {disagreement * 1e6:.0f} ppm apart"
    if after.tick_s is None:
        text += f"; CONFIG_HZ unknown, tick taken as {SLOWEST_TICK_S * 1000:.0f} ms"
    if after.clocksource in FALLBACK_CLOCKSOURCES:
        text += f"; new kernel's clock switched to {after.clocksource}, {SWITCHED_CLOCK_ERROR:.1%} granted"
    if stamp.invariant and after.invariant is not False:
        return text
    return text + "; the CPU does not promise an invariant counter: continuity rests on the rates agreeing"


def fit(pairs: Sequence[Pair]) -> Line:
    """Least squares through at least three pairs that run forward, with worst-case errors.

    The two readings of a pair lie some time apart (its width), which the pairs do not tell: twice the widest
    residual stands for it. Standard errors would be smaller by far, and miss the truth now and then.
    """
    count = len(pairs)
    base_counter, base_raw = pairs[0]
    times = [(raw - base_raw) / 1e9 for _, raw in pairs]
    counts = [float(counter - base_counter) for counter, _ in pairs]
    mean_time, mean_count = sum(times) / count, sum(counts) / count
    spread = sum((time - mean_time) ** 2 for time in times)
    rate = sum((t - mean_time) * (c - mean_count) for t, c in zip(times, counts, strict=True)) / spread
    residuals = [c - mean_count - rate * (t - mean_time) for t, c in zip(times, counts, strict=True)]
    # CLOCK_MONOTONIC_RAW has whole nanoseconds: no pair is better than that.
    width = max(2 * max(map(abs, residuals)) / rate, 1e-9)
    # The slope's error when each pair is off by +-width in the direction that tilts the line most.
    rate_error = width * sum(abs(time - mean_time) for time in times) / spread
    reach = base_raw / 1e9 + mean_time
    zero_error = width + rate_error * reach
    # Subtract in integers first: a TSC of a long-running machine does not fit a float's 53 bits.
    zero = base_counter - round(rate * base_raw / 1e9 + (rate * mean_time - mean_count))
    return Line(rate=rate, zero=zero, rate_error=rate_error, zero_error_s=zero_error, reach_s=reach)


def outage(
    outage_s: float | None, resolution_s: float | None, source: str, not_measured_reason: str = ""
) -> Measurement:
    """The prober's record as a measurement: last answer of the old kernel to first answer of the new."""
    if outage_s is None:
        return Measurement(value=None, source=source, why_not=_why(not_measured_reason))
    return Measurement(value=outage_s, resolution=resolution_s, source=source)


def time_to_ssh(
    told_at: float | None, answered_at: float | None, resolution_s: float | None = None, reason: str = ""
) -> Measurement:
    """From telling the host to go to its first SSH login, both on the worker's monotonic clock, seconds."""
    source = "worker's clock: go told to first SSH login"
    if told_at is None or answered_at is None:
        return Measurement(value=None, source=source, why_not=_why(reason))
    if answered_at < told_at:
        return Measurement(
            value=None, source=source, why_not="not measurable: SSH answered before go was told"
        )
    return Measurement(value=answered_at - told_at, resolution=resolution_s, source=source)


def _why(reason: str) -> str:
    return f"not measured: {reason}" if reason else "not measured"


def describe(measurement: Measurement) -> str:
    """For people: "0.84 s ±0.02 s", "41.3 s (resolution 0.5 s)", or why there is no figure."""
    if measurement.value is None:
        return measurement.why_not or "not measured"
    unit = measurement.unit
    if measurement.uncertainty is not None:
        digits = _decimals(measurement.uncertainty)
        scale = 10**digits
        half = math.ceil(measurement.uncertainty * scale - 1e-9) / scale  # an uncertainty is rounded up
        return f"{measurement.value:.{digits}f} {unit} ±{half:.{digits}f} {unit}"
    if measurement.resolution is not None:
        digits = _decimals(measurement.resolution)
        return (
            f"{measurement.value:.{digits}f} {unit} (resolution {measurement.resolution:.{digits}f} {unit})"
        )
    return f"{measurement.value:.2f} {unit}"


def _decimals(step: float) -> int:
    """Decimals at which a figure known to within `step` is written: those of its first digit, 0 to 6."""
    return min(6, max(0, -math.floor(math.log10(step)))) if step > 0 else 6
