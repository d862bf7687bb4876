"""Deadlines and the cut that ends a wait which has no bound of its own."""

from __future__ import annotations

import threading

from workers.deadline import Deadline, cut_at


def test_a_deadline_never_gives_a_negative_wait() -> None:
    past = Deadline.after(-5)
    assert past.expired
    assert past.left() == 0.0
    later = Deadline.after(1000)
    assert not later.expired
    assert 0 < later.left() <= 1000


def test_sooner_shortens_and_never_stretches() -> None:
    deadline = Deadline.after(100)
    assert deadline.sooner(1) < deadline
    assert deadline.sooner(1000) == deadline
    assert Deadline.after(-1).sooner(50).expired


def test_the_cut_is_made_when_the_deadline_passes_and_ends_the_wait() -> None:
    released = threading.Event()
    with cut_at(Deadline.after(0.01), released.set) as cut:
        assert released.wait(60)
    assert cut.made


def test_no_cut_is_made_where_the_block_ends_in_time() -> None:
    called = threading.Event()
    before = threading.active_count()
    for _ in range(20):
        with cut_at(Deadline.after(1000), called.set) as cut:
            pass
        assert not cut.made
    until = Deadline.after(60)
    while threading.active_count() > before and not until.expired:
        pass
    assert threading.active_count() <= before  # no timer outlives its block
    assert not called.is_set()
