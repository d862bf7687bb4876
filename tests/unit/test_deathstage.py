"""What killed an attempt, from real consoles (trimmed in their middle) and from texts cut out of them.

The consoles under data/consoles are of the lab: 7.2.12 jumped to a misaligned 7.3.4 (which panicked), a jump
after which QEMU was killed in the dark, a jump that went well, a boot with earlyprintk, one with systemd.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.consoletext import LEFT_OUT, MOST_IN_LINE, clean, lines_of
from orchestrator.domain.deathstage import (
    TAIL_CHARACTERS,
    TAIL_LINES,
    DeathStage,
    Diagnosis,
    diagnose,
)

DATA = Path(__file__).parent / "data" / "consoles"
JUMP = "[  109.986155] kexec_core: Starting new kernel\n"
NONCE = "c0ffee"
HEAD = f"""[    0.000000] Linux version 7.3.4+deb13-cloud-amd64 (debian-kernel@lists.debian.org)
[    0.000000] Command line: root=/dev/vda console=ttyS0 kexec_fleet.nonce={NONCE}
"""
FIRMWARE = """[    0.000000] Linux version 7.2.12+deb13-cloud-amd64 (debian-kernel@lists.debian.org)
[    0.000000] Command line: root=/dev/vda console=ttyS0
[    2.525151] Run /init as init process
kexec-fleet-lab: mini init is up
"""
INIT = "[    2.181444] Run /init as init process\n"
NO_ROOT = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


def read(name: str) -> tuple[str, str]:
    """A console's text and the first nonce that it names."""
    text = (DATA / name).read_text(encoding="utf-8", errors="replace")
    nonce = re.search(r"kexec_fleet\.nonce=([0-9a-f]+)", text)
    return text, nonce[1] if nonce else ""


def of(console: str | None, *pstore: str, answered: bool | None = False, nonce: str = NONCE) -> Diagnosis:
    return diagnose(console, pstore, answered_network=answered, nonce=nonce)


def test_a_misaligned_kernel_overwrote_its_initrd() -> None:
    text, nonce = read("7.3.4-misaligned-panic.txt")
    assert len(nonce) == 32
    found = of(text, nonce=nonce)
    assert found.stage is DeathStage.INITRAMFS
    assert found.reason == (
        f"Initramfs unpacking failed: invalid magic at start of compressed archive; {NO_ROOT};"
        " another boot followed"
    )
    assert found.panic == NO_ROOT
    assert found.tail[-1] == "[    2.547599] Rebooting in 10 seconds..", "not of the firmware's boot"
    assert any("prepare_namespace" in line for line in found.tail)


def test_silence_and_then_the_firmware() -> None:
    text, nonce = read("silence-then-firmware.txt")
    found = of(text, nonce=nonce)
    assert found.stage is DeathStage.PURGATORY
    assert "cannot tell them apart" in found.reason
    assert found.reason.endswith("; a boot through the firmware followed")
    assert found.tail[-1].endswith("kexec_core: Starting new kernel")


def test_one_that_went_well() -> None:
    text, nonce = read("7.3.4-booted.txt")
    assert of(text, nonce=nonce).stage is DeathStage.NETWORK
    assert of(text, nonce=nonce, answered=True).stage is DeathStage.USER_SPACE
    assert "is not known" in of(text, nonce=nonce, answered=None).reason


def test_each_line_more_is_a_step_further() -> None:
    """Cut off after every line, the story never goes back a stage, and takes each stage that it can."""
    text, nonce = read("7.3.4-booted.txt")
    lines = text.splitlines(keepends=True)
    stages = [of("".join(lines[:count]), nonce=nonce).stage for count in range(1, len(lines) + 1)]
    order = list(DeathStage)
    assert [order.index(stage) for stage in stages] == sorted(order.index(stage) for stage in stages)
    assert set(stages) == set(DeathStage) - {DeathStage.UNKNOWN}


def test_an_early_kernel_with_earlyprintk() -> None:
    text, nonce = read("7.3.4-earlyprintk.txt")
    found = of(JUMP + text, nonce=nonce or "abc")
    assert found.stage is DeathStage.EARLY_KERNEL
    assert "never said `Run" in found.reason
    assert found.panic is None


def test_systemd_is_user_space_until_it_is_up() -> None:
    text, _ = read("7.2.12-systemd.txt")
    lines = text.splitlines(keepends=True)
    assert of(JUMP + text, nonce="").stage is DeathStage.NETWORK
    login = next(index for index, line in enumerate(lines) if "Secure Shell" in line)
    found = of(JUMP + "".join(lines[:login]), nonce="")
    assert found.stage is DeathStage.USER_SPACE
    assert "nothing tells that it came up" in found.reason
    assert not any("\x1b" in line for line in found.tail)


@pytest.mark.parametrize(
    ("console", "stage", "says"),
    [
        ("", DeathStage.UNKNOWN, "shows nothing since"),
        ("\0\0\r\n \n", DeathStage.UNKNOWN, "shows nothing since"),
        ("--- lab: QEMU is gone ---\n", DeathStage.UNKNOWN, "shows nothing since"),
        (JUMP, DeathStage.PURGATORY, "silence after `Starting new kernel`: purgatory's digest loop"),
        (JUMP + "\0\0\x1b[2J", DeathStage.PURGATORY, "silence cannot tell"),
        (JUMP + "SeaBIOS (version 1.16)\n" + FIRMWARE, DeathStage.PURGATORY, "but for `SeaBIOS"),
        (JUMP + "I'm in purgatory\nsha256 digests do not match :(\n", DeathStage.PURGATORY, "I'm in purg"),
        (JUMP + "early console in extract_kernel\n", DeathStage.EARLY_KERNEL, "early console in extract"),
        (JUMP + "\n\nDecompressing Linux... Parsing ELF... ", DeathStage.EARLY_KERNEL, "Decompressing"),
        (JUMP + "EFI stub: Loaded initrd\n" + FIRMWARE, DeathStage.EARLY_KERNEL, "no `Linux version`"),
        (JUMP + HEAD, DeathStage.EARLY_KERNEL, "its last line: `[    0.000000] Command line: "),
        (JUMP + "[    0.000000] Linux vers", DeathStage.EARLY_KERNEL, "never said `Run"),
        (
            JUMP + "[    0.000000][    T0] BIOS\n[    0.1] x\n" + FIRMWARE,
            DeathStage.EARLY_KERNEL,
            "another boot",
        ),
        (HEAD, DeathStage.EARLY_KERNEL, "never said"),
        (JUMP + HEAD + "[ 1.0] Kernel panic - not syncing: oh", DeathStage.EARLY_KERNEL, "; Kernel panic"),
        (JUMP + HEAD + f"[    2.5] {NO_ROOT}\n", DeathStage.INITRAMFS, "VFS: Unable to mount root"),
        (JUMP + HEAD + INIT, DeathStage.INITRAMFS, "never handed over"),
        (JUMP + HEAD + INIT + "ALERT!  UUID=1 does not exist. Drop", DeathStage.INITRAMFS, "ALERT!  UUID"),
        (
            JUMP + HEAD + INIT + "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n",
            DeathStage.INITRAMFS,
            "Attempted to kill init!",
        ),
        (
            JUMP
            + HEAD
            + INIT
            + "systemd[1]: systemd 257 running in system mode\nsystemd[1]: Running in initrd.",
            DeathStage.INITRAMFS,
            "never handed over",
        ),
        (JUMP + HEAD + INIT + "Welcome to Debian GNU/Linux 13 (Initramfs)!\n", DeathStage.INITRAMFS, "never"),
        (JUMP + HEAD + "[    2.1] Run /sbin/init as init process", DeathStage.USER_SPACE, "root's init ran"),
        (JUMP + HEAD + INIT + "Welcome to Debian GNU/Linux 13\n", DeathStage.USER_SPACE, "Welcome to"),
        (
            JUMP + HEAD + INIT + "systemd[1]: Switching root.\nYou are in emergency mode.",
            DeathStage.USER_SPACE,
            "emerg",
        ),
        (JUMP + HEAD + INIT + "web1 login: ", DeathStage.NETWORK, "did not answer"),
        (
            JUMP + HEAD + INIT + "web1 login: \nKernel panic - not syncing: Fatal exception\n" + FIRMWARE,
            DeathStage.USER_SPACE,
            "Fatal exception; another boot followed",
        ),
        (
            JUMP + HEAD + INIT + "web1 login: \n[   90.1] reboot: Restarting system\n" + FIRMWARE,
            DeathStage.NETWORK,
            "ended by itself (`reboot: Restarting system`)",
        ),
        ("systemd-shutdown[1]: Syncing\n", DeathStage.STOP, "never said `Starting new kernel`"),
        ("[  9.1] reboot: Restarting system\n" + FIRMWARE, DeathStage.STOP, "left another way"),
        ("[  9.1] Kernel panic - not syncing: x\n" + FIRMWARE, DeathStage.STOP, "; Kernel panic - not"),
        (FIRMWARE, DeathStage.UNKNOWN, "neither the old kernel's last words"),
        ("[ 9.1] kexec-bzImage64: Loaded purgatory at 0x7ffd5000\n", DeathStage.LOAD, "never ended"),
        (
            "[ 9.1] kexec_file: nr_segments = 4\n[ 9.2] kexec_file: kexec_file_load: type:0, start:0x1\n",
            DeathStage.STOP,
            "its last line: `[ 9.2] kexec_file: kexec_file_load",
        ),
    ],
)
def test_what_the_console_tells(console: str, stage: DeathStage, says: str) -> None:
    found = of(console)
    assert says in found.reason
    assert found.stage is stage


def test_the_command_line_of_ours_tells_it_from_the_firmwares() -> None:
    assert of(JUMP + HEAD + INIT).stage is DeathStage.INITRAMFS
    other = of(JUMP + HEAD.replace(NONCE, "0ther") + INIT)
    assert other.stage is DeathStage.PURGATORY
    assert other.reason.endswith("a boot through the firmware followed")


def test_a_host_that_answered_did_not_die_in_the_dark() -> None:
    for console in (None, "", JUMP, "systemd-shutdown[1]: Syncing\n"):
        found = of(console, answered=True)
        assert found.stage is DeathStage.UNKNOWN
        assert "answered on the network" in found.reason


PANIC = "<0>[    3.1] Kernel panic - not syncing: Fatal exception in interrupt\n"


def test_pstore_tells_where_the_console_does_not() -> None:
    record = "Panic#1 Part1\n<5>[    0.000000] Linux version 7.3.4\n<6>[    1.1] x\n" + PANIC
    found = of(None, "nothing of interest", record)
    assert found.stage is DeathStage.EARLY_KERNEL
    assert found.panic == "Kernel panic - not syncing: Fatal exception in interrupt"
    assert found.tail[-1] == PANIC[3:].strip()
    assert of(JUMP, record).stage is DeathStage.EARLY_KERNEL, "a panic is no digest loop"
    short = of(None, "Panic#1 Part1\n<6>[    2.9] x\n" + PANIC)
    assert short.stage is DeathStage.UNKNOWN, "ten KiB of log do not reach back to the boot"
    assert short.panic == found.panic
    root = of(None, f"Panic#1 Part1\n<0>[    2.5] {NO_ROOT}\n")
    assert root.stage is DeathStage.INITRAMFS


def test_the_console_is_believed_before_pstore() -> None:
    found = of(JUMP + HEAD + INIT + "web1 login: \n", PANIC)
    assert found.stage is DeathStage.NETWORK
    assert found.panic == "Kernel panic - not syncing: Fatal exception in interrupt"
    assert "pstore: Kernel panic" in found.reason
    own = of(JUMP + HEAD + "Kernel panic - not syncing: mine\n", PANIC)
    assert own.panic == "Kernel panic - not syncing: mine"


def test_control_bytes_and_endless_lines() -> None:
    noise = "\x1b[2J\x1b]0;title\x07\ufffd\x00" + "A" * 3_000_000 + "\r\r\n\x9b31m\u202eB\n"
    text = noise + JUMP.replace("Starting", "\x1b[1mStarting\x1b[0m") + HEAD.replace("\n", "\r\n") + noise
    found = of(text)
    assert found.stage is DeathStage.EARLY_KERNEL
    assert all(line.isprintable() and len(line) <= TAIL_CHARACTERS for line in found.tail)
    assert len(found.reason) < 1000


def test_a_flood_after_the_beginning_leaves_beginning_and_end() -> None:
    text = JUMP + HEAD + "[    1.0] WARNING: x\n" * 300_000 + f"[    2.5] {NO_ROOT}\n"
    found = of(text)
    assert (found.stage, found.panic) == (DeathStage.INITRAMFS, NO_ROOT)
    assert len(found.tail) == TAIL_LINES
    assert LEFT_OUT in lines_of(text)


def test_stamps_are_taken_off() -> None:
    for stamp in ("2026-11-22T17:43:23.007Z ", "[2026-11-22 17:43:23] ", "2026-11-22 17:43:23,5+01:00: "):
        assert lines_of(stamp + "[    1.0] x\n" + stamp + "\n") == ["[    1.0] x"]


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), max_size=3), st.sampled_from([True, False, None]), st.text(max_size=5))
def test_any_text_is_taken(text: str, records: list[str], answered: bool | None, nonce: str) -> None:
    for console in (text, JUMP + text, JUMP + HEAD + text, text + JUMP + HEAD + INIT + text):
        found = of(console, *records, PANIC + text, answered=answered, nonce=nonce)
        assert found.reason.isprintable()
        assert len(found.tail) <= TAIL_LINES
        assert all(line.isprintable() and len(line) <= TAIL_CHARACTERS for line in found.tail)


@given(st.text(), st.integers(3, 50))
def test_a_clean_line_is_printable_and_bounded(line: str, most: int) -> None:
    shown = clean(line, most)
    assert shown.isprintable() and len(shown) <= most
    assert clean(clean(line)) == clean(line)
    assert len(clean(line * 50)) <= MOST_IN_LINE
