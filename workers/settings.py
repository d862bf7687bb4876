"""Where workers and the CLI find broker and journal; a URL with a password is never taken from an argv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.domain.errors import InputError

BROKER = "KEXEC_FLEET_BROKER"
BROKER_FILE = "KEXEC_FLEET_BROKER_FILE"
JOURNAL = "KEXEC_FLEET_JOURNAL"
EXAMPLE = "redis://127.0.0.1:6379/0"


def broker_url(environment: Mapping[str, str]) -> str | None:
    """The broker's URL from the environment or from the file that it names; None where neither is set."""
    if BROKER in environment:
        return environment[BROKER]
    if BROKER_FILE in environment:
        path = Path(environment[BROKER_FILE])
        try:
            return path.read_text().strip()
        except OSError as error:
            raise InputError(
                f"{BROKER_FILE}={path}: {error.strerror}", hint="the file holds one line: the broker's URL"
            ) from error
    return None


def require_no_password(url: str, option: str) -> str:
    """Refuse a URL with a password on the command line, where every user of the machine can read it."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError as error:
        raise InputError(f"{option}: not a URL: {error}", hint=f"for instance {EXAMPLE}") from error
    if password is not None:
        raise InputError(
            f"{option}: a URL with a password on the command line can be read by every user of this machine",
            hint=f"set {BROKER} in the environment, or name a file that holds the URL with {BROKER_FILE}",
        )
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise InputError(f"{option}: not a Redis URL", hint=f"for instance {EXAMPLE}")
    return url


def journal_path(environment: Mapping[str, str], home: Path) -> Path:
    """The journal's file: KEXEC_FLEET_JOURNAL, else $XDG_STATE_HOME/kexec-fleet/journal.sqlite."""
    if JOURNAL in environment:
        return Path(environment[JOURNAL])
    state = environment.get("XDG_STATE_HOME")
    base = Path(state) if state else home / ".local" / "state"
    return base / "kexec-fleet" / "journal.sqlite"
