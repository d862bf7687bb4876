"""The files of this repository as the rules see them: those git tracks or would, not what a tool left."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def files() -> tuple[Path, ...]:
    """Tracked files and new ones that are not ignored, relative to ROOT, sorted."""
    # git refuses a tree of another user's; here it only lists.
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    command = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = (Path(name) for name in listing.split("\0") if name)
    return tuple(sorted(path for path in paths if (ROOT / path).is_file()))


def python_files(*tops: str) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and (not tops or path.parts[0] in tops)]


def shell_files() -> list[Path]:
    """Shell scripts by their ending or their first line."""
    shells = (b"#!/bin/sh", b"#!/usr/bin/env bash", b"#!/bin/bash")
    return [path for path in files() if path.suffix == ".sh" or (ROOT / path).read_bytes().startswith(shells)]


def text_of(path: Path) -> str | None:
    """None for a file that is no UTF-8 text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
