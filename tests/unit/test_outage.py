"""The outage prober against real services that stop and come back."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import threading
import time

import pytest

from orchestrator.domain.inventory import Probe, ProbeKind
from tests.support import probed
from tests.support.probed import Service, host, more_answers, more_failures, probing, unmeasured, until
from workers import probes
from workers.deadline import Deadline
from workers.outage import MAX_IN_FLIGHT, OutageProber, ProberLoop
from workers.outage_fold import Ended
from workers.probes import Place, Target, ask

service = probed.service  # a fixture


def go_away(service: Service, how: str) -> None:
    if how == "refused":
        service.down()
    else:
        service.mode = how


def come_back(service: Service, how: str, mode: str) -> None:
    service.mode = mode
    if how == "refused":
        service.up()


@pytest.mark.parametrize("kind", [ProbeKind.BANNER, ProbeKind.HTTP])
@pytest.mark.parametrize("how", ["refused", "hang", "accept and close"])
def test_an_outage_is_measured(service: Service, kind: ProbeKind, how: str) -> None:
    """Also where a forwarder still accepts connections for the dead host: a bare connect is no answer."""
    service.mode = str(kind)
    timeout = 0.3
    with probing(host(service, kind), timeout_s=timeout) as prober:
        more_answers(prober)
        prober.mark_jump()
        assert not prober.first_banner_seen
        more_answers(prober)
        assert not prober.wait_first_answer(Deadline.after(0))  # answers of before the outage
        before = time.monotonic()
        go_away(service, how)
        gone = time.monotonic()
        more_failures(prober, 30)
        assert not prober.wait_first_answer(Deadline.after(0))
        assert prober.result().not_measured_reason
        coming = time.monotonic()
        come_back(service, how, str(kind))
        back = time.monotonic()
        assert prober.wait_first_answer(Deadline.after(60))
        assert prober.first_banner_seen
        # Probes that hang still need their timeout to be known as failed.
        until(lambda: in_flight(prober) <= 2, "old probes end")
        record = prober.result()
    assert record.outage_s is not None and record.resolution_s is not None
    assert record.outage_s >= coming - gone
    assert record.outage_s - record.resolution_s <= back - before + timeout
    assert record.resolution_s < record.outage_s
    assert record.last_success_before and record.first_failure and record.first_success_after
    assert record.last_success_before.monotonic <= gone + timeout
    assert record.first_success_after.monotonic >= coming
    assert abs(record.first_success_after.wall.timestamp() - time.time()) < 3600
    assert record.not_measured_reason == ""
    assert record.source.startswith(f"{kind} 127.0.0.1:{service.port}")


def in_flight(prober: OutageProber) -> int:
    return prober._in_flight


def test_hung_probes_neither_delay_the_next_ones_nor_pile_up(service: Service) -> None:
    service.mode = "hang"
    with probing(host(service), interval_s=0.005, timeout_s=1000.0) as prober:
        until(lambda: service.hanging >= MAX_IN_FLIGHT, "as many hanging probes as are allowed")
        late = prober.result().late_ticks
        until(lambda: prober.result().late_ticks > late + 5, "ticks that were left out are counted")
        assert service.most_hanging == MAX_IN_FLIGHT


def test_flapping_is_counted_and_the_longest_silence_is_the_outage(service: Service) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
        prober.mark_jump()
        for failures in (2, 40, 2):
            service.down()
            more_failures(prober, failures)
            service.up()
            more_answers(prober)
        record = prober.result()
        assert record.flaps == 2
        lengths = [silence.length_s for silence in prober._fold.closed]
        assert record.outage_s == max(lengths) == lengths[1]
        service.down()
        more_failures(prober)
        assert prober.result().flaps == 3


def test_a_service_that_must_answer_three_times(service: Service) -> None:
    with probing(host(service), successes=3) as prober:
        more_answers(prober)
        prober.mark_jump()
        service.down()
        more_failures(prober)
        service.up()
        assert prober.wait_first_answer(Deadline.after(60))
        assert prober.result().answers >= 6


def test_a_silence_before_the_jump_is_not_the_outage(service: Service) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
        service.down()
        more_failures(prober)
        service.up()
        more_answers(prober)
        prober.mark_jump()
        more_answers(prober)
        record = prober.result()
        assert record.outage_s is None
        assert record.not_measured_reason == "no probe failed after the jump"
        assert not prober.wait_first_answer(Deadline.after(0))


def test_a_mark_that_comes_after_the_host_has_gone(service: Service) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
        service.down()
        more_failures(prober)
        prober.mark_jump()
        more_failures(prober)
        service.up()
        assert prober.wait_first_answer(Deadline.after(60))
        record = prober.result()
        assert record.outage_s is not None and record.first_failure and prober._mark
        assert record.first_failure.monotonic < prober._mark.monotonic


# -- nothing is invented ------------------------------------------------------------------------------


def test_no_mark_no_answer_and_no_answer_before(service: Service) -> None:
    service.down()
    with probing(host(service)) as prober:
        more_failures(prober)
        assert "not told to jump" in unmeasured(prober.result())
        prober.mark_jump()
        more_failures(prober)
        assert "no answer in the" in unmeasured(prober.result())
        assert "refused" in unmeasured(prober.result())
        service.up()
        assert prober.wait_first_answer(Deadline.after(60))  # worth a login all the same
        record = prober.result()
        assert "never answered before" in unmeasured(record)
        assert record.first_success_after


def test_a_name_that_cannot_be_looked_up(service: Service) -> None:
    probe = Probe(port=service.port, address="no-such-host.invalid")
    with probing(host(service, probe=probe)) as prober:
        prober.mark_jump()
        until(lambda: "no-such-host.invalid" in unmeasured(prober.result()), "the reason")
        assert not prober.wait_first_answer(Deadline.after(0))


def test_an_error_of_this_machine_is_not_the_host_s(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
        prober.mark_jump()
        more_answers(prober)

        async def out_of_files(target: Target, place: Place) -> bool:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(probes, "_exchange", out_of_files)
            more_failures(prober)
        more_answers(prober)
        assert unmeasured(prober.result()) == "no probe failed after the jump"


def test_a_machine_that_never_could_probe(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(target: Target, place: Place) -> bool:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(probes, "_exchange", unreachable)
    with probing(host(service)) as prober:
        prober.mark_jump()
        more_failures(prober)
        assert unmeasured(prober.result()) == "this machine could not probe: Network is unreachable"


def test_a_timeout_seen_too_late_says_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(target: Target, place: Place) -> bool:
        time.sleep(0.5)  # the loop of a machine under load
        await asyncio.sleep(1000)
        return True

    monkeypatch.setattr(probes, "_exchange", busy)
    target = Target.of(host(service))
    outcome = asyncio.run(ask(target, Place(socket.AF_INET, ("127.0.0.1", 1)), 0.01))
    assert outcome.how is Ended.VOID


def test_a_loop_that_was_held_up_counts_late_ticks(service: Service) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
        late = prober.result().late_ticks
        ProberLoop.shared().loop.call_soon_threadsafe(time.sleep, 0.5)
        until(lambda: prober.result().late_ticks >= late + 10, "late ticks")


def test_a_defect_of_the_prober_does_not_pass_for_a_silent_host(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutageProber, "_launch", lambda *_: math.factorial(-1))
    with probing(host(service)) as prober:
        prober.mark_jump()
        until(lambda: "the prober failed" in unmeasured(prober.result()), "the reason")


def test_close_ends_the_probing_and_keeps_the_result(service: Service) -> None:
    with probing(host(service)) as prober:
        more_answers(prober)
    until(lambda: in_flight(prober) == 0, "no probe is under way")
    seen, record = service.connections, prober.result()
    time.sleep(0.2)
    assert service.connections == seen
    assert prober.result() == record
    assert ProberLoop.shared().room > 0


def test_many_hosts_share_one_thread(service: Service) -> None:
    assert ProberLoop.shared() is ProberLoop.shared()
    before = threading.active_count()
    probers = [OutageProber(host(service)) for _ in range(10)]
    for prober in probers:
        prober.start()
    for prober in probers:
        more_answers(prober)
    assert threading.active_count() <= before
    for prober in probers:
        prober.close()
