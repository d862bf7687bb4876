"""A VM whose RAM this machine can reach: how QEMU is asked, and how a lab that is there is compared."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError, LabError
from orchestrator.lab.agree import new_hosts
from orchestrator.lab.paths import LabPaths
from orchestrator.lab.spec import HostSpec, LabOptions
from orchestrator.lab.state import LabState, Target, read_state, write_state
from orchestrator.lab.vm import Vm, qemu_arguments
from tests.unit.test_lab_spec import vm_config


def test_qemu_gets_a_memory_backend_only_where_it_is_wanted() -> None:
    words = qemu_arguments(replace(vm_config("a"), shared_memory=True))
    assert words[words.index("-machine") + 1] == "pc,memory-backend=ram"
    assert "memory-backend-memfd,id=ram,size=2048M,share=on" in words
    plain = " ".join(qemu_arguments(vm_config("a")))
    assert "-machine pc " in plain and "memory-backend" not in plain


def test_a_state_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path / "lab")
    state = LabState(Target("/t", "/i", "7.3.4", "7.3"), (vm_config("a"),))
    write_state(paths, state)
    data = json.loads(paths.state.read_text())
    del data["vms"][0]["shared_memory"]
    paths.state.write_text(json.dumps(data))
    assert read_state(paths) == state
    assert asdict(vm_config("a"))["shared_memory"] is False


def test_another_choice_than_the_hosts_is_refused() -> None:
    state = LabState(Target("/t", "/i", "7.3.4", "7.3"), (vm_config("a"),))
    asked = LabOptions(shared_memory=True, given=frozenset({"shared_memory"}))
    with pytest.raises(InputError, match="made with --shared-memory no, not --shared-memory yes"):
        new_hosts(state, [HostSpec("a", "7.2")], asked, "mine")
    assert new_hosts(state, [HostSpec("a", "7.2")], replace(asked, given=frozenset()), "mine") == []


def test_ram_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="QEMU does not run"):
        Vm(vm_config("a"), tmp_path).guest_ram()
