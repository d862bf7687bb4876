"""Playbook files: short forms, variables, contradictions, and the shipped examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.plan import make_plan
from orchestrator.domain.playbook import FailureBudget, Playbook, WaveSize
from orchestrator.domain.policy import GUARD_SECONDS, WATCHDOG_SECONDS, CmaPolicy
from orchestrator.domain.values import parse_duration
from orchestrator.loading.images import inspect_images
from orchestrator.loading.inventory import load_inventory
from orchestrator.loading.playbook import load_playbook
from tests.support.images import lab_variables
from workers.hostagent import guard, watchdog

EXAMPLES = Path(__file__).parents[2] / "playbooks"
LAB_HOSTS = {
    name: Host(name=name, address="127.0.0.1", port=port, groups=("lab",), labels={"role": role})
    for name, port, role in (("web1", 2201, "cma"), ("flag1", 2202, "flag"), ("old1", 2203, "old"))
}
NOTHING = Inventory(hosts={"a": Host(name="a", address="a")}, variables={"image": "/k", "n": "2"})
START = "name: x\nkernel: {on_host: {image: /k}}\n"


def load(folder: Path, text: str, inventory: Inventory = NOTHING) -> Playbook:
    path = folder / "playbook.yaml"
    path.write_text(text)
    return load_playbook(path, inventory)


def refused(folder: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load(folder, text)
    assert caught.value.hint
    return caught.value


def test_short_forms(tmp_path: Path) -> None:
    text = START + "waves: [1, 50%, {percent: 75}, 100 %]\nfailure_budget: 2.5%\ncmdline: {append: quiet}\n"
    text += "deadlines: {load: 90, return: 1h30m, stop: 1.5m}\n"
    playbook = load(tmp_path, text)
    assert [str(size) for size in playbook.waves] == ["1", "50%", "75%", "100%"]
    assert playbook.waves[1] == WaveSize(percent=50)
    assert playbook.failure_budget == FailureBudget(percent=2.5)
    assert (playbook.deadlines.load, playbook.deadlines.return_, playbook.deadlines.stop) == (90, 5400, 90)
    assert playbook.cmdline.append == ("quiet",)


def test_through_json_and_back(tmp_path: Path) -> None:
    text = (
        START + "waves: [1, 100%]\ncma: require\ndeadlines: {return: 10m}\nkernel: {on_host: {image: /k}}\n"
    )
    playbook = load(tmp_path, text.replace(START, "name: x\n"))
    again = Playbook.model_validate_json(playbook.model_dump_json(by_alias=True))
    assert again == playbook
    assert again.attempts == 1


@pytest.mark.parametrize(
    ("written", "seconds"), [(1, 1), (0.5, 0.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("45", 45)]
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", [0, -1, "0s", "", "fast", "10 minutes", "m", True, None, "1d", float("inf")]
)
def test_durations_that_are_none(written: object) -> None:
    with pytest.raises(ValueError):
        parse_duration(written)


def test_variables_are_filled_in_and_escaped(tmp_path: Path) -> None:
    text = "name: ${n} of $${n}\nattempts: ${n}\nkernel: {on_host: {image: '${image}-${n}'}}\n"
    playbook = load(tmp_path, text)
    assert playbook.name == "2 of ${n}"
    assert playbook.attempts == 2
    assert playbook.kernel.on_host is not None
    assert playbook.kernel.on_host.image == "/k-2"


def test_a_values_text_is_never_filled_in_again(tmp_path: Path) -> None:
    inventory = NOTHING.model_copy(update={"variables": {"a": "${b}", "b": "x"}})
    assert load(tmp_path, START.replace("name: x", "name: ${a}"), inventory).name == "${b}"


def test_relative_files_start_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts/inventory.yaml").write_text("variables: {dir: kernels}\nhosts: {a: }\n")
    inventory = load_inventory(tmp_path / "hosts/inventory.yaml")
    text = "name: x\nkernel: {on_controller: {image: vmlinuz, initrd: '${dir}/initrd'}}\n"
    files = load(tmp_path, text, inventory).kernel.on_controller
    assert files is not None
    assert files.image == str(tmp_path / "vmlinuz")
    assert files.initrd == str(tmp_path / "hosts/kernels/initrd")


@pytest.mark.parametrize(
    ("text", "at", "says", "hint"),
    [
        (START + "wave: [1]", (3, 1), "unknown key `wave`", "did you mean `waves`?"),
        (START + "deadlines: {retrun: 1m}", (3, 13), "unknown key `retrun` in `deadlines`", "`return`"),
        ("name: x\nkernel: {on_hosts: {image: /k}}", (2, 10), "unknown key `on_hosts`", "`on_host`"),
        (START + "waves: [{cuont: 1}, 100%]", (3, 10), "unknown key `cuont` in `waves[0]`", "`count`"),
        (START + "zzz: 1", (3, 1), "unknown key `zzz`", "known keys: name, hosts"),
        ("name: x", (1, 1), "`kernel` is missing", "add `kernel:`"),
        ("name: x\nkernel: {}", (2, 9), "neither of `on_controller` and `on_host`", "exactly one"),
        (
            "name: x\nkernel: {on_host: {image: /k}, on_controller: {image: k}}",
            (2, 9),
            "both of `on_controller` and `on_host`",
            "exactly one",
        ),
        ("name: x\nkernel: {on_host: {image: boot/k}}", (2, 27), "must begin with `/`", "in full"),
        (
            "name: x\nkernel: {on_host: {image: /k, image_sha256: abc}}",
            (2, 45),
            "'abc' does not look right",
            "64",
        ),
        (
            f"name: x\nkernel: {{on_host: {{image: /k, initrd_sha256: {'a' * 64}}}}}",
            (2, 46),
            "without an `initrd`",
            "take the hash away",
        ),
        (
            START + "waves: [50%, 20%, 100%]",
            (3, 14),
            "waves must grow: 20% comes after 50%",
            "[1, 50%, 100%]",
        ),
        (START + "waves: [5, 5, 100%]", (3, 12), "waves must grow: 5 comes after 5", "[1, 50%, 100%]"),
        (START + "waves: [1, 50%]", (3, 12), "never reach the whole fleet", "`partial: true`"),
        (START + "waves: [1, 10]", (3, 12), "never reach the whole fleet", "100%"),
        (START + "waves: []", (3, 8), "there is no wave", "at least one"),
        (START + "waves: [0, 100%]", (3, 9), "0 is too small", "1 or more"),
        (START + "waves: [150%]", (3, 9), "150.0 is too large", "100"),
        (START + "waves: [half]", (3, 9), "neither a count nor a percentage: 'half'", "10%"),
        (START + "waves: [0.5, 100%]", (3, 9), "neither a count nor a percentage", "10%"),
        (START + "waves: [true]", (3, 9), "neither a count nor a percentage", "10%"),
        (START + "waves: [{}]", (3, 9), "exactly one of `count` and `percent`", "2 or 10%"),
        (START + "partial: true", (3, 10), "the last wave is 100%", "one of the two"),
        (START + "failure_budget: {count: 1, percent: 1}", (3, 17), "exactly one of", "2 or 10%"),
        (START + "failure_budget: -1", (3, 17), "-1 is too small", "0 or more"),
        (START + "cma: require\nattempts: 2", (4, 11), "`cma: require` and `attempts: 2`", "prefer"),
        (START + "after_failure: stop\nattempts: 3", (4, 11), "never a second one", "retry"),
        (START + "cma: prefered", (3, 6), "'prefered' is not one of", "did you mean `prefer`?"),
        (START + "jump: fast", (3, 7), "'fast' is not one of", "direct"),
        (START + "attempts: 99", (3, 11), "99 is too large", "10 or less"),
        (START + "at_once: 0", (3, 10), "0 is too small", "1 or more"),
        (START + "deadlines: {load: soon}", (3, 19), "not a duration: 'soon'", "1h30m"),
        (START + "deadlines: {load: 0}", (3, 19), "more than zero", "1s"),
        (START + "checks: {skip: [nonce, lgo]}", (3, 24), "no check is called `lgo`", "did you mean `log`?"),
        (START + "checks: {log_ignore: ['(']}", (3, 22), "not a regular expression", "re"),
        (START + "cmdline: {append: ['-- x']}", (3, 19), "hand the words after it to init", "kept"),
        (START + "cmdline: {reuse: false, remove: [quiet]}", (3, 10), "starts without it", "one of the two"),
        (START + "hosts: ${nn}", (3, 8), "no variable `nn`", "did you mean `n`?"),
        (START + "hosts: web & ${zz}", (3, 14), "no variable `zz`", "known variables: image, n"),
        (START + "hosts: ${n", (3, 8), "not a variable: ${n", "$${"),
    ],
)
def test_each_mistake_has_its_place(
    tmp_path: Path, text: str, at: tuple[int, int], says: str, hint: str
) -> None:
    error = refused(tmp_path, text)
    assert says in error.message
    assert error.position is not None
    assert (error.position.line, error.position.column) == at
    assert hint in error.hint
    assert not error.others


def test_where_no_retry_can_follow_there_is_one_attempt(tmp_path: Path) -> None:
    assert load(tmp_path, START).attempts == 3
    assert load(tmp_path, START + "cma: require").attempts == 1
    assert load(tmp_path, START + "after_failure: stop").attempts == 1
    assert load(tmp_path, START + "cma: require\nattempts: 1").cma.use is CmaPolicy.REQUIRE


def test_partial_waves_are_allowed_when_said(tmp_path: Path) -> None:
    assert load(tmp_path, START + "waves: [1, 50%]\npartial: true").partial


def example_inventory(name: str, folder: Path) -> Inventory:
    """The lab's inventory for playbooks of the lab, else the shipped one."""
    text = (EXAMPLES / name).read_text()
    if "lab_target" in text:
        return Inventory(hosts=LAB_HOSTS, groups={"lab": tuple(LAB_HOSTS)}, variables=lab_variables(folder))
    return load_inventory(EXAMPLES / "inventory.example.yaml")


def examples() -> list[str]:
    names = sorted(path.name for path in EXAMPLES.glob("*.yaml") if "inventory" not in path.name)
    assert len(names) >= 5
    return names


@pytest.mark.parametrize("name", examples())
def test_shipped_examples_load_and_plan(name: str, tmp_path: Path) -> None:
    inventory = example_inventory(name, tmp_path)
    playbook = load_playbook(EXAMPLES / name, inventory)
    assert playbook.name == name.removesuffix(".yaml")
    plan = make_plan(playbook, inventory, inspect_images(playbook))
    assert plan.waves
    assert all(host.steps for host in plan.hosts if host.wave)


@pytest.mark.parametrize("name", examples())
def test_shipped_examples_explain_themselves(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert text.startswith("# "), "what it is for comes first"
    assert len([line for line in text.splitlines()[1:] if "#" in line]) >= 3


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("recovery: {watchdog: 4s}", 22, "a host takes 5 to 3600 s"),
        ("recovery: {watchdog: 61m}", 22, "a host takes 5 to 3600 s"),
        ("recovery: {guard: 9s}", 19, "a host takes 10 to 86400 s"),
        ("recovery: {gaurd: 9s}", 12, "unknown key `gaurd`"),
        ("finalise: command", 11, "nothing to run"),
        ("finalise: {method: grub, run: [x]}", 31, "`run` belongs to"),
        ("finalise: {method: local, run: [x], entry: y}", 44, "`entry` belongs to"),
        ('finalise: {method: command, run: ""}', 34, "not a word of a command"),
        ('finalise: {method: local, run: [a, "b\\0c"]}', 32, "not a word of a command"),
    ],
)
def test_what_a_host_would_refuse_after_the_load_is_refused_at_once(
    text: str, column: int, words: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, START + text + "\n")
    assert error.position is not None and (error.position.line, error.position.column) == (3, column)
    assert words in error.message


def test_the_limits_are_those_of_the_agent(tmp_path: Path) -> None:
    assert (watchdog.LEAST, watchdog.MOST) == WATCHDOG_SECONDS
    assert (guard.LEAST, guard.MOST) == GUARD_SECONDS
    recovery = load(tmp_path, START + "recovery: {watchdog: 5s, guard: 24h}\n").recovery
    assert (recovery.watchdog, recovery.guard) == (5, 86400)
