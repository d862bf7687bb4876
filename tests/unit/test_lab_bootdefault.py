"""`kexec-fleet lab default`: what a VM's firmware boots from its next power-on. No VM."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.domain.bootimage import HEAD_BYTES, parse_header
from orchestrator.domain.inventory import Inventory
from orchestrator.domain.policy import FinaliseMethod
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.inventory import InventoryTarget, inventory_text
from orchestrator.lab.state import LabState, Target, read_state, write_state
from orchestrator.lab.vm import qemu_arguments
from orchestrator.loading.playbook import load_playbook
from tests.support.images import RELEASE, bzimage
from tests.unit.test_lab_cli import Run
from tests.unit.test_lab_cli import run as run
from tests.unit.test_lab_spec import vm_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A kernel and its initrd."""
    image, initrd = tmp_path / "vmlinuz", tmp_path / "initrd.img"
    image.write_bytes(bzimage())
    initrd.write_bytes(b"initrd")
    return str(image), str(initrd)


@pytest.fixture
def fleet(run: Run) -> LabFleet:
    """A lab of two hosts that no QEMU runs."""
    fleet = LabFleet.open("mine")
    vms = (vm_config("old1"), vm_config("cma1"))
    write_state(fleet.paths, LabState(Target("/t", "/i", "7.3.4", "7.3"), vms))
    return fleet


def test_the_next_qemu_boots_the_new_kernel_and_the_others_keep_theirs(
    run: Run, fleet: LabFleet, files: tuple[str, str]
) -> None:
    before = {vm.host: vm.config for vm in fleet.vms()}
    code, out, _ = run("default", "old1", *files, "--name", "mine")
    assert (code, out) == (0, f"old1: 7.2.12 -> {RELEASE} from the next power-on\n")
    config = fleet.vm("old1").config
    assert (config.vmlinuz, config.initrd, config.release) == (*files, RELEASE)
    assert (config.kernel_spec, config.cmdline) == (before["old1"].kernel_spec, before["old1"].cmdline)
    words = qemu_arguments(config)
    assert words[words.index("-kernel") + 1] == files[0] and words[words.index("-initrd") + 1] == files[1]
    assert fleet.vm("cma1").config == before["cma1"]
    assert run("default", "old1", *files, "--name", "mine")[1].startswith(f"old1: {RELEASE} -> {RELEASE}")


def test_host_and_files_come_from_the_environment(
    run: Run, fleet: LabFleet, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `finalise: {method: local}` calls it."""
    monkeypatch.setenv("KEXEC_FLEET_HOST", "cma1")
    monkeypatch.setenv("KEXEC_FLEET_KERNEL", files[0])
    monkeypatch.setenv("KEXEC_FLEET_INITRD", files[1])
    assert run("default", "--name", "mine")[0] == 0
    assert fleet.vm("cma1").config.release == RELEASE
    # The kernel lies on the hosts: there is no file here that QEMU could boot.
    monkeypatch.setenv("KEXEC_FLEET_KERNEL", "")
    code, _, err = run("default", "--name", "mine")
    assert code == 2 and "Missing argument 'image'" in err


def test_relative_names_are_remembered_in_full(
    run: Run, fleet: LabFleet, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("default", "old1", "vmlinuz", "initrd.img", "--name", "mine")[0] == 0
    assert (fleet.vm("old1").config.vmlinuz, fleet.vm("old1").config.initrd) == files


def without_release() -> bytes:
    image = bytearray(bzimage())
    image[0x20E:0x210] = b"\0\0"  # Documentation/arch/x86/boot.rst: kernel_version, 0 where there is none
    return bytes(image)


@pytest.mark.parametrize(
    ("host", "image", "initrd", "says"),
    [
        ("old7", bzimage(), True, "has no host 'old7'"),
        ("old1", None, True, "cannot read"),
        ("old1", b"#!/bin/sh\n" * 200, True, "vmlinuz: "),
        ("old1", b"", True, "vmlinuz: "),
        ("old1", without_release(), True, "does not tell its release"),
        ("old1", bzimage(), False, "no initrd at"),
    ],
)
def test_what_cannot_be_booted_changes_nothing(
    run: Run, fleet: LabFleet, tmp_path: Path, host: str, image: bytes | None, initrd: bool, says: str
) -> None:
    before = read_state(fleet.paths)
    if image is not None:
        (tmp_path / "vmlinuz").write_bytes(image)
    if initrd:
        (tmp_path / "initrd.img").write_bytes(b"initrd")
    words = ("default", host, str(tmp_path / "vmlinuz"), str(tmp_path / "initrd.img"), "--name", "mine")
    code, out, err = run(*words)
    assert (code, out) == (2, "") and says in err and "hint: " in err
    assert read_state(fleet.paths) == before


def test_a_lab_that_is_not_there(run: Run, files: tuple[str, str]) -> None:
    code, _, err = run("default", "old1", *files, "--name", "typo")
    assert code == 2 and "there is no lab 'typo'" in err


def test_the_labs_playbook_calls_it_with_the_inventorys_words(tmp_path: Path) -> None:
    """`${...}` is filled in within a list, whatever the lab's folder and the program are called."""
    target = InventoryTarget(Path("/cache/vmlinuz"), Path("/cache/initrd.img"), "7.3.4")
    program = "/opt/kexec fleet/bin/kexec-fleet"
    text = inventory_text("mine", Path("/lab/id"), target, [], program)
    variables = yaml.safe_load(text)["variables"]
    playbook = load_playbook(ROOT / "playbooks" / "lab-demo.yaml", Inventory(hosts={}, variables=variables))
    assert playbook.finalise.method is FinaliseMethod.LOCAL
    assert playbook.finalise.run == (program, "lab", "default", "--name", "mine")


def test_the_image_of_these_tests_is_one() -> None:
    assert parse_header(bzimage()[:HEAD_BYTES], len(bzimage())).release == RELEASE
