"""The next kernel's command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.cmdline import NONCE, command_line_limit, new_command_line
from orchestrator.domain.errors import CommandLineTooLong, InputError
from orchestrator.domain.playbook import CommandLine
from orchestrator.domain.words import is_closed, parameter, split_init, split_words

PLAIN = CommandLine()
GRUB = "BOOT_IMAGE=/boot/vmlinuz-6.12 root=UUID=1-2 ro quiet console=ttyS0,115200"


def make(running: str, policy: CommandLine = PLAIN, nonce: str = "n1", *ours: str, limit: int = 2017) -> str:
    return new_command_line(running, policy, nonce, ours, limit)


def test_the_running_line_less_the_boot_loaders_plus_ours() -> None:
    assert make(GRUB + "\n") == (
        "root=UUID=1-2 ro quiet console=ttyS0,115200 panic=10 kexec_fleet.nonce=n1 kexec_fleet.added=panic"
    )


def test_initrd_of_an_efi_stub_goes() -> None:
    assert "initrd" not in make(r"initrd=\EFI\debian\initrd.img root=/dev/sda1")


def test_a_panic_of_the_users_stays_and_is_not_ours_to_remove() -> None:
    line = make("root=/dev/vda panic=30")
    assert line == "root=/dev/vda panic=30 kexec_fleet.nonce=n1"
    assert make(line, PLAIN, "n2") == "root=/dev/vda panic=30 kexec_fleet.nonce=n2"
    assert "panic=0" in make("root=/dev/vda", CommandLine(append=("panic=0",))).split()


def test_what_we_added_comes_off_when_it_is_not_wanted_any_more() -> None:
    first = make("root=/dev/vda", PLAIN, "n1", "retain_initrd", "kexec_fleet.mode=x")
    assert first == (
        "root=/dev/vda panic=10 retain_initrd kexec_fleet.nonce=n1 kexec_fleet.mode=x "
        "kexec_fleet.added=panic,retain_initrd"
    )
    second = make(first, PLAIN, "n2")
    assert second == "root=/dev/vda panic=10 kexec_fleet.nonce=n2 kexec_fleet.added=panic"


def test_ours_go_before_inits_arguments() -> None:
    line = make("root=/dev/vda -- single panic=5", PLAIN, "n1")
    assert line.endswith(" kexec_fleet.added=panic -- single panic=5")
    assert line.count(" -- ") == 1


def test_append_stands_once_and_last() -> None:
    policy = CommandLine(append=("cma=256M", "console=ttyS0"))
    line = make("console=ttyS0 console=tty0 cma=64M", policy)
    assert line.startswith("console=tty0 cma=64M cma=256M console=ttyS0 ")


def test_remove_takes_names_and_whole_words() -> None:
    policy = CommandLine(remove=("quiet", "console=ttyS1", "init-on-alloc"))
    line = make("quiet init_on_alloc=0 console=ttyS1 console=ttyS10 quietly root=/dev/vda", policy)
    assert line.startswith("console=ttyS10 quietly root=/dev/vda panic=10")


def test_without_reuse_nothing_of_the_running_line_stays() -> None:
    line = make(GRUB + " -- single", CommandLine(reuse=False, append=("root=/dev/vdb ro",)))
    assert line == "root=/dev/vdb ro panic=10 kexec_fleet.nonce=n1 kexec_fleet.added=panic"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('a="b c" d', ['a="b c"', "d"]),
        ('"a b=c d" e', ['"a b=c d"', "e"]),
        ('dyndbg="file x +p; file y +p" quiet', ['dyndbg="file x +p; file y +p"', "quiet"]),
        ('a=b"c d"e f', ['a=b"c d"e', "f"]),
        ('a="open to the end', ['a="open to the end']),
        ("  a\t b\n", ["a", "b"]),
        ('a="x -- y" -- z', ['a="x -- y"', "--", "z"]),
        ("", []),
    ],
)
def test_words_are_split_as_the_kernel_does(line: str, words: list[str]) -> None:
    assert split_words(line) == words


def test_a_quote_that_never_closes_does_not_swallow_ours() -> None:
    line = make('root=/dev/vda note="left open', PLAIN, "n1")
    assert line == 'root=/dev/vda panic=10 kexec_fleet.nonce=n1 kexec_fleet.added=panic note="left open'


def test_quoted_names() -> None:
    assert parameter('"foo-bar=1 2"') == "foo_bar"
    assert parameter('"quiet"') == "quiet"


def test_limit_counts_bytes_with_the_nul() -> None:
    # kexec-bzimage64.c: cmdline_len (with NUL) + 30 must not exceed cmdline_size.
    limit = command_line_limit(2047)
    assert limit == 2017
    fixed = len(make("")) + 1  # and a blank
    line = make("x" * (limit - 1 - fixed), limit=limit)
    assert len(line) + 1 == limit
    with pytest.raises(CommandLineTooLong, match="takes 2018 bytes, the image allows 2017"):
        make("x" * (limit - fixed), limit=limit)
    with pytest.raises(CommandLineTooLong):
        make("ö" * 1000, limit=limit)


@pytest.mark.parametrize(
    "words", ["--", "a -- b", 'a="b', "a\nb", "", "kexec_fleet.nonce=x", "kexec-fleet.x"]
)
def test_words_that_would_change_meaning_are_refused(words: str) -> None:
    with pytest.raises(ValueError):
        CommandLine(append=(words,))


def test_remove_without_reuse_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match="starts without it"):
        CommandLine(reuse=False, remove=("quiet",))


WORD = st.from_regex(r'[a-z_.-]{1,8}(=("[a-z =-]{0,6}"|[a-z0-9,/]{0,6}))?', fullmatch=True)
EXTRA = st.sampled_from(
    [
        "--",
        "panic=5",
        "BOOT_IMAGE=/x",
        "initrd=/y",
        "kexec_fleet.added=quiet,panic",
        'x="open',
        "retain_initrd",
    ]
)
LINE = st.lists(WORD | EXTRA, max_size=12).map(" ".join)
WORDS = st.lists(WORD.filter(lambda word: word != "--"), max_size=3).map(tuple)


@given(LINE, WORDS, WORDS, st.lists(st.sampled_from(["retain_initrd", "kexec_fleet.a=1"]), unique=True))
def test_applied_to_its_own_result_it_only_changes_the_nonce(
    running: str, append: tuple[str, ...], remove: tuple[str, ...], ours: list[str]
) -> None:
    policy = CommandLine(append=append, remove=remove)
    once = new_command_line(running, policy, "1111", ours, 1 << 20)
    twice = new_command_line(once, policy, "2222", ours, 1 << 20)
    assert twice == once.replace("kexec_fleet.nonce=1111", "kexec_fleet.nonce=2222")


@given(LINE, WORDS)
def test_the_kernel_sees_our_nonce_once_and_inits_words_unchanged(
    running: str, append: tuple[str, ...]
) -> None:
    line = new_command_line(running, CommandLine(append=append), "abc", (), 1 << 20)
    kernel_words, init_words = split_init(split_words(line))
    assert kernel_words.count(f"{NONCE}=abc") == 1
    assert init_words == split_init(split_words(running))[1]
    assert sum(parameter(word) == "panic" for word in kernel_words) >= 1
    assert not any(parameter(word) in ("BOOT_IMAGE", "initrd") for word in kernel_words)
    assert all(is_closed(word) for word in kernel_words[:-1])


def test_too_long_is_bad_input() -> None:
    assert issubclass(CommandLineTooLong, InputError)
