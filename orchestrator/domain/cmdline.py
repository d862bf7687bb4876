"""The next kernel's command line: the running one, less what was added to it, plus what is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.domain.errors import CommandLineTooLong
from orchestrator.domain.playbook import CommandLine
from orchestrator.domain.words import is_closed, parameter, split_init, split_words

# A parameter with a dot in its name is taken for a module's and ignored quietly (kernel/params.c).
OURS = "kexec_fleet."
NONCE = "kexec_fleet.nonce"
# Names of plain parameters that we added ourselves, so that the next rollout takes them off again.
ADDED = "kexec_fleet.added"

# The boot loader's own: GRUB, syslinux and the EFI stub (`initrd=`) say where they found the files.
_BOOT_LOADERS = frozenset({"BOOT_IMAGE", "initrd"})
# Debian's PANIC_TIMEOUT is 0: without it a panicking kernel stands still instead of resetting.
_PANIC = "panic=10"
# arch/x86/kernel/kexec-bzimage64.c (7.2): cmdline_len with the NUL + MAX_ELFCOREHDR_STR_LEN <= cmdline_size.
_RESERVED = 30


def command_line_limit(cmdline_size: int) -> int:
    """Bytes that a command line may take, NUL included, for an image whose header says `cmdline_size`."""
    return cmdline_size - _RESERVED


def new_command_line(running: str, policy: CommandLine, nonce: str, ours: Sequence[str], limit: int) -> str:
    """The command line for one attempt, without the NUL that the kernel wants behind it.

    `running` is /proc/cmdline, `ours` further words of ours (a plain one, such as `retain_initrd`, is left
    out when the line sets that parameter already), `limit` bytes with the NUL (`command_line_limit`).
    Of the running line go: `BOOT_IMAGE=`, `initrd=`, `kexec_fleet.*`, what `kexec_fleet.added` names, and
    `policy.remove` (names, or whole words). Words of `policy.append` stand once, at the end, where the last
    one wins. Applied to its own result it changes the nonce and nothing else. Raises CommandLineTooLong.
    """
    kept, init = split_init(split_words(running)) if policy.reuse else ([], [])
    kept = _without(kept, policy)
    append = [word for text in policy.append for word in split_words(text)]
    words = [word for word in kept if word not in append] + append
    words = _before_open_quote(words, _our_words(words, nonce, ours))
    line = " ".join(words + init)
    size = len(line.encode(errors="surrogateescape")) + 1
    if size > limit:
        raise CommandLineTooLong(
            f"the command line takes {size} bytes, the image allows {limit}",
            hint=f"remove words of {size - limit} bytes or more with `cmdline: {{remove: [...]}}`",
        )
    return line


def _without(words: list[str], policy: CommandLine) -> list[str]:
    """`words` less the boot loader's, ours of earlier rollouts, and those that the playbook removes."""
    names = set(_BOOT_LOADERS)
    for word in words:
        if parameter(word) == ADDED:
            names.update(name.replace("-", "_") for name in word.partition("=")[2].split(","))
    names.update(parameter(text) for text in policy.remove if "=" not in text)
    whole = {word for text in policy.remove if "=" in text for word in split_words(text)}
    return [
        word
        for word in words
        if not (parameter(word) in names or parameter(word).startswith(OURS) or word in whole)
    ]


def _our_words(words: list[str], nonce: str, ours: Sequence[str]) -> list[str]:
    """The nonce, our options, those plain ones that `words` does not set, and the note that names them."""
    present = {parameter(word) for word in words}
    options = [word for word in ours if parameter(word).startswith(OURS)]
    plain = [word for word in [_PANIC, *ours] if not parameter(word).startswith(OURS)]
    added: list[str] = []
    for word in plain:
        if parameter(word) not in present:
            present.add(parameter(word))
            added.append(word)
    note = [f"{ADDED}={','.join(parameter(word) for word in added)}"] if added else []
    return [*added, f"{NONCE}={nonce}", *options, *note]


def _before_open_quote(words: list[str], ours: list[str]) -> list[str]:
    """`words` followed by `ours`, or ours before a last word whose open quote would swallow them."""
    closed = [word for word in words if is_closed(word)]
    still_open = [word for word in words if not is_closed(word)]
    return closed + ours + still_open
