"""File names as users write them: `~` is their home, relative ones start at the file that names them."""

from __future__ import annotations

from pathlib import Path


def resolve(name: str, folder: Path) -> str:
    """`name` in full; `folder` holds the file that names it. Symbolic links stay as they are."""
    expanded = Path(name)
    if name.startswith("~"):
        try:
            expanded = expanded.expanduser()
        except RuntimeError:  # no such user: then `~name` is a file's name
            pass
    return str(expanded if expanded.is_absolute() else (folder / expanded))
