"""What is asked of a lab that is there: the same is fine, anything else is refused and nothing is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError
from orchestrator.lab.agree import check_inventory_place, new_hosts, read_available_memory
from orchestrator.lab.copies import remove_copies, write_copy
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.progress import ProgressEvent
from orchestrator.lab.spec import HostSpec, InitKind, LabOptions
from orchestrator.lab.state import LabState, Target
from orchestrator.lab.vm import VmConfig
from tests.unit.test_lab_spec import vm_config

RELEASE = "6.12.117+deb13-cloud-amd64"


def made(host: str = "a", **changes: object) -> VmConfig:
    cmdline = "panic=10 kexec_fleet_lab.init=mini cma=384M"
    config = vm_config(host, spec=RELEASE, release=RELEASE)
    return replace(config, **{"cmdline": cmdline, **changes})  # type: ignore[arg-type]


def lab(*vms: VmConfig) -> LabState:
    return LabState(Target("/t", "/i", "7.3.4", "7.3"), vms)


def ask(state: LabState | None, *specs: HostSpec, **options: object) -> list[HostSpec] | None:
    """With all of `options` given by the user."""
    asked = LabOptions(**options, given=frozenset(options))  # type: ignore[arg-type]
    return new_hosts(state, specs or None, asked, "mine")


def test_hosts_that_are_there_are_left_alone() -> None:
    assert ask(lab(made()), HostSpec("a", RELEASE), HostSpec("b", "7.3")) == [HostSpec("b", "7.3")]
    assert ask(lab(made())) == []
    assert ask(None) is None
    assert ask(None, HostSpec("a", "6.12"), memory=1 << 30) == [HostSpec("a", "6.12")]


@pytest.mark.parametrize("asked", ["6", "6.12", "6.12.117", RELEASE])
def test_a_prefix_of_its_release_is_the_same_kernel(asked: str) -> None:
    assert ask(lab(made()), HostSpec("a", asked)) == []
    assert ask(lab(made(kernel_spec="/boot/mine")), HostSpec("a", "/boot/mine")) == []


@pytest.mark.parametrize("asked", ["7.3", "6.1", "6.12.1", "6.12.118", "/boot/vmlinuz"])
def test_another_kernel_is_refused(asked: str) -> None:
    with pytest.raises(
        InputError, match=rf"made with kernel 6\.12\.117\+deb13-cloud-amd64, not {asked}"
    ) as it:
        ask(lab(made()), HostSpec("a", asked))
    assert "lab down --name mine" in it.value.hint


def test_other_sizes_are_refused_in_one_text() -> None:
    options = {"memory": 4 << 30, "cma": "1G", "cpus": 2, "init": InitKind.SYSTEMD}
    with pytest.raises(InputError) as caught:
        ask(lab(made()), HostSpec("a", "6.12"), **options)
    assert caught.value.message == (
        "host 'a' was made with --memory 2048M --cma 384M --cpus 1 --init mini, "
        "not --memory 4096M --cma 1G --cpus 2 --init systemd"
    )


@pytest.mark.parametrize("cma", ["384M", "393216K"])
def test_the_same_sizes_are_fine(cma: str) -> None:
    options = {"memory": 2 << 30, "cma": cma, "cpus": 1, "init": InitKind.MINI}
    assert ask(lab(made()), HostSpec("a", "6.12"), **options) == []


def test_no_cma_and_none_are_the_same() -> None:
    without = made(cmdline="panic=10 kexec_fleet_lab.init=mini")
    assert ask(lab(without), HostSpec("a", "6.12"), cma="") == []
    with pytest.raises(InputError, match="made with --cma none, not --cma 384M"):
        ask(lab(without), HostSpec("a", "6.12"), cma="384M")


def test_only_what_was_given_counts_and_only_for_the_hosts_meant() -> None:
    large = made("a", memory=4 << 30)
    assert new_hosts(lab(large), [HostSpec("a", "6.12")], LabOptions(), "mine") == []
    assert ask(lab(large), HostSpec("b", "6.12"), memory=2 << 30) == [HostSpec("b", "6.12")]
    with pytest.raises(InputError, match="'a' was made with --memory 4096M"):
        ask(lab(large), memory=2 << 30)  # no host named: all that there are


def test_an_inventory_without_a_folder_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path / "labs"))
    place = tmp_path / "no/such/inv.yaml"
    with pytest.raises(InputError, match="there is no folder"):
        LabFleet.open("a").up(None, LabOptions(inventory=place))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is a folder"):
        check_inventory_place(tmp_path)
    check_inventory_place(tmp_path / "inv.yaml")
    check_inventory_place(None)


def test_down_removes_the_inventories_that_are_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path / "labs"))
    fleet = LabFleet.open("a")
    ours, changed, gone = (tmp_path / name for name in ("ours.yaml", "changed.yaml", "gone.yaml"))
    for place in (ours, changed, gone):
        write_copy(fleet.paths, place, "first")
    write_copy(fleet.paths, ours, "second")
    changed.write_text("the user's")
    gone.unlink()
    said: list[str] = []
    fleet.down(lambda event: said.append(event.text))
    assert not ours.exists() and changed.read_text() == "the user's"
    assert said == [f"removed the inventory {ours}", f"the inventory {changed} was changed since; it stays"]


def test_a_damaged_record_of_copies_is_no_obstacle(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path)
    paths.copies.write_text("[half")
    events: list[ProgressEvent] = []
    remove_copies(paths, events.append)
    assert events == []


def test_available_memory_is_the_kernels_word(tmp_path: Path) -> None:
    source = tmp_path / "meminfo"
    source.write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   42 kB\n")
    assert read_available_memory(source) == 42 * 1024
