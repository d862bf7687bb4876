"""The journal's tables. Invariants that SQL can hold are constraints here, not checks in code."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

VERSION = 1
"""Number of this layout; a journal of another number is refused."""

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("one", Integer, CheckConstraint("one = 1"), primary_key=True),  # exactly one row
    Column("journal", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("last_fence", Integer, nullable=False),  # one counter for all hosts: grows for each of them
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("spec", Text, nullable=False),  # playbook, inventory and images as JSON, never changed
    Column("record", Text, nullable=False),  # RolloutRecord, folded from the events
)

hosts = Table(
    "hosts",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("record", Text, nullable=False),  # HostRecord, folded from the events
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("rollout", ForeignKey("rollouts.id"), nullable=False),
    Column("host", String(255), nullable=False),  # "" for the rollout itself
    Column("attempt", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("data", Text, nullable=False),
    Index("events_by_rollout", "rollout", "seq"),
    sqlite_autoincrement=True,
)

leases = Table(
    "leases",
    metadata,
    Column("rollout", ForeignKey("rollouts.id"), primary_key=True),
    Column("host", String(255), primary_key=True),  # "" is the controller's lease on the rollout
    Column("owner", String(255), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
    UniqueConstraint("fence"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("nonce", String(64), primary_key=True),  # no nonce is ever used twice
    Column("rollout", ForeignKey("rollouts.id"), nullable=False),
    Column("host", String(255), nullable=False),
    Column("number", Integer, nullable=False),
    Column("fence", Integer, nullable=False, unique=True),
    Column("boot_id", String(36), nullable=False),
    UniqueConstraint("rollout", "host", "number"),
)

rejections = Table(
    "rejections",
    metadata,
    Column("host", String(255), primary_key=True),
    Column("kernel", String(64), primary_key=True),  # build-id, or the image's SHA-256
    Column("rollout", ForeignKey("rollouts.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("reason", Text, nullable=False),
)
