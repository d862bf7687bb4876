"""`kexec-fleet host doctor` on a stock 7.2 host whose CMA area misaligns the kernel: repaired, nothing left.

No test here lets the host jump: it stays on the kernel that its firmware booted.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.spec import LabOptions, parse_hosts
from tests.support.rollouts import Rollouts

HOST = "doc1"
AREA = "/sys/kernel/mm/cma/reserved"
# One kexec_file_load(2) of the files as somebody else would: no claim of ours, no keeper.
LOADER = """
import ctypes, os, sys
kernel, initrd = (os.open(path, os.O_RDONLY) for path in sys.argv[1:])
line = b"root=/dev/vda"
libc = ctypes.CDLL(None, use_errno=True)
done = libc.syscall(320, kernel, initrd, len(line) + 1, line, ctypes.c_ulong(0))
sys.exit(ctypes.get_errno() if done else 0)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        fleet = LabFleet.open("test-doctor")
        made = Rollouts(fleet, tmp_path_factory.mktemp("doctor"))
        try:
            fleet.up(parse_hosts(f"{HOST}=7.2"), LabOptions(target="7.3"), lambda event: print(event.text))
            yield made
        finally:
            for process in made.processes:
                if process.poll() is None:
                    made.kill(process)
            fleet.down()


def examined(lab: Rollouts, *words: str) -> tuple[int, dict[str, Any]]:
    """(exit code, the host's part of the answer) of `host doctor` with the lab's target kernel."""
    inventory = str(lab.fleet.inventory_path)
    variables = yaml.safe_load(lab.fleet.inventory_path.read_text())["variables"]
    files = ["--image", variables["lab_target_image"], "--initrd", variables["lab_target_initrd"]]
    found = lab.finish(lab.start("host", "doctor", HOST, "-i", inventory, "--json", *files, *words))
    return found["exit_code"], found["hosts"][HOST]


def state(lab: Rollouts) -> dict[str, str]:
    """What a doctor must leave as it was."""
    files = ["/proc/sys/kernel/random/boot_id", "/sys/kernel/kexec_loaded", f"{AREA}/available_pages"]
    values = lab.on_host(HOST, "cat " + " ".join(files)).split()
    assert len(values) == 3
    return dict(zip(files, values, strict=True))


@pytest.mark.timeout(1800)
def test_a_misaligned_kernel_is_found_and_repaired_and_nothing_stays(lab: Rollouts) -> None:
    before = state(lab)
    code, found = examined(lab)
    assert code == 0 and found["health"] == "repaired", found
    assert [one["audit"]["verdict"] for one in found["tries"]] == ["hazardous", "sound"]
    assert [one["kind"] for one in found["tries"][0]["audit"]["hazards"]] == ["misaligned_kernel"]
    placement, audit = found["placement"], found["audit"]
    assert placement["wholly_in_cma"] and placement["kernel_misaligned"] is False
    assert placement["bytes_in_cma"] == placement["bytes_total"] > 60 << 20
    assert {one["in_cma"] for one in placement["segments"]} == {True}
    assert audit["strength"] == "read_back"
    assert found["power"]["works"] is True and found["console"]["there"] is True
    assert found["watchdog"]["present"] is False and found["advice"]
    assert found["after"]["leaked_bytes"] == 0
    assert before["/sys/kernel/kexec_loaded"] == "0" and state(lab) == before


@pytest.mark.timeout(1800)
def test_without_repair_it_is_hazardous_and_nothing_stays(lab: Rollouts) -> None:
    before = state(lab)
    code, found = examined(lab, "--no-repair")
    assert code == 1 and found["health"] == "hazardous", found
    assert found["fallback"].startswith("no_cma: ") and len(found["tries"]) == 1
    assert state(lab) == before


@pytest.mark.timeout(1800)
def test_an_image_of_somebody_else_is_kept_unless_forced(lab: Rollouts) -> None:
    empty = state(lab)
    files = lab.on_host(HOST, "ls -S /var/lib/kexec-fleet/artifacts/*").split()[:2]
    loader = f"python3 -c {shlex.quote(LOADER)} {' '.join(files)}; echo $?"
    assert lab.on_host(HOST, loader).strip() == "0", files
    loaded = state(lab)
    assert loaded["/sys/kernel/kexec_loaded"] == "1"
    code, found = examined(lab)
    assert code == 1 and found["health"] == "skipped" and "an image is loaded already" in found["reason"]
    assert state(lab) == loaded
    code, found = examined(lab, "--force")
    assert code == 0 and found["health"] == "repaired", found
    assert state(lab) == empty


@pytest.mark.timeout(1800)
def test_loads_that_a_sysctl_forbids_are_told_and_not_tried(lab: Rollouts) -> None:
    """The last test: the sysctl cannot be taken back before the next boot."""
    lab.on_host(HOST, "echo 1 > /proc/sys/kernel/kexec_load_disabled")
    before = state(lab)
    code, found = examined(lab)
    assert code == 1 and found["health"] == "refused" and "kexec_load_disabled is 1" in found["reason"]
    assert found["tries"] == [] and found["kernel"]["may_load"] is False
    assert state(lab) == before
