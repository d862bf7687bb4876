"""Opening a journal's file: is it one, is it ours to make, is its layout the one we know."""

from __future__ import annotations

import uuid
from pathlib import Path

from sqlalchemy import Engine, insert, inspect, select

from orchestrator.domain.errors import JournalError, JournalNotFound, JournalUnusable
from orchestrator.journal import schema
from orchestrator.journal.database import open_engine, write

_OTHER = "name another file with --journal, or move this one away"


def open_journal_file(path: Path, *, create: bool) -> tuple[Engine, str]:
    """The engine on the file, and the journal's id.

    Raises JournalNotFound where it is not there and may not be made, JournalUnusable where it is something
    else or cannot be opened. A file that may not be made is not written to either.
    """
    if not create and not path.exists():
        raise JournalNotFound(f"no journal at {path}", hint="start a rollout, or name one with --journal")
    if path.exists() and not path.is_file():
        raise JournalUnusable(f"{path} is not a file", hint=_OTHER)
    if not create and path.stat().st_size == 0:
        raise JournalUnusable(f"{path} is empty: no journal", hint=_OTHER)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = open_engine(path)
        identity, version = _identity(engine)
        path.chmod(0o600)
    except OSError as error:
        raise JournalUnusable(
            f"cannot open the journal {path}: {error.strerror or error}", hint=_OTHER
        ) from error
    except JournalError as error:
        raise JournalUnusable(f"cannot open the journal {path}: {error.message}", hint=_OTHER) from error
    if version != schema.VERSION:
        raise JournalUnusable(
            f"{path} is a journal of layout {version}, this program knows {schema.VERSION}",
            hint="use the version of kexec-fleet that wrote it",
        )
    return engine, identity


def _identity(engine: Engine) -> tuple[str, int]:
    """The journal's id and layout number; a new file gets both."""
    with write(engine) as connection:
        tables = set(inspect(connection).get_table_names())
        if tables and "meta" not in tables:
            raise JournalUnusable("it is a database, but no journal")
        schema.metadata.create_all(connection)
        row = connection.execute(select(schema.meta)).one_or_none()
        if row is not None:
            return str(row.journal), int(row.version)
        identity = uuid.uuid4().hex
        connection.execute(
            insert(schema.meta).values(one=1, journal=identity, version=schema.VERSION, last_fence=0)
        )
        return identity, schema.VERSION
