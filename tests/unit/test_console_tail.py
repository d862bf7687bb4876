"""What a console said since a mark: growing, turned over, truncated, huge or missing files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.consoletext import LEFT_OUT
from orchestrator.domain.inventory import Console, Host
from orchestrator.lab.console_logger import TimestampedLog
from workers.console import ConsoleTail, console_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def marked(log: Path) -> ConsoleTail:
    tail = ConsoleTail(log)
    tail.mark()
    return tail


def test_only_what_came_after(log: Path) -> None:
    append(log, "before\n")
    tail = marked(log)
    assert tail.since_mark() == ""
    append(log, "after\n")
    assert tail.since_mark() == tail.since_mark("never seen") == "after\n"


def test_turned_over_once(log: Path) -> None:
    append(log, "before\n")
    tail = marked(log)
    append(log, "one\n")
    log.rename(f"{log}.1")
    assert tail.since_mark() == "one\n", "between the rename and the next line there is no file"
    append(log, "two\n")
    assert tail.since_mark() == "one\ntwo\n"


def test_turned_over_twice_and_the_inode_used_again(log: Path) -> None:
    append(log, "before the mark\n")
    tail = marked(log)
    inode = log.stat().st_ino
    older = Path(f"{log}.1")
    for number in range(20):
        append(log, f"line {number} of a file of its own\n")
        log.replace(older)
        append(log, f"first line after turn {number}\n")
        said = tail.since_mark()
        assert said is not None and said.endswith(f"first line after turn {number}\n")
        assert f"line {number} of a file of its own" in said
        if number and log.stat().st_ino == inode:
            return
    # Not every file system gives a number again: there this test shows the rest only.


@pytest.mark.parametrize(
    "new", ["new\n", "new and much longer than what was there before it was truncated\n"]
)
def test_truncated(log: Path, new: str) -> None:
    append(log, "what was there before\n")
    append(Path(f"{log}.1"), "older than the mark\n")
    tail = marked(log)
    os.truncate(log, 0)
    append(log, new)
    assert tail.since_mark() == new


def test_copied_and_truncated(log: Path) -> None:
    append(log, "before\n")
    tail = marked(log)
    append(log, "one\n")
    shutil.copy(log, f"{log}.1")
    os.truncate(log, 0)
    append(log, "two\n")
    assert tail.since_mark() == "one\ntwo\n"


def test_a_console_that_begins_after_the_mark(log: Path) -> None:
    tail = marked(log)
    assert tail.since_mark() is None
    append(log, "first\n")
    assert tail.since_mark() == "first\n"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def secret(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [fifo, Path.mkdir, secret, lambda path: None])
def test_what_is_no_console(log: Path, make: Callable[[Path], None]) -> None:
    make(log)
    assert marked(log).since_mark("x") is None
    assert ConsoleTail(log).since_mark("x") is None


def test_without_a_mark_the_nonce_tells(log: Path) -> None:
    older = Path(f"{log}.1")
    append(older, "boot\nload nonce=abc quiet\nmore\n")
    append(log, "Command line: nonce=abc\nend\n")
    assert (
        ConsoleTail(log).since_mark("nonce=abc")
        == "load nonce=abc quiet\nmore\nCommand line: nonce=abc\nend\n"
    )
    older.unlink()
    assert ConsoleTail(log).since_mark("nonce=abc") == "Command line: nonce=abc\nend\n"
    assert ConsoleTail(log).since_mark("nonce=xyz") is None
    assert ConsoleTail(log).since_mark() is None, "nothing says where to begin"


def test_a_nonce_between_two_blocks_and_in_an_endless_line(log: Path) -> None:
    for filler in (b"x" * 15 + b"\n", b"x" * 16):
        log.write_bytes(filler * (3 << 16) + b"cmd nonce\nend\n")
        with log.open("r+b") as stream:
            stream.seek((1 << 20) - 3)
            stream.write(b"\nnonce\n")
        text = ConsoleTail(log).since_mark("nonce", 4 << 20)
        assert text is not None and text.startswith("nonce\n") and text.endswith("end\n")


def test_a_flood_keeps_its_beginning_and_its_end(log: Path) -> None:
    append(log, "before\n")
    tail = marked(log)
    append(log, "Starting new kernel\n" + "WARNING\n" * 200_000)
    log.rename(f"{log}.1")
    append(log, "WARNING\n" * 200_000 + "the last\n")
    text = tail.since_mark(max_bytes=10_000)
    assert text is not None
    assert text.startswith("Starting new kernel\n") and text.endswith("the last\n")
    assert text.count(LEFT_OUT) == 1
    assert len(text) <= 10_000 + len(LEFT_OUT) + 2


def test_any_bytes(log: Path) -> None:
    tail = marked(log)
    log.write_bytes(bytes(range(256)))
    assert "\ufffd" in (tail.since_mark() or "")


@settings(deadline=None, max_examples=60)
@given(
    before=st.lists(st.text("ab\n", max_size=40), max_size=6),
    after=st.lists(st.text("ab\n", max_size=40), max_size=6),
    half=st.sampled_from([100, 400, 100_000]),
)
def test_with_the_labs_logger(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str], half: int
) -> None:
    """Whatever the logger turns over: the text is a tail of what was written since the mark, and whole where
    the file was turned over at most once."""
    log = tmp_path_factory.mktemp("log") / "console.log"
    logger = TimestampedLog(log, 2 * half)
    for text in before:
        logger.write(text.encode())
    tail = marked(log)
    written, inodes = "", {log.stat().st_ino}
    turns = 0
    for number, text in enumerate(after):
        logger.write(f"{number}{text}\n".encode())
        written += f"{number}{text}\n"
        turns += log.stat().st_ino not in inodes or log.stat().st_size == 0
        inodes.add(log.stat().st_ino)
    logger.stream.close()
    said = "".join(
        line if len(line) < 25 or line[4] != "-" else line[25:]
        for line in (tail.since_mark() or "").splitlines(keepends=True)
    )
    assert written.endswith(said)
    if turns <= 1:
        assert said == written


def test_the_inventory_names_it(log: Path) -> None:
    host = Host(name="a", address="a")
    assert console_of(host) is None
    tail = console_of(host.model_copy(update={"console": Console(file=str(log))}))
    assert tail is not None and tail.path == log
