"""The drive over a real journal and a fake host: every outcome, and every way a session can break."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.domain.errors import HostKeyRefused, HostLost, HostRefused, JournalError
from orchestrator.domain.events import EventKind, HostRecord
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.playbook import Deadlines, HostImage, Kernel, Playbook
from orchestrator.domain.policy import CmaPolicy
from orchestrator.domain.rollout import Outcome, Phase
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal
from tests.support import fakeplacement
from tests.support.fakehost import FakeHost, FakeProber, load_answer, nonces
from workers.agentanswers import Shutdown
from workers.agentbundle import AgentBundle
from workers.console import ConsoleTail
from workers.drive import place, reach, settle, verify
from workers.drive.context import Tools
from workers.drive.drive import drive_host

SHORT = Deadlines(connect=0.3, facts=1, stage=1, load=1, jump=1, stop=1, return_=0.5, verify=5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are for real hosts."""
    monkeypatch.setattr(settle, "BETWEEN_SECONDS", 0.01)
    monkeypatch.setattr(settle, "LEAD_SECONDS", 0.0)
    monkeypatch.setattr(verify, "BETWEEN_SESSIONS", 0.0)
    monkeypatch.setattr(reach, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reach.AgentClient, "start", lambda connection, *rest: connection)
    monkeypatch.setattr(place, "STILL_LOADING_FACTOR", 2)


class Drives:
    """A journal with one rollout over one fake host; `others` belong to it and are never driven."""

    def __init__(
        self, journal: Journal, host: FakeHost, *, others: Sequence[str] = (), **playbook: object
    ) -> None:
        self.journal, self.host = journal, host
        self.stop = False
        self.has_power = False
        self.answering: set[str] = set()
        self.asked: list[str] = []
        self.console: Path | None = None
        image = HostImage(image="/boot/vmlinuz", initrd="/boot/initrd")
        settings = {"name": "p", "kernel": Kernel(on_host=image), "deadlines": SHORT, **playbook}
        names = [host.name, *others]
        hosts = {name: Host(name=name, address=f"192.0.2.{n}") for n, name in enumerate(names, 1)}
        self.spec = RolloutSpec(playbook=Playbook.model_validate(settings), inventory=Inventory(hosts=hosts))
        self.rollout = journal.create_rollout(self.spec, [[name] for name in names]).id

    def run(self) -> HostRecord:
        assert drive_host(self.tools(), self.rollout, self.host.name)
        return self.record

    def tools(self) -> Tools:
        return Tools(
            journal=self.journal,
            connector=self.host,  # type: ignore[arg-type]
            bundle=AgentBundle(b"", ""),
            make_prober=FakeProber,  # type: ignore[arg-type]
            answers=self.answers,
            power=lambda host: self.host if self.has_power else None,  # type: ignore[arg-type]
            console=lambda host: ConsoleTail(self.console) if self.console else None,
            stopping=lambda: self.stop,
            new_nonce=self.next_nonces(),
        )

    def answers(self, host: Host, seconds: float) -> bool:
        """Whether the host answers on the network."""
        self.asked.append(host.name)
        return self.host.answers_network if host.name == self.host.name else host.name in self.answering

    def next_nonces(self) -> Callable[[], str]:
        make = nonces()
        for _ in range(self._used()):
            make()
        return make

    def _used(self) -> int:
        """Attempts in the journal, of whatever rollout: no nonce is ever used twice."""
        journal = self.journal
        return sum(len(h.attempts) for r in journal.rollouts() for h in journal.hosts(r.id))

    @property
    def record(self) -> HostRecord:
        return self.journal.host(self.rollout, self.host.name)

    @property
    def tried(self) -> list[tuple[str, str | None]]:
        return [(a.path, a.outcome) for a in self.record.attempts]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.sqlite")


def test_a_host_that_arrives_is_done_after_one_jump(journal: Journal) -> None:
    host = FakeHost()
    record = Drives(journal, host).run()
    assert record.phase is Phase.DONE, record
    assert [a.outcome for a in record.attempts] == [Outcome.BOOTED]
    assert len(host.jumps) == 1 and "kexec_fleet.nonce=nonce1" in host.jumps[0]
    assert "panic=10" in host.jumps[0]
    assert host.flags == [8], "CMA is preferred, and DEBUG asked for where it is known"
    measured = record.attempts[0].measured
    assert measured is not None and measured["hot_phase"]["value"] is None
    assert measured["outage"]["why_not"].endswith("a fake host has no network")


def fall_back_once(host: FakeHost) -> None:
    host.on_go = lambda again: again.kexec()
    host.firmware_boot()


def test_a_fall_back_forces_no_cma(journal: Journal) -> None:
    host = FakeHost(on_go=fall_back_once)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.FELL_BACK), ("no_cma", Outcome.BOOTED)]
    assert host.flags == [0x8, 0x18]


def test_require_never_falls_back_to_no_cma(journal: Journal) -> None:
    host = FakeHost(on_go=fall_back_once)
    drives = Drives(journal, host, cma=CmaPolicy.REQUIRE)
    record = drives.run()
    assert record.phase is Phase.FAILED and "fell_back" in record.reason
    assert host.flags == [0x8]


def test_a_refused_load_is_told_with_its_errno_and_retried_without_cma(journal: Journal) -> None:
    host = FakeHost(loads=[load_answer("refused", 12)])
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.LOAD_REFUSED), ("no_cma", Outcome.BOOTED)]
    assert drives.record.attempts[0].errno == 12


def test_a_load_past_its_deadline_is_waited_for(journal: Journal) -> None:
    host = FakeHost(loads=[load_answer("loading"), load_answer("loading"), load_answer("loaded")])
    host.load_wait = lambda claim, deadline: _keep(host)  # type: ignore[method-assign,assignment]
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    notes = [e.data["text"] for e in journal.events(drives.rollout) if e.kind is EventKind.NOTE]
    assert sum("still running; waiting for it" in note for note in notes) == 2


def _keep(host: FakeHost) -> object:
    answer = host.loads.pop(0)
    host.loaded = "root=/dev/vda panic=10 kexec_fleet.nonce=nonce1"
    return answer


def test_a_host_that_says_no_for_good_fails_at_once_with_the_reason(journal: Journal) -> None:
    no = HostRefused("web1", "load", "kexec_load_disabled is 1", hint="reboot", code="load_disabled")
    drives = Drives(journal, FakeHost(loads=[no]))
    record = drives.run()
    assert record.phase is Phase.FAILED and len(record.attempts) == 1
    assert "kexec_load_disabled" in record.reason and record.hint == "reboot"


def test_silence_is_lost_and_a_late_return_is_seen_by_the_next_look(journal: Journal) -> None:
    host = FakeHost(on_go=FakeHost.vanish)
    drives = Drives(journal, host)
    record = drives.run()
    assert (record.phase, record.attempts[0].outcome) == (Phase.LOST, Outcome.SILENT)
    assert record.attempts[0].host_state == "unknown"
    assert drives.run().phase is Phase.LOST, "still silent"
    host.reachable = True
    host.loaded = f"root=/dev/vda kexec_fleet.nonce={record.attempts[0].nonce}"
    host.kexec()
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(host.jumps) == 1


def test_never_left_forces_nothing_and_tries_again(journal: Journal) -> None:
    def stay_once(host: FakeHost) -> None:
        host.on_go = lambda again: again.kexec()
        host.stay()

    host = FakeHost(on_go=stay_once)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.NEVER_LEFT), ("cma", Outcome.BOOTED)]
    assert host.claims[1].fence > host.claims[0].fence, "the jump is called dead only under a higher fence"


def test_while_the_agent_is_busy_or_a_shutdown_is_under_way_nothing_is_concluded(journal: Journal) -> None:
    def busy_then_gone(host: FakeHost) -> None:
        host.refuse_claim = [HostRefused("web1", "claim", "told", code="busy")] * 2
        claim = host.claim

        def shutting_down(*words: object) -> object:
            answer = claim(*words)  # type: ignore[arg-type]
            host.claim = claim  # type: ignore[method-assign]
            host.loaded = host.cmdline_to_be
            host.kexec()
            return type(answer)("dead", False, Shutdown(True, "systemd stops"), None)

        host.cmdline_to_be = host.loaded  # type: ignore[attr-defined]
        host.claim = shutting_down  # type: ignore[method-assign,assignment]

    host = FakeHost(on_go=busy_then_gone)
    drives = Drives(journal, host, deadlines={**SHORT.model_dump(by_alias=True), "return": 20})
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(host.jumps) == 1


def test_a_jump_that_reboot_refuses_has_its_errno(journal: Journal) -> None:
    def refuse(host: FakeHost) -> None:
        host.jump_errno = 16
        host.stay()

    drives = Drives(journal, FakeHost(on_go=refuse), attempts=1)
    record = drives.run()
    assert record.attempts[0].outcome is Outcome.JUMP_REFUSED and record.attempts[0].errno == 16
    assert record.phase is Phase.FAILED


@pytest.mark.parametrize("step", ["load", "arm", "resolve"])
def test_a_session_that_breaks_before_go_cancels_and_tries_again(journal: Journal, step: str) -> None:
    host = FakeHost(breaks_at={step: HostLost("web1", step, "gone")})
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.CANCELLED), ("cma", Outcome.BOOTED)]
    assert len(host.jumps) == 1


def test_a_session_that_breaks_while_go_is_told_is_looked_at(journal: Journal) -> None:
    host = FakeHost()

    def jump_and_break(again: FakeHost) -> None:
        again.kexec()
        raise HostLost("web1", "go", "no answer")

    host.on_go = jump_and_break
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)] and len(host.jumps) == 1


def test_go_that_comes_too_late_is_armed_again_and_told_once(journal: Journal) -> None:
    host = FakeHost(too_late=2)
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    phases = [e.data["phase"] for e in journal.events(drives.rollout) if e.kind is EventKind.PHASE]
    assert phases.count("jumping") == 3 and len(host.jumps) == 1


def test_somebody_elses_reboot_blames_no_kernel(journal: Journal) -> None:
    host = FakeHost()

    def rebooted(*_: object, **__: object) -> None:
        host.firmware_boot()
        raise HostLost("web1", "arm", "gone")

    arm = host.arm
    host.arm = rebooted  # type: ignore[method-assign,assignment]
    drives = Drives(journal, host)
    firmware_boot = host.firmware_boot
    host.firmware_boot = lambda: (firmware_boot(), setattr(host, "arm", arm))[0]  # type: ignore[method-assign]
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.INTERRUPTED), ("cma", Outcome.BOOTED)]


def test_a_contact_that_breaks_before_an_attempt_is_tried_again(journal: Journal) -> None:
    host = FakeHost(breaks_at={"facts": HostLost("web1", "facts", "gone")})
    drives = Drives(journal, host)
    assert drives.run().phase is Phase.DONE
    assert drives.tried == [("cma", Outcome.BOOTED)]


def test_an_unreachable_host_fails_without_an_attempt(journal: Journal) -> None:
    record = Drives(journal, FakeHost(reachable=False)).run()
    assert record.phase is Phase.FAILED and record.reason.startswith("unreachable")
    assert record.attempts == () and record.hint


def test_a_host_that_comes_back_wrong_is_tried_once_more_without_cma(journal: Journal) -> None:
    host = FakeHost(wrong_after_boot=True)
    drives = Drives(journal, host, attempts=2)
    record = drives.run()
    assert record.phase is Phase.FAILED
    assert drives.tried == [("cma", Outcome.CORRUPTED), ("no_cma", Outcome.CORRUPTED)]
    assert "kernel" in record.attempts[0].message


def test_a_host_key_that_changed_over_the_jump_is_lost_not_guessed(journal: Journal) -> None:
    def impostor(host: FakeHost) -> None:
        host.kexec()

        def refuse(*_: object) -> None:
            raise HostKeyRefused("web1", "connect", "the key has changed", hint="look who answers")

        host.connect = refuse  # type: ignore[method-assign,assignment]

    record = Drives(journal, FakeHost(on_go=impostor), deadlines={**SHORT.model_dump(by_alias=True),
                    "return": 30}).run()  # fmt: skip
    assert record.phase is Phase.LOST and "the key has changed" in record.reason
    assert record.attempts[0].host_state == "unknown"


def test_stopping_before_the_jump_leaves_a_pending_host(journal: Journal) -> None:
    host = FakeHost()
    drives = Drives(journal, host)

    def stop(claim: object, **words: object) -> object:
        drives.stop = True
        host.loaded = "x"
        return fakeplacement.loaded(8, fakeplacement.AREA + 2 * fakeplacement.MIB, 1 << 20, 1 << 20)

    host.load = stop  # type: ignore[method-assign,assignment]
    record = drives.run()
    assert record.phase is Phase.PENDING and drives.tried == [("cma", Outcome.CANCELLED)]
    assert host.jumps == [] and host.loaded is None


def test_no_attempt_begins_after_an_abort(journal: Journal) -> None:
    def abort_and_fall_back(host: FakeHost) -> None:
        journal.request_abort(drives.rollout)
        host.firmware_boot()

    host = FakeHost(on_go=abort_and_fall_back)
    drives = Drives(journal, host)
    record = drives.run()
    assert record.phase is Phase.PENDING and drives.tried == [("cma", Outcome.FELL_BACK)]
    drives.run()
    assert drives.tried == [("cma", Outcome.FELL_BACK)], "nor by a resume"


def test_a_host_on_the_target_is_skipped(journal: Journal) -> None:
    record = Drives(journal, FakeHost(release="7.9"), kernel=Kernel(
        on_host=HostImage(image="/boot/vmlinuz"), release="7.9")).run()  # fmt: skip
    assert record.phase is Phase.SKIPPED and "7.9" in record.reason


def test_a_host_that_its_facts_leave_out_is_skipped(journal: Journal) -> None:
    record = Drives(journal, FakeHost(), hosts="kernel<6").run()
    assert record.phase is Phase.SKIPPED and "kernel<6" in record.reason


def test_a_bug_of_ours_leaves_the_host_lost_and_is_raised(journal: Journal) -> None:
    host = FakeHost()
    host.digest = lambda *_: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    drives = Drives(journal, host)
    with pytest.raises(ZeroDivisionError):
        drives.run()
    assert drives.record.phase is Phase.LOST and "internal error" in drives.record.reason


def test_a_journal_that_fails_is_not_taken_for_the_host(journal: Journal) -> None:
    host = FakeHost()

    def broken(*_: object) -> None:
        raise JournalError("disk full")

    host.digest = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(JournalError):
        Drives(journal, host).run()
