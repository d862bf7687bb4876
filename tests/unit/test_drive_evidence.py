"""What is kept of an attempt that died, and the last step of one that did not: the new default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.deathstage import TAIL_CHARACTERS
from orchestrator.domain.errors import HostRefused
from orchestrator.domain.events import EventKind
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.store import Journal
from tests.support.fakehost import FakeHost
from tests.unit.test_drive import Drives, fall_back_once
from tests.unit.test_drive import journal as journal
from tests.unit.test_drive import quick as quick
from tests.unit.test_drive_audit import SURE
from tests.unit.test_drive_power import drives_of, silent_once, told
from tests.unit.test_drive_power import no_listening as no_listening

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
