"""Scenario files: those that are shipped are sound, and a mistake is one error at its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.domain.errors import InputError
from orchestrator.domain.inventory import InventoryFile
from orchestrator.domain.playbook import Playbook
from orchestrator.lab.scenarios.context import TargetFiles
from orchestrator.lab.scenarios.faults import make_fault
from orchestrator.lab.scenarios.playbook import write_inventory, write_playbook
from orchestrator.lab.scenarios.reading import choose, load_scenario, shipped
from orchestrator.lab.scenarios.spec import Power, Scenario

WANTED = {
    *("clean-cma", "misaligned-unrepaired", "stale-tail-repaired", "stale-tail-unrepaired", "stray-dma"),
    *("cma-too-small", "pinned-cma", "load-killed", "flag-unknown", "no-cma-area", "new-kernel-panics"),
    *("new-kernel-hangs-early", "purgatory-hang-watchdog", "jump-never-happens", "reboot-between"),
    *("image-corrupted", "load-disabled", "out-of-memory", "network-gone", "power-broken"),
}
GOOD = "name: mine\ndescription: d\nfault: {kind: none}\nexpect:\n- then: {phase: done}\n"


def test_everything_that_was_promised_is_shipped() -> None:
    assert set(shipped()) >= WANTED
    assert [scenario.name for scenario in choose([])] == list(shipped())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_scenario_is_sound_and_becomes_a_valid_playbook(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(shipped()[name])
    assert scenario.name == name
    for step in scenario.steps:
        fault = make_fault(step.fault)
        book = tmp_path / "playbook.yaml"
        write_playbook(book, name, TargetFiles(Path("/k"), Path("/i")), step.policy, fault.words())
        playbook = Playbook.model_validate(yaml.safe_load(book.read_text()))
        assert set(fault.words()) <= set(playbook.cmdline.append)
        for case in step.expect:
            assert case.then.phase is not None, "every case says at least where the host ends"


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("kind: none", "kind: scrible"), "3:15", "no fault is called 'scrible'"),
        (("{kind: none}", "{kind: scribble, seconds: -1}"), "3:34", "more than zero"),
        (("{kind: none}", "{kind: scribble, second: 1}"), "3:25", "unknown key `second`"),
        (("{kind: none}", "{}"), "3:8", "no `kind`"),
        (("phase: done", "fase: done"), "5:10", "unknown key `fase`"),
        (("phase: done", "phase: don"), "5:17", "'don' is not one of"),
        (("phase: done", ""), "5:9", "cannot fail"),
        (("phase: done", "attempts: [{stage: purgatry}]"), "5:29", "'purgatry' is not one of"),
        (("{kind: none}", "none"), "3:8", "a mapping is wanted, not 'none'"),
        (("phase: done", "console: ['(']"), "5:19", "not a regular expression"),
        (("expect:\n- then: {phase: done}", ""), "1:1", "`expect` is missing"),
        (("description: d", "description: d\npolicy: {cma: prefre}"), "3:15", "prefre"),
        (("description: d", "description: d\npolicy: {atempts: 2}"), "3:10", "unknown key `atempts`"),
        (("description: d", "description: d\npolicy: {waves: [1]}"), "3:10", "set by the runner"),
        (("description: d", "description: d\nvm: {memory: 1K}"), "3:14", "not usable"),
        (("description: d", "description: d\nvm: {cma: 3G}"), "3:11", "does not fit"),
        (("description: d", "description: d\nvm: {memory: 4G}"), "3:14", "more than 3G"),
        (("name: mine", "name: My Own"), "1:7", "does not look right"),
        (("description: d", "description: d: e"), "2:15", "not valid YAML"),
    ],
)
def test_a_mistake_is_told_with_its_place(
    change: tuple[str, str], place: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}:{place}: "), str(caught.value)
    assert words in caught.value.message


def test_a_fault_key_gets_the_nearest_name_as_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("{kind: none}", "{kind: scribble, second: 1}"))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert "`seconds`" in caught.value.hint


def test_names_and_files_can_be_mixed_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert [s.name for s in choose([str(path), "clean-cma"])] == ["mine", "clean-cma"]
    with pytest.raises(InputError, match="'mine' is there twice"):
        choose([str(path), str(path)])
    with pytest.raises(InputError, match="no scenario 'clean-cna'") as caught:
        choose(["clean-cna"])
    assert "clean-cma" in caught.value.hint


def test_runs_and_a_run_at_the_top_exclude_each_other() -> None:
    run = {"expect": [{"then": {"phase": "done"}}]}
    whole = Scenario.model_validate({"name": "a", "description": "d", "runs": [run, run]})
    assert len(whole.steps) == 2
    with pytest.raises(ValueError, match="`runs` and a run at the top"):
        Scenario.model_validate({"name": "a", "description": "d", "runs": [run], **run})


def test_the_inventory_gets_the_power_that_the_scenario_wants(tmp_path: Path) -> None:
    lab = {"hosts": {"host1": {"address": "127.0.0.1", "power": {"kind": "qmp", "socket": "/q"}}}}
    given = tmp_path / "lab.yaml"
    given.write_text(yaml.safe_dump(lab))
    found = {}
    for power in Power:
        write_inventory(tmp_path / "out.yaml", given, power)
        data = yaml.safe_load((tmp_path / "out.yaml").read_text())
        InventoryFile.model_validate(data)
        found[power] = data["hosts"]["host1"].get("power")
    assert found[Power.QMP] == {"kind": "qmp", "socket": "/q"}
    assert found[Power.NONE] is None
    assert found[Power.BROKEN]["kind"] == found[Power.HANGING]["kind"] == "command"
    assert found[Power.BROKEN]["run"] != found[Power.HANGING]["run"]


def test_words_of_a_fault_join_those_of_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    policy = {"cmdline": {"append": "quiet"}, "deadlines": {"return": "9m"}}
    write_playbook(path, "x", TargetFiles(Path("/k"), Path("/i")), policy, ["a.fault=panic"])
    data = yaml.safe_load(path.read_text())
    assert data["cmdline"] == {"append": ["quiet", "a.fault=panic"]}
    assert data["deadlines"]["return"] == "9m" and data["deadlines"]["load"] == "5m"
