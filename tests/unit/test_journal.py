"""The journal: atomic appends, fences, leases, folding, and what happens when its process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.domain.errors import IllegalTransition, JournalError, JournalNotFound, StaleFence
from orchestrator.domain.events import EventKind, HostRecord, fold_host
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.playbook import HostImage, Kernel, Playbook
from orchestrator.domain.rollout import Outcome, Phase, RolloutStatus
from orchestrator.journal import leases
from orchestrator.journal.database import write
from orchestrator.journal.leases import Lease, owner_is_dead, this_owner
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal


def spec() -> RolloutSpec:
    hosts = {name: Host(name=name, address="127.0.0.1", port=number) for number, name in enumerate("abc", 1)}
    kernel = Kernel(on_host=HostImage(image="/boot/vmlinuz"))
    return RolloutSpec(playbook=Playbook(name="p", kernel=kernel), inventory=Inventory(hosts=hosts))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


def started(journal: Journal, host: str = "a") -> tuple[str, Lease]:
    rollout = journal.create_rollout(spec(), [["a"], ["b", "c"]]).id
    lease = journal.acquire(rollout, host)
    assert lease is not None
    return rollout, lease


def attempt_data(nonce: str = "n1") -> dict[str, object]:
    return {"nonce": nonce, "boot_id": "boot", "path": "cma", "flags": 8, "reason": "first"}


def test_a_rollout_comes_back_from_a_reopened_file(journal: Journal) -> None:
    rollout, lease = started(journal)
    journal.append(lease, EventKind.PHASE, {"phase": Phase.SKIPPED, "reason": "runs it already"})
    journal.close()
    again = Journal.open(journal.path, create=False)
    assert again.id == journal.id
    assert again.spec(rollout) == spec()
    assert [h.phase for h in again.hosts(rollout)] == [Phase.SKIPPED, Phase.PENDING, Phase.PENDING]
    assert again.find("last").id == again.find(rollout[:5]).id == rollout


def test_the_stored_state_equals_the_fold_of_the_events(journal: Journal) -> None:
    rollout, lease = started(journal)
    lease, _ = journal.start_attempt(lease, 1, attempt_data())
    journal.append(lease, EventKind.PHASE, {"phase": Phase.STAGED}, attempt=1)
    journal.append(lease, EventKind.LOADED, {"errno": None, "seconds": 1.5}, attempt=1)
    journal.append(lease, EventKind.ATTEMPT_ENDED, {"outcome": Outcome.CANCELLED}, attempt=1)
    journal.append(lease, EventKind.PHASE, {"phase": Phase.PENDING})
    stored = journal.host(rollout, "a")
    first = journal.hosts(rollout)[1]
    fresh = HostRecord(rollout=rollout, host="a", updated_at=first.updated_at)
    assert fold_host(fresh, journal.events(rollout)) == stored
    assert stored.attempts[0].outcome is Outcome.CANCELLED and stored.open_attempt is None


def test_an_illegal_event_writes_nothing(journal: Journal) -> None:
    rollout, lease = started(journal)
    before = list(journal.events(rollout))
    with pytest.raises(IllegalTransition):
        journal.append_all(
            lease,
            [(EventKind.NOTE, {"text": "x"}), (EventKind.PHASE, {"phase": Phase.DONE})],
        )
    assert list(journal.events(rollout)) == before


def test_a_stale_fence_writes_nothing(journal: Journal) -> None:
    rollout, lease = started(journal)
    newer = journal.rotate(lease)
    before = list(journal.events(rollout))
    with pytest.raises(StaleFence):
        journal.append(lease, EventKind.NOTE, {"text": "too late"})
    assert list(journal.events(rollout)) == before
    journal.append(newer, EventKind.NOTE, {"text": "in time"})


def test_an_attempt_and_a_nonce_are_written_once(journal: Journal) -> None:
    _, lease = started(journal)
    lease, attempt = journal.start_attempt(lease, 1, attempt_data())
    assert attempt.fence == lease.fence
    journal.append(lease, EventKind.ATTEMPT_ENDED, {"outcome": Outcome.LOAD_REFUSED}, attempt=1)
    journal.append(lease, EventKind.PHASE, {"phase": Phase.PENDING})
    with pytest.raises(JournalError, match="already"):
        journal.start_attempt(lease, 2, attempt_data("n1"))


def test_fences_only_grow(journal: Journal) -> None:
    rollout, lease = started(journal)
    other = journal.acquire(rollout, "b")
    assert other is not None and other.fence > lease.fence
    assert journal.rotate(lease).fence > other.fence


def test_a_lease_is_exclusive_until_released(journal: Journal) -> None:
    rollout, lease = started(journal)
    assert journal.acquire(rollout, "a", owner="elsewhere:boot:1:1") is None
    assert journal.acquire(rollout, "a") is None, "another thread of the same process is another driver"
    journal.release(lease)
    taken = journal.acquire(rollout, "a", owner="elsewhere:boot:1:1")
    assert taken is not None
    with pytest.raises(StaleFence):
        journal.renew(lease)


def test_an_expired_lease_can_be_taken_and_its_writer_is_refused(journal: Journal) -> None:
    rollout, _ = started(journal)
    held = journal.acquire(rollout, "b", owner="elsewhere:boot:1:1")
    assert held is not None
    with write(journal._engine) as connection:
        connection.execute(text("UPDATE leases SET expires_at = 1 WHERE host = 'b'"))
    taken = journal.acquire(rollout, "b")
    assert taken is not None and taken.fence > held.fence
    with pytest.raises(StaleFence):
        journal.append(held, EventKind.NOTE, {"text": "I am back"})


def test_two_rollouts_do_not_drive_one_host(journal: Journal) -> None:
    _, lease = started(journal)
    second = journal.create_rollout(spec(), [["a"]]).id
    assert journal.acquire(second, "a", owner="elsewhere:boot:1:1") is None
    journal.release(lease)
    assert journal.acquire(second, "a") is not None


def test_the_lease_of_a_killed_process_is_free_at_once(journal: Journal) -> None:
    rollout, lease = started(journal)
    journal.release(lease)
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.journal.store import Journal\n"
        f"j = Journal.open(Path({str(journal.path)!r})); l = j.acquire({rollout!r}, 'a')\n"
        "print(l.owner, flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    owner = child.stdout.readline().strip()
    try:
        assert owner and not owner_is_dead(owner)
        assert journal.acquire(rollout, "a") is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert owner_is_dead(owner)
    assert journal.acquire(rollout, "a") is not None


def test_a_reused_pid_is_not_the_owner() -> None:
    machine, boot, pid, started_at = this_owner().rsplit(":", 3)
    assert not owner_is_dead(this_owner())
    assert owner_is_dead(f"{machine}:{boot}:{pid}:{int(started_at) - 1}")
    assert not owner_is_dead(f"another-machine:{boot}:{pid}:1")
    assert int(pid) == os.getpid()


def test_many_threads_append_without_a_lost_event(journal: Journal) -> None:
    rollout, first = started(journal)
    held = {"a": first, **{h: journal.acquire(rollout, h) for h in "bc"}}
    failures: list[BaseException] = []

    def work(host: str) -> None:
        lease = held[host]
        assert lease is not None
        try:
            for number in range(40):
                journal.append(lease, EventKind.NOTE, {"n": number})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(host,)) for host in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    notes = [e for e in journal.events(rollout) if e.kind is EventKind.NOTE]
    for host in "abc":
        assert [e.data["n"] for e in notes if e.host == host] == list(range(40))


def test_the_controllers_lease_guards_the_status(journal: Journal) -> None:
    rollout, _ = started(journal)
    lease = journal.acquire(rollout)
    assert lease is not None
    journal.request_abort(rollout)
    assert journal.rollout(rollout).abort_requested
    journal.set_status(lease, RolloutStatus.ABORTED, "asked to")
    assert journal.rollout(rollout).status is RolloutStatus.ABORTED
    journal.rotate(lease)
    with pytest.raises(StaleFence):
        journal.set_status(lease, RolloutStatus.DONE)


def test_a_missing_and_a_foreign_file_are_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(JournalNotFound):
        Journal.open(tmp_path / "none.sqlite", create=False)
    foreign = tmp_path / "text.txt"
    foreign.write_text("this is no database, but long enough to be taken for one" * 20)
    with pytest.raises(JournalError, match="cannot open"):
        Journal.open(foreign)
    import sqlite3

    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).executescript("CREATE TABLE t (x)")
    with pytest.raises(JournalError, match="no journal"):
        Journal.open(other)
    assert leases.CONTROLLER == ""


def test_a_rejected_kernel_is_remembered_across_rollouts_until_it_is_accepted(journal: Journal) -> None:
    rollout, lease = started(journal)
    told = {"kernels": ["b1", "sha1"], "reason": "came back wrong"}
    journal.append(lease, EventKind.REJECTED, told)
    journal.append(lease, EventKind.REJECTED, {**told, "reason": "and again"})
    found = journal.rejection("a", ["sha1"])
    assert found is not None and (found.rollout, found.reason) == (rollout, "and again")
    assert journal.rejection("a", ["b2"]) is None, "another kernel"
    assert journal.rejection("b", ["b1"]) is None, "another host"
    journal.release(lease)
    second = journal.acquire(journal.create_rollout(spec(), [["a"]]).id, "a")
    assert second is not None
    journal.append(second, EventKind.ACCEPTED, {"kernels": ["b1", "sha1"]})
    assert journal.rejection("a", ["b1", "sha1"]) is None
