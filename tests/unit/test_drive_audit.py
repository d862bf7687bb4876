"""The drive's audit: repaired, refused, reported; and what is read back once more right before the jump."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import HostRefused
from orchestrator.domain.events import EventKind
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.store import Journal
from tests.support.fakehost import FakeHost
from tests.unit.test_drive import Drives
from tests.unit.test_drive import quick as quick


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


SURE = {"skip": ["kernel", "initrd", "log", "machine", "units"]}
"""Leaves the checks that a fake host can pass for certain."""


def audits(drives: Drives, attempt: int = 0) -> list[tuple[str, str]]:
    """(when, verdict) of each audit of an attempt."""
    found = drives.record.attempts[attempt].audits
    return [(audit["when"], audit["audit"]["verdict"]) for audit in found]


def test_a_sound_image_is_read_back_twice_and_jumped_to(journal: Journal) -> None:
    drives = Drives(journal, FakeHost())
    assert drives.run().phase is Phase.DONE
    assert audits(drives) == [("after the load", "sound"), ("before the jump", "sound")]
    loaded = drives.record.attempts[0].loaded
    assert loaded is not None and loaded["repair"] is None
    assert loaded["placement"]["bytes_in_cma"] == loaded["placement"]["bytes_total"] > 0


def test_a_misaligned_kernel_is_moved_by_a_spacer_within_the_attempt(journal: Journal) -> None:
    host = FakeHost(misaligned=True)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(host.jumps) == 1
    assert [verdict for _, verdict in audits(drives)] == ["hazardous", "sound", "sound"]
    hazards = drives.record.attempts[0].audits[0]["audit"]["hazards"]
    assert hazards[0]["kind"] == "misaligned_kernel"
    loaded = drives.record.attempts[0].loaded
    assert loaded is not None and loaded["repair"]["spacers"] == 1
    assert loaded["placement"]["bytes_in_cma"] == loaded["placement"]["bytes_total"]
    assert loaded["placement"]["kernel_misaligned"] is False


def test_without_repair_a_hazard_is_never_jumped_to_and_no_cma_follows(journal: Journal) -> None:
    host = FakeHost(misaligned=True)
    drives = Drives(journal, host, cma={"repair": False}, attempts=1)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.AUDIT_REFUSED), ("no_cma", Outcome.BOOTED)]
    assert len(host.jumps) == 1 and host.flags == [0x8, 0x18]
    assert "repair is switched off" in drives.record.attempts[0].message
    assert "retain_initrd" in host.jumps[0], "after NO_CMA the initrd is kept to be compared"


def test_required_cma_that_is_hazardous_is_given_up_without_a_jump(journal: Journal) -> None:
    host = FakeHost(misaligned=True)
    drives = Drives(journal, host, cma={"use": "require", "repair": False})
    record = drives.run()
    assert record.phase is Phase.FAILED and host.jumps == [] and host.loaded is None
    assert "audit_refused" in record.reason


def test_an_audit_that_only_reports_jumps_and_says_so(journal: Journal) -> None:
    host = FakeHost(misaligned=True)
    drives = Drives(journal, host, cma={"audit": "report", "repair": False})
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)]
    assert audits(drives)[0] == ("after the load", "hazardous")
    notes = [e.data["text"] for e in journal.events(drives.rollout) if e.kind is EventKind.NOTE]
    assert any("jumping all the same" in note for note in notes)


def test_a_spacer_that_does_not_load_ends_in_no_cma(journal: Journal) -> None:
    host = FakeHost(misaligned=True, spacer_refused=True)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.AUDIT_REFUSED), ("no_cma", Outcome.BOOTED)]
    notes = [e.data["text"] for e in journal.events(drives.rollout) if e.kind is EventKind.NOTE]
    assert any("did not work" in note for note in notes)
    assert len(host.jumps) == 1


def test_padding_that_finds_no_disk_space_ends_in_no_cma(journal: Journal) -> None:
    full = HostRefused("web1", "derive", "disk full", code="disk_full")
    host = FakeHost(misaligned=True, breaks_at={"derive": full})
    drives = Drives(journal, host, attempts=2)
    assert drives.run().phase is Phase.DONE
    assert len(host.jumps) == 1


@pytest.mark.parametrize(
    "memory",
    [
        {"body_differs": 16, "first_difference": 4096},
        {"tail_nonzero": 4411392, "first_tail_nonzero": 14000000},
    ],
)
def test_memory_that_changed_before_the_jump_stops_it(journal: Journal, memory: dict[str, Any]) -> None:
    host = FakeHost(readbacks=[{}, memory])
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.AUDIT_REFUSED), ("no_cma", Outcome.BOOTED)]
    assert audits(drives)[-1] == ("before the jump", "hazardous")
    assert "changed between the load and the jump" in drives.record.attempts[0].message
    assert len(host.jumps) == 1


def test_stale_tails_are_padded_away(journal: Journal) -> None:
    stale = {"tail_nonzero": 4411392, "first_tail_nonzero": 14000000}
    host = FakeHost(readbacks=[stale])
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    loaded = drives.record.attempts[0].loaded
    assert loaded is not None and "kernel" in loaded["repair"]["padded"]
    assert drives.tried == [("cma", Outcome.BOOTED)]


def test_memory_that_cannot_be_read_weakens_the_verdict(journal: Journal) -> None:
    locked = HostRefused("web1", "readback", "kcore: Operation not permitted", code="io_error")
    host = FakeHost(breaks_at={"readback": locked})
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    first = drives.record.attempts[0].audits[0]["audit"]
    assert first["strength"] != "read_back" and first["verdict"] == "unknown"
    assert drives.tried == [("cma", Outcome.AUDIT_REFUSED), ("no_cma", Outcome.BOOTED)]


def test_a_rejected_kernel_is_not_offered_again_unless_forced(journal: Journal) -> None:
    failing = Drives(journal, FakeHost(wrong_after_boot=True), attempts=1)
    assert failing.run().phase is Phase.FAILED
    again = Drives(journal, FakeHost())
    record = again.run()
    assert record.phase is Phase.SKIPPED and "rejected this kernel" in record.reason
    assert again.host.jumps == []
    forced = Drives(journal, FakeHost(), even_if_rejected=True, checks=SURE)
    assert forced.run().phase is Phase.DONE
    after = Drives(journal, FakeHost(), even_if_current=True, checks=SURE)
    assert after.run().phase is Phase.DONE, "it has booted and passed since: nothing stands against it"


def test_the_default_moves_only_after_every_check_has_passed(journal: Journal) -> None:
    host = FakeHost()
    drives = Drives(journal, host, finalise="grub", checks=SURE)
    assert drives.run().phase is Phase.DONE and host.default != "old"
    finalised = drives.record.attempts[0].finalised
    assert finalised is not None and (finalised["before"], finalised["after"]) == ("old", host.default)
    wrong = FakeHost(wrong_after_boot=True)
    failing = Drives(journal, wrong, finalise="grub", attempts=1, even_if_rejected=True)
    assert failing.run().phase is Phase.FAILED and wrong.default == "old"


def test_an_inconclusive_check_leaves_the_default_to_a_human(journal: Journal) -> None:
    host = FakeHost()
    record = Drives(journal, host, finalise="grub").run()
    assert record.phase is Phase.DONE and host.default == "old"
    assert "the boot loader's default stays" in record.reason


def test_a_default_that_cannot_be_set_fails_the_host_and_says_that_it_is_sound(journal: Journal) -> None:
    no = HostRefused("web1", "finalise", "GRUB_DEFAULT is 0", hint="set it", code="grub_not_saved")
    drives = Drives(journal, FakeHost(breaks_at={"boot_default_set": no}), finalise="grub", checks=SURE)
    record = drives.run()
    assert record.phase is Phase.FAILED and drives.tried == [("cma", Outcome.BOOTED)]
    assert "GRUB_DEFAULT is 0" in record.reason and "sound" in record.hint


def test_watchdog_and_guard_are_armed_and_the_guard_is_told_of_the_return(journal: Journal) -> None:
    host = FakeHost()
    drives = Drives(journal, host, recovery={"watchdog": 60, "guard": "5m"})
    assert drives.run().phase is Phase.DONE
    assert host.watchdogs == [60.0]
    assert host.guards == ["install nonce1 300", "confirm nonce1"]


def test_an_image_that_crashes_the_host_at_load_is_not_even_loaded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erratum is met by the initrd's size and the running kernel: nothing of it reaches the kernel."""
    host = FakeHost(release="6.12.40-old")
    drives = Drives(journal, host)
    digest = host.digest
    huge = 2_200_000_000

    def of_that_size(path: str, deadline: object) -> object:
        found = digest(path, deadline)  # type: ignore[arg-type]
        return replace(found, size=huge) if path == "/boot/initrd" else found

    monkeypatch.setattr(host, "digest", of_that_size)
    record = drives.run()
    assert record.phase is Phase.FAILED and "erratum" in record.reason
    assert host.flags == [] and host.jumps == []


def test_a_load_whose_process_was_killed_leaves_a_leak_that_is_said_and_no_cma_follows(
    journal: Journal,
) -> None:
    died = HostRefused("web1", "load", "the keeper ended: it was killed", code="keeper_died")
    host = FakeHost(breaks_at={"load": died}, leaked_pages=15424)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.LOAD_REFUSED), ("no_cma", Outcome.BOOTED)]
    assert "15424 pages of CMA leaked" in drives.record.attempts[0].message
