"""Bringing a silent host back by its power, and never one that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.errors import (
    HostKeyRefused,
    HostLost,
    HostRefused,
    HostUnreachable,
    LoginRefused,
    PowerFailed,
)
from orchestrator.domain.events import EventKind
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.store import Journal
from tests.support.fakehost import FakeHost
from tests.unit.test_drive import SHORT, Drives
from tests.unit.test_drive import journal as journal
from tests.unit.test_drive import quick as quick
from workers.agentanswers import ClaimAnswer, Shutdown
from workers.drive import recovery

DEADLINES = {**SHORT.model_dump(by_alias=True), "boot": 0.5, "power": 1}


@pytest.fixture(autouse=True)
def no_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "LISTEN_SECONDS", 0.0)


def drives_of(journal: Journal, host: FakeHost, **playbook: Any) -> Drives:
    drives = Drives(journal, host, **{"deadlines": DEADLINES, **playbook})
    drives.has_power = True
    return drives


def silent_once(host: FakeHost) -> None:
    """The first jump ends in silence, the next one arrives."""
    host.on_go = FakeHost.kexec
    host.vanish()


def told(drives: Drives, kind: EventKind) -> list[dict[str, Any]]:
    return [event.data for event in drives.journal.events(drives.rollout) if event.kind is kind]


def notes(drives: Drives) -> str:
    return "\n".join(note["text"] for note in told(drives, EventKind.NOTE))


def test_a_silent_host_is_cycled_once_and_retried_without_cma(journal: Journal) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once))
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.SILENT), ("no_cma", Outcome.BOOTED)]
    assert drives.host.powered == ["cycle"] and drives.host.flags == [0x8, 0x18]
    first = drives.record.attempts[0]
    assert [power["state"] for power in first.power] == ["ordered", "accepted"]
    assert first.power[1]["kind"] == "fake" and first.power[1]["text"] == "reset"
    assert "silent until its power was cycled" in first.message and first.host_state == "known"
    assert drives.record.attempts[1].power == ()


def test_the_order_is_journaled_before_it_is_given(journal: Journal) -> None:
    host = FakeHost(on_go=silent_once)
    drives = drives_of(journal, host)
    seen: list[list[str]] = []

    def look(again: FakeHost) -> None:
        seen.append([power["state"] for power in drives.record.attempts[0].power])
        again.firmware_boot()

    host.on_cycle = look
    drives.run()
    assert seen == [["ordered"]]


@pytest.mark.parametrize(
    ("has_power", "wanted", "says"),
    [(False, True, "names no power control"), (True, False, "the playbook forbids power cycles")],
)
def test_without_power_control_a_silent_host_is_lost(
    journal: Journal, has_power: bool, wanted: bool, says: str
) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once), recovery={"power": wanted})
    drives.has_power = has_power
    record = drives.run()
    assert record.phase is Phase.LOST and says in record.reason and record.hint
    assert drives.tried == [("cma", Outcome.SILENT)]
    assert record.attempts[0].host_state == "unknown"
    assert drives.host.powered == [] and told(drives, EventKind.POWER) == []


def test_power_control_that_fails_leaves_the_host_lost_and_says_why(journal: Journal) -> None:
    broken = PowerFailed("web1", "power", "wrong password", hint="look into its password file")
    host = FakeHost(on_go=silent_once, breaks_at={"power": broken})  # type: ignore[dict-item]
    drives = drives_of(journal, host)
    record = drives.run()
    assert record.phase is Phase.LOST and drives.tried == [("cma", Outcome.SILENT)]
    assert "wrong password (look into its password file)" in record.reason and record.hint
    ordered, failed = told(drives, EventKind.POWER)
    assert (ordered["state"], failed["state"]) == ("ordered", "failed")
    assert (failed["message"], failed["hint"]) == ("wrong password", "look into its password file")
    assert drives.run().phase is Phase.DONE, "a resume may order it once more, and now it works"
    assert drives.host.powered == ["cycle"] * 2
    assert drives.tried == [("cma", Outcome.SILENT), ("no_cma", Outcome.BOOTED)]


def test_a_host_that_answers_on_the_network_is_never_cycled(journal: Journal) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once, answers_network=True))
    record = drives.run()
    assert record.phase is Phase.LOST and "answers on the network" in record.reason
    assert drives.host.powered == [] and "no power cycle" in notes(drives)


def refusing(error: Exception) -> Callable[[FakeHost], None]:
    """A jump after which logins are refused, and later nobody answers at all."""

    def jump(host: FakeHost) -> None:
        host.kexec()
        errors = [error]

        def connect(*_: object) -> None:
            raise errors.pop() if errors else HostUnreachable("web1", "connect", "no answer", hint="")

        host.connect = connect  # type: ignore[method-assign,assignment]

    return jump


@pytest.mark.parametrize(
    "error",
    [
        HostKeyRefused("web1", "connect", "the key has changed", hint="look who answers"),
        LoginRefused("web1", "connect", "no such user", hint="let us in"),
        HostRefused("web1", "agent", "no python3", hint="install it", code="no_python"),
    ],
)
def test_a_host_that_refuses_us_is_never_cycled(journal: Journal, error: Exception) -> None:
    drives = drives_of(journal, FakeHost(on_go=refusing(error)))
    record = drives.run()
    assert (record.phase, record.attempts[0].outcome) == (Phase.LOST, Outcome.LOST)
    assert "the host answers, but refuses us" in record.reason
    assert drives.run().phase is Phase.LOST, "nor by a resume that finds nobody"
    assert drives.host.powered == []


def test_a_host_that_was_merely_slow_is_returned_and_not_tried_again(journal: Journal) -> None:
    """It arrived between the last look and the order, and our order came too late to reach it."""

    def arrive(host: FakeHost) -> None:
        host.loaded = f"root=/dev/vda kexec_fleet.nonce={drives.record.attempts[0].nonce}"
        host.kexec()

    drives = drives_of(journal, FakeHost(on_go=FakeHost.vanish, on_cycle=arrive))
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(drives.host.jumps) == 1
    assert [power["state"] for power in drives.record.attempts[0].power] == ["ordered", "accepted"]


def test_the_same_boot_after_a_cycle_is_noted_and_the_agent_decides(journal: Journal) -> None:
    """The inventory names another machine's power."""
    host = FakeHost(on_go=silent_once)
    busy = HostRefused("web1", "claim", "told", code="busy")
    drives = drives_of(journal, host, deadlines={**DEADLINES, "boot": 20})

    def stay_and_be_busy(again: FakeHost) -> None:
        again.stay()
        again.refuse_claim.append(busy)

    host.on_cycle = stay_and_be_busy
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.NEVER_LEFT), ("cma", Outcome.BOOTED)]
    assert notes(drives).count("another machine's power?") == 1, "said with the verdict, not with each look"


def test_what_answers_after_a_cycle_and_tells_nothing_is_not_called_silent(journal: Journal) -> None:
    host = FakeHost(on_go=silent_once)

    def stopping_for_ever(again: FakeHost) -> None:
        again.stay()
        answer = ClaimAnswer("dead", False, Shutdown(True, "a unit refuses to stop"), None)
        again.claim = lambda *_: answer  # type: ignore[method-assign,assignment]

    host.on_cycle = stopping_for_ever
    record = drives_of(journal, host).run()
    assert record.phase is Phase.LOST and host.powered == ["cycle"]
    assert "it answers since, but tells nothing" in record.reason


def test_a_host_that_answered_while_it_was_stopping_and_then_hangs_is_cycled(journal: Journal) -> None:
    host = FakeHost()

    def stop_slowly(again: FakeHost) -> None:
        again.on_go = FakeHost.kexec
        claim = again.claim

        def last_words(*words: Any) -> ClaimAnswer:
            again.claim = claim  # type: ignore[method-assign]
            again.vanish()
            raise HostRefused("web1", "claim", "told", code="busy")

        again.claim = last_words  # type: ignore[method-assign,assignment]

    host.on_go = stop_slowly
    drives = drives_of(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.SILENT), ("no_cma", Outcome.BOOTED)] and host.powered == ["cycle"]


def test_where_nobody_answers_our_own_network_may_be_down(journal: Journal) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once), others=["web2", "web3"])
    record = drives.run()
    assert record.phase is Phase.LOST and "our own network may be down" in record.reason
    assert drives.host.powered == [] and drives.asked == ["web1", "web2", "web3"]
    drives.answering = {"web3"}
    assert drives.run().phase is Phase.DONE, "the network is back, and a resume cycles"
    assert drives.tried == [("cma", Outcome.SILENT), ("no_cma", Outcome.BOOTED)]


@pytest.mark.parametrize(("phase", "cycled"), [(Phase.FAILED, ["cycle"]), (Phase.LOST, [])])
def test_a_host_that_was_never_there_is_no_witness_and_a_wave_silent_at_once_is_not_cycled(
    journal: Journal, phase: Phase, cycled: list[str]
) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once), others=["web2"])
    lease = journal.acquire(drives.rollout, "web2")
    assert lease is not None
    journal.append_all(lease, [(EventKind.PHASE, {"phase": phase, "reason": "unreachable"})], attempt=0)
    journal.release(lease)
    assert drives.run().phase is (Phase.DONE if cycled else Phase.LOST)
    assert drives.host.powered == cycled and drives.asked == ["web1"]


def test_crashes_between_order_and_cycle_end_at_the_most_that_is_allowed(journal: Journal) -> None:
    host = FakeHost(on_go=FakeHost.vanish)
    drives = drives_of(journal, host)

    def crash(_: object) -> None:
        raise RuntimeError("killed")

    host.cycle = crash  # type: ignore[method-assign,assignment]
    for _ in range(recovery.MOST_CYCLES):
        with pytest.raises(RuntimeError):
            drives.run()
        assert drives.record.phase is Phase.LOST and drives.record.open_attempt is not None
    record = drives.run()
    assert record.phase is Phase.LOST and record.attempts[0].outcome is Outcome.SILENT
    assert f"its power was cycled {recovery.MOST_CYCLES} times already" in record.reason
    assert [power["state"] for power in record.attempts[0].power] == ["ordered"] * recovery.MOST_CYCLES


def test_an_order_of_a_process_that_died_is_not_forgotten_by_the_verdict(journal: Journal) -> None:
    """Cycled, and nobody saw it come back: the resume must not call that a reboot of the kernel's own."""
    host = FakeHost(on_go=silent_once)
    drives = drives_of(journal, host)
    cycle = host.cycle

    def crash_after(deadline: Any) -> None:
        cycle(deadline)
        raise RuntimeError("killed")

    host.cycle = crash_after  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError):
        drives.run()
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.SILENT), ("no_cma", Outcome.BOOTED)]
    assert host.powered == ["cycle"]


@pytest.mark.parametrize("step", ["load", "arm"])
def test_a_host_lost_before_it_was_told_is_never_cycled(journal: Journal, step: str) -> None:
    host = FakeHost(breaks_at={step: HostLost("web1", step, "gone")})
    connect = host.connect

    def once(*words: Any) -> FakeHost:
        host.connect = gone  # type: ignore[method-assign,assignment]
        return connect(*words)

    def gone(*_: object) -> None:
        raise HostUnreachable("web1", "connect", "no answer", hint="plug it in")

    host.connect = once  # type: ignore[method-assign,assignment]
    drives = drives_of(journal, host)
    record = drives.run()
    assert (record.phase, record.attempts[0].outcome) == (Phase.LOST, Outcome.LOST)
    assert drives.run().phase is Phase.LOST
    assert host.powered == [] and told(drives, EventKind.POWER) == []


def test_a_host_lost_by_a_fault_of_ours_before_it_was_told_is_never_cycled(journal: Journal) -> None:
    host = FakeHost()
    drives = drives_of(journal, host)

    def crash(*_: object, **__: object) -> None:
        host.vanish()
        raise RuntimeError("a bug")

    host.arm = crash  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError):
        drives.run()
    record = drives.run()
    assert record.phase is Phase.LOST and record.attempts[0].outcome is Outcome.LOST
    assert host.powered == []


def test_what_the_watchdog_answered_is_kept(journal: Journal) -> None:
    host = FakeHost()
    drives = drives_of(journal, host, recovery={"watchdog": 60})
    arm = host.arm
    answered = {"armed": True, "seconds": 60.0, "device": "/dev/watchdog0", "detail": ""}

    def with_watchdog(*words: Any, **more: Any) -> object:
        answer = arm(*words, **more)
        return replace(answer, raw={**answer.raw, "watchdog": answered})

    host.arm = with_watchdog  # type: ignore[method-assign,assignment]
    assert drives.run().phase is Phase.DONE
    armed = drives.record.attempts[0].armed
    assert armed is not None and armed["watchdog"] == answered
