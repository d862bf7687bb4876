"""`host doctor` on a fake host: what it says, that nothing stays loaded, and that nobody ever jumps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.cli.doctortext import print_diagnoses
from orchestrator.domain.errors import HostLost, HostRefused, PowerFailed
from orchestrator.domain.inventory import Host
from orchestrator.domain.playbook import Deadlines, HostImage, Kernel
from orchestrator.domain.policy import Cma
from orchestrator.domain.power import QmpPower
from tests.support import fakeplacement
from tests.support.fakehost import STEADY, FakeHost, load_answer
from workers.agent import AgentClient
from workers.agentanswers import AgentStatus, Claim, FileMatch, LoadAnswer
from workers.agentbundle import AgentBundle
from workers.deadline import Deadline
from workers.diagnosis import Diagnosis, Health
from workers.doctor import Means, Question, examine
from workers.power.base import Power, PowerResult, PowerState

IMAGE = Kernel(on_host=HostImage(image="/boot/vmlinuz", initrd="/boot/initrd"))
SHORT = Deadlines(connect=1, facts=1, stage=1, load=1, audit=1)
HOST = Host(name="web1", address="192.0.2.1", power=QmpPower(kind="qmp", socket="/nowhere"))


@dataclass
class Patient(FakeHost):
    """A fake host that counts what a doctor must not leave behind, and may hold somebody else's image."""

    others_image: bool = False
    more_facts: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ("/boot/vmlinuz", "/boot/initrd")
    unloads: int = 0
    leak_pages: int = 0
    stays: bool = False  # the unload has no effect

    def facts(self, deadline: Deadline) -> dict[str, Any]:
        return {**super().facts(deadline), **self.more_facts}

    def resolve(self, pattern: str, deadline: Deadline) -> tuple[FileMatch, ...]:
        return tuple(FileMatch(path, 1, 0.0) for path in self.files if path == pattern)

    def status(self, deadline: Deadline) -> AgentStatus:
        loaded = int(self.others_image or self.loaded is not None)
        return AgentStatus(self.boot_id, "idle", loaded, None, False, STEADY, {}, None, {})

    def load(self, claim: Claim, **words: Any) -> LoadAnswer:
        assert claim.nonce and self.claims[-1] == claim, "only under the claim that was taken"
        answer = super().load(claim, **words)
        self.others_image = False
        return answer

    def unload(self, claim: Claim, deadline: Deadline) -> dict[str, Any]:
        self.unloads += 1
        loaded = self.loaded
        super().unload(claim, deadline)
        self.others_image = False
        if self.stays:
            self.loaded = loaded
        return {"cma_after": fakeplacement.counters(self.leak_pages)}


@dataclass
class FakePower:
    broken: bool = False

    def cycle(self, deadline: Deadline) -> PowerResult:
        raise AssertionError("a doctor switches nothing")

    def status(self, deadline: Deadline) -> PowerState:
        if self.broken:
            raise PowerFailed("web1", "power", "the BMC hung up", hint="ask it by hand", code="refused")
        return PowerState(Power.ON, "it says on")


@pytest.fixture(autouse=True)
def the_fake_is_its_own_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentClient, "start", lambda connection, *rest: connection)


@pytest.fixture(autouse=True)
def reports(capsys: pytest.CaptureFixture[str]) -> Iterator[list[Diagnosis]]:
    """Every diagnosis of a test can be printed on 100 columns and written as JSON."""
    made: list[Diagnosis] = []
    yield made
    for one in made:
        json.dumps(one.as_dict())
    print_diagnoses(made)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] and all(len(line) <= 100 for line in lines), lines


Doctor = Callable[..., Diagnosis]


@pytest.fixture
def doctor(reports: list[Diagnosis]) -> Doctor:
    def look(patient: FakeHost, power: FakePower | None = None, host: Host = HOST, **words: Any) -> Diagnosis:
        meant = words.pop("meant", lambda facts: True)
        stopping = words.pop("stopping", lambda: False)
        question = Question(**{"kernel": IMAGE, "deadlines": SHORT, **words})

        def claim(name: str, boot_id: str) -> Claim:
            return Claim(journal="j", rollout="", host=name, attempt=0, nonce="n1", fence=1, boot_id=boot_id)

        means = Means(
            connector=patient,  # type: ignore[arg-type]
            bundle=AgentBundle(b"", ""),
            power=lambda _: power,
            claim=claim,
            stopping=stopping,
            tell=lambda name, text: None,
        )
        found = examine(host, question, means, meant)
        reports.append(found)
        assert patient.jumps == [] and patient.boot == 1
        return found

    return look


def verdicts(found: Diagnosis) -> list[str]:
    return [str(one["audit"]["verdict"]) for one in found.tries]


def test_a_sound_image_is_loaded_once_and_unloaded(doctor: Doctor) -> None:
    patient = Patient()
    found = doctor(patient, FakePower())
    assert (found.health, verdicts(found)) == (Health.SOUND, ["sound"])
    assert patient.flags == [8] and patient.unloads == 1 and patient.loaded is None
    assert found.left is not None and (found.left.kexec_loaded, found.left.leaked) == (0, 0)
    assert found.placed is not None and found.placed.placement.wholly_in_cma
    assert found.fallback.startswith("no_cma: 63,991,808 bytes") and "copied" in found.fallback
    assert found.power.works is True and found.watchdog.present is False
    assert any("no watchdog" in text for text in found.advice)
    assert found.ability is not None and found.ability.area_size == 384 << 20


def test_a_misaligned_kernel_is_repaired_and_both_loads_are_told(doctor: Doctor) -> None:
    patient = Patient(misaligned=True)
    found = doctor(patient)
    assert (found.health, verdicts(found)) == (Health.REPAIRED, ["hazardous", "sound"])
    first = found.tries[0]["audit"]["hazards"][0]
    assert first["kind"] == "misaligned_kernel" and first["cause"] and first["reference"]
    assert "spacer" in found.reason
    assert found.placed is not None and found.placed.placement.kernel_misaligned is False
    assert patient.loaded is None


def test_a_hazard_without_repair_names_the_ladders_next_step(doctor: Doctor) -> None:
    patient = Patient(misaligned=True)
    found = doctor(patient, cma=Cma(repair=False))
    assert (found.health, verdicts(found)) == (Health.HAZARDOUS, ["hazardous"])
    assert "repair is switched off" in found.reason and found.fallback.startswith("no_cma: ")
    assert patient.flags == [8], "what NO_CMA would do is told, not loaded"
    assert patient.loaded is None


def test_an_audit_that_only_reports_is_told_as_it_is(doctor: Doctor) -> None:
    found = doctor(Patient(misaligned=True), cma=Cma(repair=False, audit="report"))
    assert found.health is Health.HAZARDOUS
    assert not any("jumping" in note["text"] for note in found.notes)


def test_required_cma_has_no_fallback(doctor: Doctor) -> None:
    found = doctor(Patient(misaligned=True), cma=Cma(use="require", repair=False), attempts=1)
    assert found.health is Health.HAZARDOUS and found.fallback.startswith("none: ")


def test_memory_that_cannot_be_read_is_no_proof(doctor: Doctor) -> None:
    locked = HostRefused("web1", "readback", "kcore: Operation not permitted", code="io_error")
    found = doctor(Patient(breaks_at={"readback": locked}))
    assert found.health is Health.UNKNOWN and "was not read" in found.reason


@pytest.mark.parametrize(
    ("kexec", "says"),
    [({"load_disabled": 1}, "kexec_load_disabled is 1"), ({"load_limit_reboot": 1}, "leaves 1 calls")],
)
def test_a_sysctl_that_forbids_loads_is_seen_before_anything_is_sent(
    doctor: Doctor, kexec: dict[str, int], says: str
) -> None:
    patient = Patient(more_facts={"kexec": kexec})
    found = doctor(patient, force=True)
    assert found.health is Health.REFUSED and says in found.reason
    assert found.ability is not None and not found.ability.may_load
    assert patient.claims == [] and patient.flags == []


def test_a_limit_of_loads_is_not_used_up_unasked(doctor: Doctor) -> None:
    patient = Patient(more_facts={"kexec": {"load_limit_reboot": 4}})
    assert doctor(patient).health is Health.SKIPPED and patient.flags == []
    assert doctor(patient, force=True).health is Health.SOUND


def test_a_load_that_the_kernel_refuses_says_so_and_what_leaked(doctor: Doctor) -> None:
    patient = Patient(loads=[load_answer("refused", 1)], leak_pages=4096)
    found = doctor(patient)
    assert found.health is Health.REFUSED and "kexec_file_load: 1" in found.reason
    assert found.fallback.startswith("no_cma: ")
    assert found.left is not None and found.left.leaked == 16 << 20


def test_a_few_pages_that_drivers_took_are_no_leak(doctor: Doctor) -> None:
    found = doctor(Patient(leak_pages=3))
    assert found.left is not None and found.left.leaked == 0


def test_broken_power_control_is_told_and_changes_no_verdict(doctor: Doctor) -> None:
    found = doctor(Patient(), FakePower(broken=True))
    assert found.health is Health.SOUND
    assert (found.power.works, found.power.text) == (False, "the BMC hung up")
    assert any("neither power control nor a watchdog" in text for text in found.advice)


def test_power_is_asked_also_where_the_host_does_not_answer(doctor: Doctor) -> None:
    found = doctor(Patient(reachable=False), FakePower())
    assert found.health is Health.UNREACHABLE and found.hint == "plug it in"
    assert found.power.works is True


def test_somebody_elses_image_is_left_alone(doctor: Doctor) -> None:
    patient = Patient(others_image=True)
    found = doctor(patient)
    assert found.health is Health.SKIPPED and "an image is loaded already" in found.reason
    assert patient.others_image and patient.unloads == 0 and patient.claims == []
    assert found.ability is not None, "what needs no load is told all the same"


def test_force_replaces_somebody_elses_image_and_says_so(doctor: Doctor) -> None:
    patient = Patient(others_image=True)
    found = doctor(patient, force=True)
    assert found.health is Health.SOUND and not patient.others_image and patient.unloads == 2
    assert any("somebody had loaded" in note["text"] for note in found.notes)


def test_an_image_that_stays_loaded_is_the_worst_answer(doctor: Doctor) -> None:
    found = doctor(Patient(stays=True))
    assert found.health is Health.REFUSED and "still loaded" in found.reason and "kexec -u" in found.hint


def test_a_session_that_breaks_after_the_load_is_lost_and_unloads(doctor: Doctor) -> None:
    patient = Patient(breaks_at={"readback": HostLost("web1", "readback", "the channel broke")})
    found = doctor(patient)
    assert found.health is Health.LOST and "unloaded by the host itself" in found.hint
    assert patient.loaded is None and patient.unloads == 1, "tried, for the channel may still work"


def test_a_stop_comes_before_the_next_load(doctor: Doctor) -> None:
    patient = Patient(misaligned=True)
    found = doctor(patient, stopping=lambda: bool(patient.flags))
    assert found.health is Health.STOPPED and patient.flags == [8]
    assert patient.loaded is None and patient.unloads == 1
    assert doctor(Patient(), stopping=lambda: True).health is Health.STOPPED


def test_facts_that_do_not_match_the_selector_end_it_before_a_claim(doctor: Doctor) -> None:
    patient = Patient()
    found = doctor(patient, meant=lambda facts: facts.release == "7.2")
    assert found.health is Health.LEFT_OUT and patient.claims == []


def test_the_running_kernel_is_found_under_boot(doctor: Doctor) -> None:
    files = ("/boot/vmlinuz-6.12.0-old", "/boot/initramfs-6.12.0-old.img")
    found = doctor(Patient(files=files), kernel=None)
    assert found.health is Health.SOUND
    assert found.target is not None and (found.target.kernel, found.target.initrd) == files


def test_a_running_kernel_that_is_nowhere_must_be_named(doctor: Doctor) -> None:
    patient = Patient(files=("/boot/vmlinuz-6.12.0-old",))
    found = doctor(patient, kernel=None)
    assert found.health is Health.REFUSED and "the initrd that this host runs" in found.reason
    assert "--image" in found.hint and patient.flags == []


def test_an_image_for_another_machine_is_not_loaded(doctor: Doctor) -> None:
    patient = Patient(more_facts={"machine": "aarch64"})
    found = doctor(patient)
    assert found.health is Health.REFUSED and "the image is for x86_64" in found.reason
    assert patient.flags == []


def test_a_load_that_would_crash_the_kernel_is_not_tried(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(more_facts={"release": "6.12.0"})
    found = doctor(patient)
    assert found.health is Health.SOUND, "the erratum is about initrds of 2 GiB"
    monkeypatch.setattr(
        Patient, "digest", lambda self, path, deadline: huge(FakeHost.digest(self, path, deadline))
    )
    again = doctor(Patient(more_facts={"release": "6.12.0"}))
    assert again.health is Health.REFUSED and "sha256-2g" in again.reason and again.tries == ()


def huge(digest: Any) -> Any:
    return type(digest)(digest.sha256, 1 << 31, digest.head)
