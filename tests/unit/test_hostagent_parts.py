"""The agent's small parts, each alone: counter, stamp hook, kernel log, headers, lists of /sys."""

from __future__ import annotations

import gc
import os
import platform
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import BOOT, bzimage
from workers.hostagent import counter, devices, image, jump, kernelinfo, kexec
from workers.hostagent.claims import Claim
from workers.hostagent.counter import Counter, Pair
from workers.hostagent.environment import Environment
from workers.hostagent.kexec import Kernel
from workers.hostagent.kmsg import KernelLog, level, text

CLAIM = Claim("journal-a", "r1", "web1", 1, "no\"n'ce", 17, BOOT)
KNOWN_MACHINE = platform.machine() in ("x86_64", "aarch64")


class Asked(Kernel):
    """A kernel that answers every load with one errno."""

    def __init__(self, *errnos: int) -> None:
        self.errnos = list(errnos)
        self.flags: list[int] = []

    def kexec_file_load(self, kernel_fd: int, initrd_fd: int, cmdline: bytes | None, flags: int) -> None:
        assert (kernel_fd, initrd_fd, cmdline) == (-1, -1, None)
        self.flags.append(flags)
        number = self.errnos.pop(0)
        if number:
            raise OSError(number, os.strerror(number))


# -- counter ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not KNOWN_MACHINE, reason="no counter is known for this machine")
def test_the_counter_counts_and_outlives_its_object() -> None:
    read = Counter().read
    gc.collect()
    values = [read() for _ in range(1000)]
    assert values == sorted(values)
    assert values[-1] > values[0] > 0


def test_a_machine_without_a_known_counter_gives_the_raw_clock() -> None:
    unknown = Counter("riscv64")
    assert unknown.name is None
    assert abs(unknown.read() - counter.monotonic_raw_ns()) < 1e9


def test_the_rate_agrees_with_the_clock() -> None:
    made = Counter()
    pairs = made.pairs(5, 0.2)
    assert len(pairs) == 5
    assert 0.19 < (pairs[-1].raw_ns - pairs[0].raw_ns) / 1e9 < 2.0
    measured = counter.rate(pairs)
    began, start = made.read(), time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    time.sleep(0.2)
    elapsed = time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - start
    assert (made.read() - began) / measured.hz == pytest.approx(elapsed, rel=0.02)
    assert 0 < measured.relative_error < 0.01


def test_the_rate_and_its_error_come_from_the_ends() -> None:
    pairs = [Pair(1000, 0, 100), Pair(1, 5, 900), Pair(3_000_001_000, 1_000_000_000, 300)]
    measured = counter.rate(pairs)
    assert measured.hz == 3e9
    assert measured.relative_error == pytest.approx(200 / 1e9)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("tsc", "fpu constant_tsc nonstop_tsc", True),
        ("tsc", "fpu constant_tsc", False),
        ("tsc", "", False),
        ("cntvct", "", True),
        (None, "constant_tsc nonstop_tsc", False),
    ],
)
def test_invariant_is_what_the_kernel_says(name: str | None, flags: str, expected: bool) -> None:
    assert counter.invariant(name, f"processor : 0\nflags\t\t: {flags}\n") is expected


def test_waiting_never_ends_before_the_appointment() -> None:
    made = Counter()
    hz = counter.rate(made.pairs(2, 0.05)).hz
    for lead in (0.001, 0.03, 0.1):
        appointment = made.read() + int(lead * hz)
        jump.wait_until(made, appointment, hz)
        late = (made.read() - appointment) / hz
        assert 0 <= late < 0.05


# -- the stamp hook ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not KNOWN_MACHINE, reason="no counter is known for this machine")
def test_the_hook_stamps_the_counter_when_systemd_kexecs(tmp_path: Path) -> None:
    env = Environment(Kernel(), str(tmp_path))
    (tmp_path / "dev").mkdir()
    console = tmp_path / "dev/console"
    console.write_text("")
    log = tmp_path / "dev/kmsg"
    log.write_text("")
    done, path = jump.install_hook(env, sys.executable, CLAIM)
    assert done
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700
    before = Counter().read()
    subprocess.run([path, "reboot"], check=True)
    assert console.read_text() == ""
    subprocess.run([path, "kexec"], check=True)
    words = console.read_text().split()
    assert words[:3] == ["kexec-fleet", "stamp", CLAIM.nonce]
    assert before < int(words[3]) < Counter().read()
    # pstore keeps the kernel's log; at level 7 the line does not come to the console a second time.
    assert log.read_text() == "<7>" + console.read_text()
    assert jump.remove_hook(env)
    assert not jump.remove_hook(env)


def test_where_the_hook_cannot_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "usr").write_text("in the way")
    done, why = jump.install_hook(Environment(Kernel(), str(tmp_path)), sys.executable, CLAIM)
    assert (done, "Not a directory" in why) == (False, True)


# -- kernel log -------------------------------------------------------------------------------------------


def log_file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "kmsg"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_records_come_without_their_continuation_lines(tmp_path: Path) -> None:
    path = log_file(tmp_path, "6,0,0,-;first", " SUBSYSTEM=acpi", "4,1,5,-;second;with semicolon")
    with KernelLog(path, from_now=False) as log:
        found = log.read()
    assert found.complete
    assert found.lines == ["6,0,0,-;first", "4,1,5,-;second;with semicolon"]
    assert [level(line) for line in found.lines] == [6, 4]
    assert text(found.lines[1]) == "second;with semicolon"
    assert level("30,7,1,-;a daemon's") == 6


def test_a_gap_in_the_numbers_is_an_incomplete_log(tmp_path: Path) -> None:
    with KernelLog(log_file(tmp_path, "6,10,0,-;a", "6,12,0,-;c"), from_now=False) as log:
        assert log.read().complete is False


def test_reading_from_now_leaves_out_what_was(tmp_path: Path) -> None:
    path = log_file(tmp_path, "6,0,0,-;before")
    with KernelLog(path, from_now=True) as log:
        with Path(path).open("a") as handle:
            handle.write("6,1,0,-;after\n")
        assert log.read().lines == ["6,1,0,-;after"]
        assert log.read().lines == []


def test_a_bound_or_a_missing_log_is_said(tmp_path: Path) -> None:
    path = log_file(tmp_path, *[f"6,{number},0,-;{'x' * 90}" for number in range(50)])
    with KernelLog(path, from_now=False) as log:
        cut = log.read(1000)
    assert (len(cut.lines), cut.complete) == (10, False)
    with KernelLog(str(tmp_path / "none"), from_now=True) as log:
        assert log.read() == ([], False)


# -- kexec ------------------------------------------------------------------------------------------------


def test_flags_are_probed_by_their_errno() -> None:
    kernel = Asked(9, 22)
    assert kexec.probe_flags(kernel, -1) == ({"no_cma": True, "debug": False}, {"no_cma": 9, "debug": 22})
    assert kernel.flags == [0x10 | 0x4, 0x8 | 0x4]
    assert kexec.probe_flags(Asked(1, 38), None) == (
        {"no_cma": None, "debug": None},
        {"no_cma": 1, "debug": 38},
    )


def test_nothing_is_probed_where_each_call_counts() -> None:
    assert kexec.probe_flags(Asked(), 5) == ({"no_cma": None, "debug": None}, {})


def test_unloading_waits_for_somebody_elses_load() -> None:
    kernel = Asked(16, 16, 0)
    assert kexec.unload(kernel) is None
    assert kernel.flags == [1, 1, 1]
    failed = kexec.unload(Asked(1))
    assert failed is not None and failed.errno == 1
    busy = kexec.unload(Asked(*[16] * 9), seconds=0.2)
    assert busy is not None and busy.errno == 16


# -- headers ----------------------------------------------------------------------------------------------


def test_headers_say_the_sizes() -> None:
    assert image.parse_header(bzimage(init_size=123, cmdline_size=2047)) == (2047, 123)
    old = bytearray(bzimage())
    struct.pack_into("<H", old, 0x206, 0x205)
    assert image.parse_header(bytes(old)) == (255, None)
    arm = bytearray(4096)
    arm[56:60] = b"ARM\x64"
    struct.pack_into("<Q", arm, 16, 7 << 20)
    assert image.parse_header(bytes(arm)) == (2078, 7 << 20)
    assert image.parse_header(b"") == (None, None)
    assert image.parse_header(os.urandom(100)) == (None, None)


# -- /sys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "count"), [("0", 1), ("0-3", 4), ("0-3,8,10-11", 7), ("", 0), (None, None)]
)
def test_processor_lists_are_counted(ranges: str | None, count: int | None) -> None:
    assert devices.count_of(ranges) == count


def note(name: bytes, kind: int, description: bytes) -> bytes:
    padded = [part + b"\0" * (-len(part) % 4) for part in (name, description)]
    return struct.pack("=III", len(name), len(description), kind) + padded[0] + padded[1]


def test_the_build_id_is_found_among_other_notes(tmp_path: Path) -> None:
    env = Environment(Kernel(), str(tmp_path))
    assert kernelinfo.build_id(env) is None
    notes = tmp_path / "sys/kernel/notes"
    notes.parent.mkdir(parents=True)
    notes.write_bytes(
        note(b"Linux\0", 1, b"abc") + note(b"Xen\0", 3, b"no") + note(b"GNU\0", 3, b"\xde\xad" * 10)
    )
    assert kernelinfo.build_id(env) == "dead" * 10
    notes.write_bytes(note(b"Linux\0", 1, b"abc") + b"\0" * 7)
    assert kernelinfo.build_id(env) is None
