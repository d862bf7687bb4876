"""`host doctor` through the command line: bad input touches no host, and what its exit codes say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import HostRefused
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.inventory import Host
from orchestrator.journal.store import Journal
from tests.unit.test_cli_errors import Run, refused
from tests.unit.test_cli_errors import run as run
from workers.diagnosis import Diagnosis, Health

DOCTOR = ("host", "doctor", "-i", "inv.yaml")


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "journal.sqlite"
    monkeypatch.setenv("KEXEC_FLEET_JOURNAL", str(path))
    return path


class Fleet:
    """Stands in for the hosts: says for each what it is told to, and keeps what was asked."""

    def __init__(self, **healths: Health) -> None:
        self.healths = healths
        self.asked: list[str] = []
        self.meant: dict[str, bool] = {}
        self.question: Any = None
        self.means: Any = None

    def examine(self, host: Host, question: Any, means: Any, meant: Any) -> Diagnosis:
        self.asked.append(host.name)
        self.question, self.means = question, means
        self.meant[host.name] = meant(HostFacts(release="7.2"))
        return Diagnosis(host=host.name, health=self.healths.get(host.name, Health.SOUND))


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    made = Fleet()
    monkeypatch.setattr("workers.doctor.examine", made.examine)
    return made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["wbe1"], "no host and no group is called `wbe1`"),
        (["web1", "web1 &"], "selector `web1 &`"),
        (["web1", "--initrd", "initrd"], "--initrd without --image"),
        (["web1", "--image", "vmlinuz", "-p", "pb.yaml"], "--playbook and --image both name a kernel"),
        (["web1", "--image", "none"], "none: No such file"),
        (["web1", "--image", "initrd"], "not a bzImage"),
        (["web1", "-p", "none.yaml"], "cannot read the playbook none.yaml"),
    ],
)
def test_bad_input_touches_no_host(run: Run, fleet: Fleet, words: Sequence[str], says: str) -> None:
    refused(run, says, command=(*DOCTOR, *words))
    assert fleet.asked == []


def test_a_file_of_the_command_line_is_not_looked_for_beside_a_playbook(run: Run, fleet: Fleet) -> None:
    err = refused(run, "none: No such file", command=(*DOCTOR, "web1", "--image", "none"))
    assert "hint: check the path" in err and "playbook" not in err


def test_a_missing_host_word_is_bad_input(run: Run, fleet: Fleet) -> None:
    code, _, err = run(*DOCTOR)
    assert code == 2 and "hosts" in err and fleet.asked == []


def test_a_host_under_a_rollout_is_left_alone(
    run: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "is_driven", lambda self, host: host == "web2")
    refused(run, "a rollout of this journal is at work on web2", command=(*DOCTOR, "all"))
    assert fleet.asked == []


def test_a_rollout_that_begins_meanwhile_is_seen_at_the_claim(
    run: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*DOCTOR, "web1")
    first, second = (fleet.means.claim("web1", "b1") for _ in range(2))
    assert first.nonce and first.nonce != second.nonce and first.fence < second.fence
    monkeypatch.setattr(Journal, "is_driven", lambda self, host: True)
    with pytest.raises(HostRefused, match="has begun to drive it"):
        fleet.means.claim("web1", "b1")


@pytest.mark.parametrize(
    ("health", "code"),
    [
        (Health.SOUND, 0),
        (Health.REPAIRED, 0),
        (Health.LEFT_OUT, 0),
        (Health.HAZARDOUS, 1),
        (Health.UNKNOWN, 1),
        (Health.REFUSED, 1),
        (Health.SKIPPED, 1),
        (Health.UNREACHABLE, 1),
        (Health.LOST, 1),
    ],
)
def test_one_bad_host_decides_the_exit_code(run: Run, fleet: Fleet, health: Health, code: int) -> None:
    fleet.healths = {"web2": health}
    found, out, _ = run(*DOCTOR, "web1", "web2")
    assert found == code
    assert "web1: sound" in out and f"web2: {health}" in out


def test_several_words_are_alternatives_in_the_inventorys_order(run: Run, fleet: Fleet) -> None:
    code, out, _ = run(*DOCTOR, "web2", "web1 & kernel<7", "--json")
    assert code == 0 and list(json.loads(out)["hosts"]) == ["web1", "web2"]
    assert sorted(fleet.asked) == ["web1", "web2"]
    assert fleet.meant == {"web1": False, "web2": True}, "it runs 7.2, whatever its label says"


def test_the_options_reach_the_question(run: Run, fleet: Fleet) -> None:
    Path("pb.yaml").write_text(Path("pb.yaml").read_text() + "cma: {use: require, repair: true}\n")
    run(*DOCTOR, "web1", "-p", "pb.yaml", "--no-repair", "--force")
    question = fleet.question
    assert (question.cma.use, question.cma.repair, question.force) == ("require", False, True)
    assert question.release == "7.3.4+deb13-cloud-amd64"
    run(*DOCTOR, "web1")
    assert fleet.question.kernel is None and fleet.question.cma.repair
