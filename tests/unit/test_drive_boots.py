"""Boots that come and go behind our back: nothing is finalised, confirmed or cycled on the wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import HostLost, HostRefused
from orchestrator.domain.events import EventKind
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.store import Journal
from tests.support import fakeplacement
from tests.support.fakehost import FakeHost
from tests.unit.test_drive import Drives
from tests.unit.test_drive import quick as quick
from tests.unit.test_drive_audit import SURE
from workers.drive import conclude, reach, verify


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


def notes(drives: Drives) -> list[str]:
    found = drives.journal.events(drives.rollout)
    return [str(event.data["text"]) for event in found if event.kind is EventKind.NOTE]


def test_a_boot_that_died_after_its_checks_is_not_made_the_default(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost()
    finalise = conclude.finalise

    def dies_first(*args: Any) -> str:
        monkeypatch.setattr(verify, "finalise", finalise)
        host.firmware_boot()
        return finalise(*args)

    monkeypatch.setattr(verify, "finalise", dies_first)
    drives = Drives(journal, host, finalise="grub", checks=SURE, attempts=1)
    record = drives.run()
    assert record.phase is Phase.FAILED and host.default == "old"
    assert drives.tried == [("cma", Outcome.CORRUPTED)]
    assert "left it again" in record.reason


def test_a_guard_that_was_not_told_means_another_look(journal: Journal) -> None:
    host = FakeHost()
    confirm = host.guard_confirm

    def reboots(*_: Any) -> dict[str, Any]:
        host.guard_confirm = confirm  # type: ignore[method-assign]
        host.firmware_boot()
        raise HostRefused("web1", "guard_confirm", "another boot", code="wrong_boot")

    host.guard_confirm = reboots  # type: ignore[method-assign,assignment]
    drives = Drives(journal, host, recovery={"guard": "5m"}, finalise="grub", checks=SURE, attempts=1)
    assert drives.run().phase is Phase.FAILED and host.default == "old"
    assert drives.tried == [("cma", Outcome.CORRUPTED)]
    assert any("not held against the kernel" in note for note in notes(drives))
    again = Drives(journal, FakeHost(), checks=SURE)
    assert again.run().phase is Phase.DONE, "nobody saw it panic: it may have been our guard"


def test_a_host_whose_logins_succeed_is_never_cycled(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new kernel lets us in, and the agent does not come up: it answers."""
    host = FakeHost()

    def jump(_: FakeHost) -> None:
        host.kexec()

        def lost(*_: Any) -> Any:
            raise HostLost("web1", "start the agent", "gone")

        monkeypatch.setattr(reach.AgentClient, "start", lost)

    host.on_go = jump
    drives = Drives(journal, host)
    drives.has_power = True
    record = drives.run()
    assert record.phase is Phase.LOST and host.powered == []
    assert "it answers" in record.reason


def test_pages_that_somebody_else_moved_cost_a_second_load_and_no_refusal(journal: Journal) -> None:
    size = 1 << 20
    at = fakeplacement.AREA + 2 * fakeplacement.MIB
    disturbed = fakeplacement.loaded(8, at, size, size)
    area = dict(disturbed.cma_after["areas"]["reserved"])
    area["available_pages"] -= 2
    area["alloc_pages_success"] += 2
    odd = type(disturbed)(
        **{
            **{name: getattr(disturbed, name) for name in disturbed.__slots__},
            "cma_after": {"areas": {"reserved": area}},
        }
    )
    drives = Drives(journal, FakeHost(loads=[odd]))
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)]
    assert any("loading once more" in note for note in notes(drives))


def test_an_audit_that_only_reports_jumps_into_an_image_that_is_loaded(journal: Journal) -> None:
    host = FakeHost(misaligned=True, spacer_refused=True)
    drives = Drives(journal, host, cma={"audit": "report"})
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(host.jumps) == 1


@pytest.mark.parametrize("after", ["nothing", "an attempt"])
def test_an_error_of_ours_outside_an_attempt_does_not_keep_a_host_lost(journal: Journal, after: str) -> None:
    host = FakeHost()
    if after == "an attempt":
        host.on_go = lambda again: (again.firmware_boot(), setattr(again, "on_go", FakeHost.kexec))[0]
    facts = host.facts
    calls = {"left": 0 if after == "nothing" else 2}

    def fails_once(*args: Any) -> dict[str, Any]:
        calls["left"] -= 1
        if calls["left"] == -1:
            raise ZeroDivisionError
        return facts(*args)

    host.facts = fails_once  # type: ignore[method-assign,assignment]
    drives = Drives(journal, host)
    with pytest.raises(ZeroDivisionError):
        drives.run()
    assert drives.record.phase is Phase.LOST
    assert drives.run().phase is Phase.DONE
