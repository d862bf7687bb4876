"""The journal's engine: a SQLite file opened so that what is committed survives a crash, and its clock."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from orchestrator.domain.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another one before it gives up."""


def open_engine(path: Path) -> Engine:
    """An engine on the SQLite file: WAL, synchronous=FULL, each write transaction BEGIN IMMEDIATE.

    Without BEGIN IMMEDIATE a transaction that reads first and writes later fails with SQLITE_BUSY at the
    write, busy_timeout or not (sqlite.org/isolation.html); with it, writers queue.
    """
    engine = create_engine(f"sqlite:///{path}", pool_size=64, max_overflow=-1)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not open transactions of its own
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A write transaction: commits at the end, rolls back on any exception."""
    with _told(), engine.connect().execution_options(write=True) as connection, connection.begin():
        yield connection


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A read transaction: one consistent view."""
    with _told(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the database refuses (a full disk, a lock held too long) into a JournalError."""
    try:
        yield
    except DBAPIError as error:
        raise JournalError(
            f"the journal's database refused: {error.orig}", hint="check the disk that holds the journal"
        ) from error


def now(connection: Connection) -> float:
    """The database's clock, seconds since the epoch, resolution 1 ms: leases are measured by it alone."""
    value = connection.execute(text("SELECT (julianday('now') - 2440587.5) * 86400.0")).scalar_one()
    if not isinstance(value, float):
        raise JournalError("the journal's database has no clock")
    return value
