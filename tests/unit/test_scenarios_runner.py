"""Scheduling by memory and jobs, and what a fault makes of a kernel image; nothing is booted."""

from __future__ import annotations

import mmap
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import LabError
from orchestrator.lab.scenarios import ram
from orchestrator.lab.scenarios.faults import hang_at_entry
from orchestrator.lab.scenarios.process import run_rollout
from orchestrator.lab.scenarios.runner import Schedule
from tests.support.labkernels import make_image

PURGATORY, KERNEL = 0x3000, 0x200000
SEGMENTS = (
    {"role": "purgatory", "address": PURGATORY, "memsz": 0x1000},
    {"role": "kernel", "address": KERNEL, "memsz": 0x40000},
)


@given(
    wanted=st.lists(st.integers(1, 40), max_size=12),
    memory=st.integers(1, 60),
    jobs=st.integers(1, 5),
    choice=st.randoms(use_true_random=False),
)
def test_all_run_once_and_never_too_much_at_once(wanted, memory, jobs, choice) -> None:  # type: ignore[no-untyped-def]
    schedule = Schedule(wanted, memory, jobs)
    impossible = schedule.impossible()
    assert {wanted[i] > memory for i in impossible} <= {True}
    done: list[int] = []
    while not schedule.over:
        while (index := schedule.next()) is not None:
            done.append(index)
        assert schedule.running, "whatever waits fits alone, so that something always runs"
        assert len(schedule.running) <= jobs
        assert sum(wanted[i] for i in schedule.running) <= memory
        schedule.ended(choice.choice(sorted(schedule.running)))
    assert sorted([*done, *impossible]) == list(range(len(wanted)))


def test_a_small_one_goes_before_one_that_does_not_fit_yet() -> None:
    schedule = Schedule([6, 6, 3], memory=10, jobs=3)
    assert [schedule.next(), schedule.next(), schedule.next()] == [0, 2, None]
    schedule.ended(0)
    assert schedule.next() == 1


def test_the_entry_of_an_image_is_patched_and_nothing_else() -> None:
    image = make_image("7.3.4", btf=False) + b"\x90" * 0x1000
    hanging = hang_at_entry(image)
    entry = 2 * 512 + 0x200  # one setup sector behind the boot sector
    assert hanging[entry : entry + 2] == b"\xeb\xfe"
    assert hanging[:entry] == image[:entry] and hanging[entry + 2 :] == image[entry + 2 :]
    with pytest.raises(LabError, match="no bzImage"):
        hang_at_entry(b"\0" * 0x2000)


def memory_with(*patches: tuple[int, bytes]) -> mmap.mmap:
    memory = mmap.mmap(-1, 1 << 20)
    for offset, data in patches:
        memory[offset : offset + len(data)] = data
    return memory


def test_the_digest_is_seen_in_purgatory() -> None:
    entry = (PURGATORY + 0x10, struct.pack("<Q", KERNEL + 0x200))
    region = (PURGATORY + 0x800, struct.pack("<QQ", KERNEL, 0x40000))
    assert ram.digest_stored(memory_with(entry, region), SEGMENTS) is True
    assert ram.digest_stored(memory_with(entry), SEGMENTS) is False
    assert ram.digest_stored(memory_with(), SEGMENTS) is None, "what lies there is not purgatory"
    assert ram.digest_stored(memory_with(entry), SEGMENTS[:1]) is None


def test_a_page_that_nobody_uses_is_chosen() -> None:
    used = memory_with((0x4000, b"\1"), (0x5FFF, b"\1"))
    assert ram.free_page_near(used, 0, 0x9000) == 0x6000
    full = mmap.mmap(-1, 1 << 16)
    full.write(b"\1" * (1 << 16))
    assert ram.free_page_near(full, 0x1000, 0x9000) is None
    full[0x1000:0x2000] = bytes(0x1000)
    assert ram.free_page_near(full, 0x1000, 0x9000) == 0x1000
    assert ram.free_page_near(full, 0x1001, 0x9000) is None


def test_the_rollout_is_the_real_command_and_its_refusal_is_told(tmp_path: Path) -> None:
    """No playbook: bad input, no host touched, and the reason comes back."""
    done = run_rollout(
        tmp_path / "no.yaml", tmp_path / "no.yaml", tmp_path / "j.sqlite", tmp_path, 120, lambda: False
    )
    assert done.exit_code == 2 and "cannot read" in done.why


def test_a_rollout_is_stopped_when_it_is_to_stop(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    done = run_rollout(
        tmp_path / "no.yaml", tmp_path / "no.yaml", tmp_path / "j.sqlite", tmp_path, 120, stop.is_set
    )
    assert done.exit_code is None and done.why == "interrupted"
