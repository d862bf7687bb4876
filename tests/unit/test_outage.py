"""The outage prober: the fold over single probes, and the prober against real services that stop and come
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.inventory import Host, Probe, ProbeKind
from workers import probes
from workers.deadline import Deadline
from workers.outage import MAX_IN_FLIGHT, OutageProber, OutageRecord, ProberLoop
from workers.outage_fold import Ended, Instant, OutageFold, Outcome
from workers.probes import Place, Target, ask

# -- the fold -----------------------------------------------------------------------------------------


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


# -- a service that the test can stop, hang and restart -----------------------------------------------


class Service:
    """Listens on one port in a thread of its own. `mode` is what it does with a connection."""

    def __init__(self, mode: str = "banner") -> None:
        self.mode = mode
        self.connections = 0
        self.hanging = 0
        self.most_hanging = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.up()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def up(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=200)
            self.port = self._server.sockets[0].getsockname()[1]

        self._run(start())

    def down(self) -> None:
        """Nothing listens any more: connections are refused."""

        async def stop() -> None:
            assert self._server
            self._server.close()

        self._run(stop())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            if self.mode == "hang":
                self.hanging += 1
                self.most_hanging = max(self.most_hanging, self.hanging)
                await reader.read()
                self.hanging -= 1
            elif self.mode == "http":
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.0 503 Busy\r\n\r\n" if b"GET /up HTTP/1.0" in request else b"what?\r\n")
            elif self.mode == "banner":
                writer.write(b"SSH-2.0-service\r\n")
            await writer.drain()
        writer.close()

    def close(self) -> None:
        self.down()

        async def hang_up() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def host(service: Service, kind: ProbeKind = ProbeKind.BANNER, **more: Any) -> Host:
    probe = Probe(kind=kind, port=service.port, path="/up")
    return Host(**{"name": "web1", "address": "127.0.0.1", "port": service.port, "probe": probe, **more})


@contextlib.contextmanager
def probing(target: Host, **options: Any) -> Iterator[OutageProber]:
    prober = OutageProber(target, **options)
    prober.start()
    try:
        yield prober
    finally:
        prober.close()


def until(condition: Callable[[], Any], what: str) -> None:
    end = Deadline.after(60)
    while not condition():
        assert not end.expired, what
        time.sleep(0.005)


def more_answers(prober: OutageProber, count: int = 3) -> None:
    wanted = prober.result().answers + count
    until(lambda: prober.result().answers >= wanted, "answers")


def more_failures(prober: OutageProber, count: int = 5) -> None:
    def failures() -> int:
        record = prober.result()
        return record.probes_sent - record.answers

    wanted = failures() + count
    until(lambda: failures() >= wanted, "probes without an answer")


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


def unmeasured(record: OutageRecord) -> str:
    assert record.outage_s is None
    assert record.resolution_s is None
    assert record.not_measured_reason
    return record.not_measured_reason


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


# -- sshd is left alone -------------------------------------------------------------------------------


def ssh_prober(service: Service, **more: Any) -> OutageProber:
    return OutageProber(host(service, probe=None, **more))


def test_sshd_is_not_asked_before_the_jump_nor_after_its_first_banner(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.1)
    prober = ssh_prober(service)
    prober.start()
    time.sleep(0.5)
    assert service.connections == 0
    service.down()
    prober.mark_jump()
    more_failures(prober, 3)
    assert not prober.first_banner_seen
    service.up()
    assert prober.wait_first_answer(Deadline.after(60))
    assert prober.first_banner_seen
    time.sleep(0.5)
    assert service.connections == 1
    record = prober.result()
    assert record.source == "ssh banner"
    assert record.outage_s is not None and record.resolution_s is not None
    assert record.last_success_before and record.first_success_after
    assert record.resolution_s >= 0.1
    prober.close()


def test_sshd_is_asked_once_a_second_at_most(service: Service) -> None:
    prober = OutageProber(host(service, probe=None), interval_s=0.001)
    service.down()
    prober.mark_jump()
    more_failures(prober, 3)
    record = prober.result()
    assert record.interval_s == 1.0
    silence = prober._fold.open
    assert silence and silence.last_failure.monotonic - silence.first_failure.monotonic >= 0.9
    service.up()
    prober.close()


def test_the_old_sshd_that_still_answers_is_not_an_outage(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.1)
    prober = ssh_prober(service)
    prober.mark_jump()
    assert prober.wait_first_answer(Deadline.after(60))
    assert "before any probe had failed" in unmeasured(prober.result())
    # The drive has looked, and found the host still stopping: it marks again.
    service.down()
    prober.mark_jump()
    assert not prober.first_banner_seen
    more_failures(prober, 2)
    service.up()
    assert prober.wait_first_answer(Deadline.after(60))
    assert prober.result().outage_s is not None
    assert service.connections == 2
    prober.close()


def test_sshd_is_not_asked_while_the_host_surely_stays(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.05)
    prober = ssh_prober(service)
    prober.mark_jump(stays_s=1000)
    time.sleep(0.4)
    assert service.connections == 0
    assert "no probe was sent" in unmeasured(prober.result())
    prober.close()


def test_a_host_behind_a_jump_host_has_no_banner_to_ask_for(service: Service) -> None:
    prober = ssh_prober(service, proxy_jump="bastion")
    prober.start()
    prober.mark_jump()
    assert "jump host" in unmeasured(prober.result())
    assert not prober.wait_first_answer(Deadline.after(0))
    assert service.connections == 0
    prober.close()
