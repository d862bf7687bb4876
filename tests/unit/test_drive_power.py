"""Bringing a silent host back by its power, and what is kept of an attempt that died."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.deathstage import TAIL_CHARACTERS
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
from tests.unit.test_drive import SHORT, Drives, fall_back_once
from tests.unit.test_drive import journal as journal
from tests.unit.test_drive import quick as quick
from tests.unit.test_drive_audit import SURE
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


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.LOST])
def test_a_host_that_was_never_there_or_is_away_itself_is_no_witness(journal: Journal, phase: Phase) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once), others=["web2"])
    lease = journal.acquire(drives.rollout, "web2")
    assert lease is not None
    journal.append_all(lease, [(EventKind.PHASE, {"phase": phase, "reason": "unreachable"})], attempt=0)
    journal.release(lease)
    assert drives.run().phase is Phase.DONE
    assert drives.host.powered == ["cycle"] and drives.asked == ["web1"]


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


PANIC = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
DEATH = f"""\
[  100.0] kexec_core: Starting new kernel
[    0.000000] Linux version 7.3.4 (builder) #1 SMP
[    0.000000] Kernel command line: root=/dev/vda kexec_fleet.nonce=nonce1
[    1.000000] Initramfs unpacking failed: invalid magic at start of compressed archive
[    2.000000] {PANIC}
"""


def with_console(drives: Drives, path: Path, text: str, then: Callable[[FakeHost], None]) -> None:
    """The jump writes the text to the console, and `then` happens."""
    path.write_text("what was there before\n")
    drives.console = path

    def jump(host: FakeHost) -> None:
        with path.open("a") as console:
            console.write(text)
        then(host)

    drives.host.on_go = jump


def test_a_fall_back_keeps_its_console_and_the_stage_in_which_it_died(
    journal: Journal, tmp_path: Path
) -> None:
    drives = drives_of(journal, FakeHost())
    with_console(drives, tmp_path / "console.log", DEATH, fall_back_once)
    assert drives.run().phase is Phase.DONE
    (evidence,) = told(drives, EventKind.EVIDENCE)
    assert evidence["stage"] == "initramfs" and evidence["panic"] == PANIC
    assert any("Initramfs unpacking failed" in line for line in evidence["console"])
    assert "what was there before" not in evidence["console"] and evidence["console_known"] is True
    assert evidence["old_log"] == ["6,1,1,-;the old kernel's last words"]
    first = drives.record.attempts[0]
    assert first.outcome is Outcome.FELL_BACK and "died in the stage initramfs" in first.message
    assert first.evidence == evidence


def test_silence_is_told_before_the_cycle_and_again_with_what_the_host_kept(
    journal: Journal, tmp_path: Path
) -> None:
    drives = drives_of(journal, FakeHost())
    with_console(drives, tmp_path / "console.log", DEATH.splitlines(keepends=True)[0], silent_once)
    assert drives.run().phase is Phase.DONE
    before, after = told(drives, EventKind.EVIDENCE)
    assert before["stage"] == after["stage"] == "purgatory"
    assert before["old_log"] == [] and "cannot be read" in before["why_not"]
    assert after["old_log"] and not after["why_not"]
    kinds = [e.kind for e in journal.events(drives.rollout)]
    assert kinds.index(EventKind.EVIDENCE) < kinds.index(EventKind.POWER)


def test_without_a_console_the_stage_is_unknown_and_says_so(journal: Journal) -> None:
    drives = drives_of(journal, FakeHost(on_go=silent_once))
    drives.has_power = False
    drives.run()
    (evidence,) = told(drives, EventKind.EVIDENCE)
    assert evidence["stage"] == "unknown" and evidence["console_known"] is False
    assert "no console is kept" in evidence["reason"]


def test_a_host_whose_evidence_cannot_be_had_is_judged_all_the_same(journal: Journal) -> None:
    host = FakeHost(on_go=fall_back_once)

    def refuse(*_: object) -> None:
        raise HostRefused("web1", "evidence", "disk is read-only", code="io_error")

    host.evidence = refuse  # type: ignore[method-assign,assignment]
    drives = drives_of(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried[0] == ("cma", Outcome.FELL_BACK)
    (evidence,) = told(drives, EventKind.EVIDENCE)
    assert "disk is read-only" in evidence["why_not"]


def test_what_pstore_kept_of_an_earlier_death_is_not_this_ones(journal: Journal) -> None:
    host = FakeHost(on_go=fall_back_once)
    arm, boot_started = host.arm, 1_800_000_000
    records = [
        {"name": "dmesg-1", "mtime": boot_started + 20.0, "text": f"<0>[    2.0] {PANIC}"},
        {"name": "dmesg-0", "mtime": boot_started - 999.0, "text": "<0>Kernel panic - not syncing: older"},
    ]

    def armed_then(*words: Any, **more: Any) -> object:
        answer = arm(*words, **more)
        return replace(answer, raw={**answer.raw, "realtime_ns": boot_started * 10**9})

    host.arm = armed_then  # type: ignore[method-assign,assignment]
    host.evidence = lambda *_: {"log": None, "pstore": records, "why_not": ""}  # type: ignore[method-assign]
    drives = drives_of(journal, host)
    assert drives.run().phase is Phase.DONE
    (evidence,) = told(drives, EventKind.EVIDENCE)
    assert evidence["panic"] == PANIC and [record["name"] for record in evidence["pstore"]] == ["dmesg-1"]


def test_a_console_full_of_control_bytes_is_kept_clean(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"")
    drives = drives_of(journal, FakeHost())
    drives.console = path
    noise = bytes(range(256)) + b"\x1b[2J\x1b]0;owned\x07" + b"\xff\xfe\x00" * 5000 + b"\r\n"

    def jump(host: FakeHost) -> None:
        path.write_bytes(noise + b"\x1b[31m" + DEATH.encode() + noise)
        fall_back_once(host)

    drives.host.on_go = jump
    assert drives.run().phase is Phase.DONE
    (evidence,) = told(drives, EventKind.EVIDENCE)
    assert evidence["panic"] == PANIC and evidence["stage"] == "initramfs"
    assert any(line.endswith(PANIC) for line in evidence["console"])
    assert all(line.isprintable() and len(line) <= TAIL_CHARACTERS for line in evidence["console"])
    assert drives.record.attempts[0].message.isprintable()


class TestFinalise:
    """`finalise: {method: local}` through the drive."""

    def drives(self, journal: Journal, *run: str) -> Drives:
        wanted = {"method": "local", "run": run}
        return drives_of(journal, FakeHost(), finalise=wanted, checks=SURE)

    def test_the_command_knows_the_host_and_its_words_are_kept(self, journal: Journal) -> None:
        drives = self.drives(journal, "sh", "-c", 'echo "$KEXEC_FLEET_HOST on $KEXEC_FLEET_RELEASE"')
        record = drives.run()
        assert record.phase is Phase.DONE
        finalised = record.attempts[0].finalised
        assert finalised is not None and finalised["after"].startswith("web1 on ")

    def test_a_command_that_fails_fails_the_host_and_says_that_it_is_sound(self, journal: Journal) -> None:
        record = self.drives(journal, "sh", "-c", "echo no such VM >&2; exit 3").run()
        assert record.phase is Phase.FAILED and record.attempts[0].outcome is Outcome.BOOTED
        assert "status 3: no such VM" in record.reason and "sound" in record.hint

    def test_a_drive_that_dies_there_goes_on_with_the_resume(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Verified, and killed before the default was set: looked at again, and done."""
        drives = self.drives(journal, "echo", "set")

        class Killed(BaseException):
            pass

        def die(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr("workers.drive.verify.finalise", die)
            drives.run()
        assert drives.record.phase is Phase.VERIFIED
        assert drives.run().phase is Phase.DONE
        assert drives.tried == [("cma", Outcome.BOOTED)] and len(drives.host.jumps) == 1
