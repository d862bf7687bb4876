"""What a rollout would do, with and without the hosts' facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.bootimage import Images
from orchestrator.domain.errors import CommandLineTooLong, InputError
from orchestrator.domain.facts import CmaArea, HostFacts
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.plan import Action, HostPlan, check_command_line, choose_hosts, make_plan
from orchestrator.domain.playbook import HostImage, Kernel, Playbook
from orchestrator.loading.images import inspect_images
from tests.support.images import BUILD_ID, RELEASE, bzimage, cpio

INVENTORY = Inventory(
    hosts={
        name: Host(name=name, address=name, groups=groups)
        for name, groups in {
            "web1": ("web",),
            "web2": ("web", "slow"),
            "web3": ("web",),
            "db1": ("db",),
        }.items()
    },
    groups={"web": ("web1", "web2", "web3"), "slow": ("web2",), "db": ("db1",)},
)
CMA = HostFacts(
    release="7.2.12",
    machine="x86_64",
    build_id="ff",
    cmdline="root=/dev/vda",
    mem_total_bytes=2 << 30,
    knows_no_cma=True,
    cma_areas=(CmaArea(name="reserved", size=384 << 20, total_pages=98304),),
)
OLD = replace(CMA, release="6.12.57", knows_no_cma=False, cma_areas=None, meminfo_read=True)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return inspect_images(playbook(tmp_path))


def playbook(folder: Path, **changes: Any) -> Playbook:
    (folder / "vmlinuz").write_bytes(bzimage())
    (folder / "initrd").write_bytes(cpio("init"))
    files = {"image": str(folder / "vmlinuz"), "initrd": str(folder / "initrd")}
    data = {"name": "x", "hosts": "web", "kernel": {"on_controller": files}, "waves": [1, "100%"]}
    return Playbook.model_validate(data | changes)


def one(folder: Path, facts: HostFacts, **changes: Any) -> HostPlan:
    """The plan of web1 with these facts."""
    plays = playbook(folder, **changes)
    plan = make_plan(plays, INVENTORY, inspect_images(plays), facts={"web1": facts})
    return plan.hosts[0]


def test_waves_targets_and_who_is_left_out(tmp_path: Path, images: Images) -> None:
    plan = make_plan(playbook(tmp_path, failure_budget="50%"), INVENTORY, images)
    assert plan.waves == (("web1",), ("web2", "web3"))
    assert (plan.may_fail, plan.at_once, plan.with_facts) == (1, 10, False)
    assert RELEASE in plan.target and BUILD_ID.hex() in plan.target
    actions = {host.host: (host.wave, host.action) for host in plan.hosts}
    assert actions == {
        "web1": (1, Action.JUMP),
        "web2": (2, Action.JUMP),
        "web3": (2, Action.JUMP),
        "db1": (None, Action.LEAVE_OUT),
    }
    assert plan.hosts[3].reason == "not selected by `hosts: web`"
    assert "NO_CMA after a failure" in plan.hosts[0].steps[0]


def test_limit_narrows_the_fleet(tmp_path: Path, images: Images) -> None:
    plan = make_plan(playbook(tmp_path), INVENTORY, images, limit="!slow")
    assert plan.waves == (("web1",), ("web3",))
    assert plan.hosts[1].reason == "left out by --limit"
    assert plan.hosts[3].reason == "not selected by `hosts: web`"


@pytest.mark.parametrize(
    ("limit", "says"),
    [("db", "leaves none"), ("wbe1", "--limit: selector"), ("", "--limit: selector")],
)
def test_limits_that_leave_nothing(tmp_path: Path, limit: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose_hosts(playbook(tmp_path), INVENTORY, limit)


def test_partial_waves_leave_hosts_out(tmp_path: Path, images: Images) -> None:
    plan = make_plan(playbook(tmp_path, waves=[1], partial=True), INVENTORY, images)
    assert plan.hosts[2].action is Action.LEAVE_OUT
    assert "partial" in plan.hosts[2].reason


def test_the_ladder_of_a_host_with_cma(tmp_path: Path) -> None:
    steps = one(tmp_path, CMA).steps
    assert [step.split(":")[0] for step in steps] == ["cma", "no_cma", "no_cma"]
    assert [step.split(":")[0] for step in one(tmp_path, OLD).steps] == ["plain", "plain", "plain"]
    assert [step.split(":")[0] for step in one(tmp_path, CMA, cma="never").steps] == ["no_cma"] * 3
    assert len(one(tmp_path, CMA, cma="require").steps) == 1


def test_a_host_that_cannot_do_what_is_required_is_refused(tmp_path: Path) -> None:
    host = one(tmp_path, OLD, cma="require")
    assert host.action is Action.REFUSE
    assert "requires CMA" in host.reason


def test_a_host_on_the_target_is_skipped(tmp_path: Path) -> None:
    current = replace(CMA, release=RELEASE, build_id=BUILD_ID.hex())
    assert one(tmp_path, current).action is Action.SKIP
    assert one(tmp_path, current, even_if_current=True).action is Action.JUMP
    assert one(tmp_path, replace(current, build_id="ff")).action is Action.JUMP, "same name, another build"
    assert one(tmp_path, replace(current, build_id=None)).action is Action.SKIP, "the release is all there is"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"load_disabled": True}, "kexec_load_disabled"),
        ({"machine": "aarch64"}, "the image is for x86_64"),
        ({"mem_total_bytes": 100 << 20}, "more than half of its memory"),
        ({"cmdline": "x" * 2010}, "the image allows 2017"),
    ],
)
def test_what_would_be_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    host = one(tmp_path, replace(CMA, **changes))
    assert host.action is Action.REFUSE
    assert says in host.reason
    assert not host.steps


def test_undecided_hosts_say_so(tmp_path: Path, images: Images) -> None:
    plays = playbook(tmp_path, hosts="kernel<7")
    assert "decided when its facts are there" in make_plan(plays, INVENTORY, images).hosts[0].notes[0]
    plan = make_plan(plays, INVENTORY, images, facts={"web1": CMA, "web2": OLD})
    assert [host.action for host in plan.hosts[:3]] == [Action.LEAVE_OUT, Action.JUMP, Action.JUMP]
    assert [bool(host.notes) for host in plan.hosts[:3]] == [False, False, True]


def test_a_host_that_could_not_be_asked_says_so(tmp_path: Path, images: Images) -> None:
    unasked = {"web2": "the login was refused"}
    plan = make_plan(playbook(tmp_path), INVENTORY, images, facts={"web1": CMA}, unasked=unasked)
    assert not plan.hosts[0].notes
    assert plan.hosts[1].notes == ("it could not be asked: the login was refused",)


def test_words_of_the_playbook_alone_may_be_too_many(tmp_path: Path, images: Images) -> None:
    check_command_line(playbook(tmp_path, cmdline={"append": ["x" * 1000]}), images)
    with pytest.raises(CommandLineTooLong):
        check_command_line(playbook(tmp_path, cmdline={"append": ["x" * 2000]}), images)


def test_images_on_the_hosts(tmp_path: Path) -> None:
    plays = playbook(tmp_path, kernel={"on_host": {"image": "/boot/vmlinuz-*"}})
    plan = make_plan(plays, INVENTORY, Images(), facts={"web1": CMA})
    assert "/boot/vmlinuz-*" in plan.target
    assert plan.hosts[0].action is Action.JUMP


def test_a_plan_says_when_hazards_are_only_reported(tmp_path: Path) -> None:
    hosts = {"a": Host(name="a", address="192.0.2.1")}
    kernel = Kernel(on_host=HostImage(image="/boot/vmlinuz"))

    def steps(cma: object) -> str:
        playbook = Playbook.model_validate({"name": "p", "kernel": kernel, "cma": cma})
        return " ".join(make_plan(playbook, Inventory(hosts=hosts), Images()).hosts[0].steps)

    assert "AUDIT ONLY REPORTS" in steps({"audit": "report", "repair": False})
    assert "no repair" in steps({"repair": False})
    assert "REPORTS" not in steps("prefer") and "no repair" not in steps("prefer")
