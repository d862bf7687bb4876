"""In which stage an attempt died, read from what console and pstore kept. A verdict for people: nothing is
driven by it.

The kernel's own words are those of Linux 6.12 to 7.3; the files that print them stand beside the patterns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.domain.consoletext import clean, lines_of

TAIL_LINES = 40
TAIL_CHARACTERS = 300
"""Of each line that is kept as evidence."""


class DeathStage(StrEnum):
    """Where the way into the new kernel ended."""

    LOAD = "load"  # the old kernel never finished loading the image
    STOP = "stop"  # the old kernel never came to the jump
    PURGATORY = "purgatory"  # between the two kernels
    EARLY_KERNEL = "early-kernel"  # the new kernel, before it ran an init
    INITRAMFS = "initramfs"  # unpacking or running it, finding and mounting the root
    USER_SPACE = "user-space"  # the root's init ran
    NETWORK = "network"  # the host came up and nobody could reach it
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Diagnosis:
    """`reason` says which line, or the absence of which, led to the stage.

    `tail` are the last lines of the boot that died (not of one that followed), clean, at most TAIL_LINES of
    at most TAIL_CHARACTERS. `panic` is the kernel's own sentence, without its time.
    """

    stage: DeathStage
    reason: str
    tail: tuple[str, ...]
    panic: str | None


# kernel/kexec_core.c kernel_kexec(); before 4.2 "kexec: ".
_STARTING = re.compile(r"\bkexec(?:_core)?: Starting new kernel")
# init/version-timestamp.c linux_banner, printed by start_kernel() before anything else.
_BANNER = re.compile(r"(?:^|[\]>] ?)Linux version \d")
# init/main.c and arch/x86/kernel/setup.c. From 6.18 on a long one comes in several lines.
_COMMAND_LINE = re.compile(r"\b(?:Kernel c|C)ommand line: ")
_PANIC = re.compile(r"Kernel panic - not syncing: .*")  # kernel/panic.c vpanic()
_RUN_INIT = re.compile(r"\bRun (\S+) as init process")  # init/main.c run_init_process()
_TIME_ZERO = re.compile(r"\[ +0\.000000\]")
# A lab's keeper writes these; whatever machine follows is another boot.
_POWER_MARK = re.compile(r"^--- lab: (?:power on|QEMU is gone) ---")
_LOADING = re.compile(r"kexec_file: kernel: |kexec-bzImage64: |kexec_file: nr_segments|kexec_image: ")
_LOADED = re.compile(
    r"kexec_file: kexec_file_load: type:"
)  # kernel/kexec_file.c, the last of KEXEC_FILE_DEBUG

# kexec-tools' purgatory speaks (purgatory/purgatory.c), the kernel's own (arch/x86/purgatory) does not.
_PURGATORY_WORDS = re.compile(r"I'm in purgatory|sha256 digests do not match")
# arch/x86/boot/compressed/misc.c, drivers/firmware/efi/libstub; arch/arm uses "Uncompressing".
_DECOMPRESSOR = re.compile(
    r"early console in |Decompressing Linux|Uncompressing Linux|Parsing ELF|Booting the kernel"
    r"|EFI stub: |Physical KASLR|input_data: 0x|KASLR using"
)
# init/initramfs.c, init/do_mounts.c, init/main.c kernel_init(), fs/super.c.
_NO_ROOT = re.compile(
    r"Initramfs unpacking failed.*|rootfs image is not initramfs.*|junk within compressed archive.*"
    r"|VFS: (?:Unable to mount root|Cannot open root device).*|No working init found.*"
    r"|Requested init \S+ failed.*|Failed to execute /init.*"
)
# What initramfs-tools, dracut and the lab's own initramfs say when they give up.
_INITRAMFS_TROUBLE = re.compile(
    r"ALERT! .*does not exist.*|Gave up waiting for (?:root|suspend).*|dracut-initqueue.*timeout.*"
    r"|(?:Dropping|Dropped) to a shell.*|dracut: FATAL.*|Attempted to kill init!.*"
    r"|kexec-fleet-lab: (?:could not mount|no /dev/).*|mount: mounting .* on /root failed.*"
)
_SWITCHED = re.compile(
    r"systemd\[1\]: Switching root|Starting Switch Root|kexec-fleet-lab: starting |INIT: version .* booting"
    r"|OpenRC .* is starting|runit: (?:enter stage|\$Id)|Welcome to (?!.*(?:[Ii]nitramfs|dracut|initrd))"
)
_SYSTEMD = re.compile(r"systemd\[1\]: systemd .* running in system mode")
_SYSTEMD_IN_INITRD = re.compile(r"systemd\[1\]: Running in (?:initrd|initial RAM disk)")
_UP = re.compile(
    r"kexec-fleet-lab: mini init is up|(?:^|\s)\S+ login: ?$"
    r"|Reached target .*(?:[Mm]ulti-[Uu]ser|[Gg]raphical)|Started .*(?:[Ss]ecure [Ss]hell|OpenSSH)"
    r"|Server listening on "
)
_EMERGENCY = re.compile(r"You are in (?:emergency|rescue) mode|Reached target .*(?:Emergency|Rescue) ")
_LEFT = re.compile(
    r"\breboot: (?:Restarting system|Power down|System halted|machine restart)"
)  # kernel/reboot.c


@dataclass(frozen=True)
class _Story:
    """The console cut up: the old kernel to its last words, what came between, the new kernel, what followed.

    `boot` is empty where the new kernel said nothing; `after` says what followed, "" where nothing did.
    """

    old: Sequence[str]
    started: bool
    between: Sequence[str]
    boot: Sequence[str]
    after: str


def diagnose(
    console: str | None, pstore: Sequence[str], *, answered_network: bool | None, nonce: str
) -> Diagnosis:
    """The stage of death of one attempt. Takes any text and never raises.

    `console`: text since the jump was told, None where no console is kept. `pstore`: texts of the records
    that the death left. `answered_network`: whether the new kernel answered, None where that is not known.
    `nonce`: the attempt's, which tells the new kernel's boot from the firmware's.
    """
    found = _from_console(console, answered_network, nonce)
    if found.panic is None and (panic := _panic_of(pstore)) is not None:
        return _with_record(found, panic, pstore)
    return found


def _from_console(console: str | None, answered: bool | None, nonce: str) -> Diagnosis:
    if console is None:
        return _without_console("no console is kept (`console` in the inventory)", answered, ())
    lines = lines_of(console)
    if not any(not _POWER_MARK.search(line) for line in lines):
        why = "the console shows nothing since the jump was told: it may be quiet or not connected"
        return _without_console(why, answered, lines)
    story = _cut_up(lines, nonce)
    if story.boot:
        return _of_boot(story, answered)
    if story.started:
        return _of_silence(story, answered)
    return _of_old_kernel(story, answered)


def _cut_up(lines: Sequence[str], nonce: str) -> _Story:
    jump = next((index for index, line in enumerate(lines) if _STARTING.search(line)), None)
    started = jump is not None
    old = lines[: jump + 1] if jump is not None else lines
    rest = lines[jump + 1 :] if jump is not None else lines
    birth = next((index for index, line in enumerate(rest) if _is_birth(line, started)), None)
    if birth is None:
        between, after = _until_power_mark(rest)
        return _Story(old if started else between, started, between if started else (), (), after)
    end = _end_of_boot(rest, birth)
    boot = rest[birth:end]
    between, _ = _until_power_mark(rest[:birth])
    if not _is_ours(boot, nonce, started):
        after = "a boot through the firmware followed"
        return _Story(old if started else between, started, between if started else (), (), after)
    return _Story(old if started else between, started, between, boot, _what_followed(rest, end))


def _is_birth(line: str, started: bool) -> bool:
    """A kernel's first line; after the jump also another of its time zero, where the first was lost."""
    return bool(_BANNER.search(line)) or (started and bool(_TIME_ZERO.match(line)))


def _end_of_boot(lines: Sequence[str], birth: int) -> int:
    """Index behind a boot's last line: the next kernel's first, the next jump, the power's switch."""
    zero = True
    for index in range(birth + 1, len(lines)):
        line = lines[index]
        if _POWER_MARK.search(line) or _STARTING.search(line) or (_BANNER.search(line) and not zero):
            return index
        zero = zero and bool(_TIME_ZERO.match(line))
    return len(lines)


def _is_ours(boot: Sequence[str], nonce: str, started: bool) -> bool:
    """The nonce tells. A kernel that died before it wrote its command line is ours where the jump began."""
    if nonce and any(nonce in line for line in boot):
        return True
    return started and not (nonce and any(_COMMAND_LINE.search(line) for line in boot))


def _until_power_mark(lines: Sequence[str]) -> tuple[Sequence[str], str]:
    for index, line in enumerate(lines):
        if _POWER_MARK.search(line):
            return lines[:index], "the machine was switched off"
    return lines, ""


def _what_followed(lines: Sequence[str], end: int) -> str:
    if end == len(lines):
        return ""
    if _STARTING.search(lines[end]):
        return "another jump followed"
    return "the machine was switched off" if _POWER_MARK.search(lines[end]) else "another boot followed"


def _of_boot(story: _Story, answered: bool | None) -> Diagnosis:
    """The new kernel spoke: how far did it come?"""
    boot = story.boot
    run = next((index for index, line in enumerate(boot) if _RUN_INIT.search(line)), None)
    no_root = _first(_NO_ROOT, boot)
    if run is None and no_root is None:
        stage, why = DeathStage.EARLY_KERNEL, "the new kernel never said `Run ... as init process`"
    elif run is None:
        stage, why = DeathStage.INITRAMFS, no_root or ""
    else:
        stage, why = _after_init(boot[run:], answered)
        if stage is DeathStage.INITRAMFS and no_root is not None:
            why = no_root
    panic = _first(_PANIC, boot)
    if panic is not None and stage is DeathStage.NETWORK:
        stage = DeathStage.USER_SPACE
    if panic is not None and panic not in why:
        why += f"; {panic}"
    elif panic is None:
        left = _first(_LEFT, boot)
        why += f"; it ended by itself (`{left}`)" if left else f"; its last line: `{_short(boot[-1])}`"
    return _told(stage, why, story.after, boot, panic)


def _after_init(boot: Sequence[str], answered: bool | None) -> tuple[DeathStage, str]:
    """Stage and reason for a boot that ran its init: `boot` begins with that line."""
    init = _RUN_INIT.search(boot[0])
    # The path of an initramfs's init; without one the kernel runs the root's: init/main.c kernel_init().
    in_root = init is not None and init[1] not in ("/init",)
    switched = _first(_SWITCHED, boot)
    if switched is None and not any(_SYSTEMD_IN_INITRD.search(line) for line in boot):
        switched = _first(_SYSTEMD, boot)
    up = _first(_UP, boot)
    if up is not None:
        if answered:
            return DeathStage.USER_SPACE, f"it came up (`{_short(up)}`) and answered on the network"
        if answered is None:
            return DeathStage.USER_SPACE, f"it came up (`{_short(up)}`); whether it answered is not known"
        return DeathStage.NETWORK, f"it came up (`{_short(up)}`) and did not answer on the network"
    if in_root or switched is not None:
        then = _first(_EMERGENCY, boot) or "and nothing tells that it came up"
        return DeathStage.USER_SPACE, f"the root's init ran (`{_short(switched or boot[0])}`), {then}"
    trouble = _first(_INITRAMFS_TROUBLE, boot)
    return DeathStage.INITRAMFS, trouble or "the initramfs ran and never handed over to the root's init"


def _of_silence(story: _Story, answered: bool | None) -> Diagnosis:
    """`Starting new kernel`, and no kernel spoke after it."""
    spoken = _first(_PURGATORY_WORDS, story.between)
    early = next((line for line in reversed(story.between) if _DECOMPRESSOR.search(line)), None)
    if spoken is not None:
        stage, why = DeathStage.PURGATORY, f"purgatory said `{spoken}` and no kernel spoke after it"
    elif early is not None:
        stage, why = DeathStage.EARLY_KERNEL, f"the decompressor's `{_short(early)}`, and no `Linux version`"
    else:
        heard = f", but for `{_short(story.between[-1])}`" if story.between else ""
        stage = DeathStage.PURGATORY
        why = (
            f"silence after `Starting new kernel`{heard}: purgatory's digest loop, or a kernel that died"
            " before its console; silence cannot tell them apart"
        )
    if answered:
        stage, why = DeathStage.UNKNOWN, f"it answered on the network, and the console shows {why}"
    return _told(stage, why, story.after, [*story.old, *story.between], None)


def _of_old_kernel(story: _Story, answered: bool | None) -> Diagnosis:
    """No `Starting new kernel` and no boot of ours: all that was said, the old kernel said."""
    lines = story.old
    if not lines:
        why = "the console has neither the old kernel's last words nor the new one's first"
        return _told(DeathStage.UNKNOWN, why, story.after, lines, None)
    panic = _first(_PANIC, lines)
    loading = any(_LOADING.search(line) for line in lines) and not any(_LOADED.search(line) for line in lines)
    left = _first(_LEFT, lines)
    stage = DeathStage.LOAD if loading else DeathStage.STOP
    why = "the load began and never ended" if loading else "the old kernel never said `Starting new kernel`"
    if panic is not None:
        why += f"; {panic}"
    elif left is not None:
        why += f"; it left another way (`{left}`)"
    else:
        why += f", unless its console is quiet; its last line: `{_short(lines[-1])}`"
    if answered:
        stage, why = DeathStage.UNKNOWN, f"it answered on the network, though {why}"
    return _told(stage, why, story.after, lines, panic)


def _without_console(why: str, answered: bool | None, lines: Sequence[str]) -> Diagnosis:
    if answered:
        why += "; the new kernel answered on the network"
    return _told(DeathStage.UNKNOWN, why, "", lines, None)


def _panic_of(pstore: Sequence[str]) -> str | None:
    return next((panic for text in pstore if (panic := _first(_PANIC, lines_of(text)))), None)


def _with_record(found: Diagnosis, panic: str, pstore: Sequence[str]) -> Diagnosis:
    """A panic that only pstore kept. It tells the stage where the console does not, if it reaches back far
    enough."""
    text = next(text for text in pstore if panic in text or _first(_PANIC, lines_of(text)) == panic)
    lines = [re.sub(r"^<\d+>", "", line) for line in lines_of(text)]
    tail = found.tail or tuple(clean(line, TAIL_CHARACTERS) for line in lines[-TAIL_LINES:])
    reason = f"{found.reason}; pstore: {panic}"
    silent = found.stage in (DeathStage.UNKNOWN, DeathStage.PURGATORY)
    telling = any(
        pattern.search(line)
        for line in lines
        for pattern in (_BANNER, _RUN_INIT, _NO_ROOT, _INITRAMFS_TROUBLE)
    )
    if not silent or not telling:
        return replace(found, reason=reason, tail=tail, panic=panic)
    record = _of_boot(_Story((), True, (), lines, ""), None)
    return Diagnosis(record.stage, f"{found.reason}; pstore: {record.reason}", tail, panic)


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    """What the pattern found first, short."""
    return next((_short(match[0]) for line in lines if (match := pattern.search(line))), None)


def _short(line: str) -> str:
    return clean(line.strip(), 160)


def _told(stage: DeathStage, why: str, after: str, lines: Sequence[str], panic: str | None) -> Diagnosis:
    tail = tuple(clean(line, TAIL_CHARACTERS) for line in lines[-TAIL_LINES:])
    return Diagnosis(stage, f"{why}; {after}" if after else why, tail, panic)
