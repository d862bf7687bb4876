"""The fold over single probes that tells an outage and how well it is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.outage_fold import Ended, Instant, OutageFold, Outcome


def at(second: float) -> Instant:
    return Instant(second, 1_000_000 + second)


def answer(sent: float, took: float = 0.0) -> Outcome:
    return Outcome(at(sent), at(sent + took), Ended.ANSWERED)


def failure(sent: float) -> Outcome:
    return Outcome(at(sent), at(sent + 1), Ended.FAILED, "no answer")


def void(sent: float) -> Outcome:
    return Outcome(at(sent), at(sent), Ended.VOID, "too many open files")


def folded(*outcomes: Outcome, need: int = 1) -> OutageFold:
    fold = OutageFold(need)
    for outcome in outcomes:
        fold.add(outcome)
    return fold


def test_an_outage_is_the_silence_between_two_answers() -> None:
    (silence,) = folded(answer(1), answer(2), failure(3), failure(4), failure(5), answer(6), answer(7)).closed
    assert (silence.before, silence.first_failure) == (at(2), at(3))
    assert (silence.last_failure, silence.after) == (at(5), at(6))
    assert (silence.length_s, silence.resolution_s) == (4, 2)


def test_ticks_that_were_late_or_left_out_widen_the_resolution() -> None:
    (silence,) = folded(answer(1), failure(4), failure(5), answer(9)).closed
    assert (silence.length_s, silence.resolution_s) == (8, 3 + 4)


def test_a_request_under_way_when_the_host_goes_is_within_the_resolution() -> None:
    """Away from 2.3 to 5.1, round trips of 0.4: what was sent at 2 is lost, though the host was there."""
    (silence,) = folded(answer(1, 0.4), failure(2), failure(5), answer(5.2, 0.4)).closed
    assert silence.length_s - silence.resolution_s <= 5.1 - 2.3 <= silence.length_s


def test_void_probes_say_nothing_of_the_host() -> None:
    fold = folded(answer(1), void(2), void(3), answer(4))
    assert (fold.closed, fold.open, fold.failures) == ([], None, 0)
    (silence,) = folded(answer(1), void(2), failure(3), void(4), answer(5)).closed
    assert (silence.length_s, silence.resolution_s) == (4, 4)


def test_a_later_probe_may_be_answered_earlier() -> None:
    """The first one hung in a forwarder's queue until a retransmission."""
    (silence,) = folded(answer(1), failure(2), answer(3, took=0.9), answer(3.5, took=0.1)).closed
    assert silence.after == at(3.6)


def test_a_service_is_back_after_enough_answers_in_a_row() -> None:
    outcomes = [
        answer(1),
        failure(2),
        answer(3),
        failure(4),
        answer(5),
        answer(6),
        failure(7),
        *map(answer, (8, 9, 10)),
    ]
    (silence,) = folded(*outcomes, need=3).closed
    assert (silence.before, silence.after, silence.blips) == (at(1), at(8), 2)
    assert silence.last_failure == at(7)
    assert len(folded(*outcomes).closed) == 3


def test_only_silences_that_lasted_after_the_mark_count() -> None:
    fold = folded(answer(1), failure(2), answer(3), failure(4), failure(6), answer(7))
    assert [silence.before for silence in fold.since(at(5))] == [at(3)]
    assert [silence.before for silence in fold.since(at(0))] == [at(1), at(3)]
    assert fold.since(at(6.5)) == []


@given(
    ticks=st.lists(st.floats(0.001, 0.05), min_size=3, max_size=100),
    down=st.floats(0.0, 2.0),
    length=st.floats(0.001, 2.0),
    latency=st.floats(0.0, 0.05),
)
def test_the_true_outage_lies_within_the_resolution(
    ticks: list[float], down: float, length: float, latency: float
) -> None:
    fold, sent = OutageFold(), 0.0
    for tick in ticks:
        sent += tick
        # A request that is still under way when the host goes is lost, as is one to a host that is away.
        lost = sent + latency >= down and sent < down + length
        fold.add(failure(sent) if lost else answer(sent, latency))
    for silence in fold.closed:
        if silence.before is not None:
            assert silence.length_s >= length - 1e-9
            assert silence.length_s - silence.resolution_s <= length + 1e-9
