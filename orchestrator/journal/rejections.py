"""Kernels that a host has rejected: folded from REJECTED events, kept across rollouts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from orchestrator.journal import schema


@dataclass(frozen=True)
class Rejection:
    """A kernel (build-id, or SHA-256 of the image where that is not known) that failed on a host.

    `at` is the journal's clock, seconds since the epoch.
    """

    host: str
    kernel: str
    rollout: str
    at: float
    reason: str


def remember(connection: Connection, rollout: str, host: str, at: float, data: Mapping[str, Any]) -> None:
    """Fold a REJECTED event: {"kernels": [ids], "reason"}; the newest word on a kernel stands."""
    table = schema.rejections
    for kernel in data["kernels"]:
        connection.execute(delete(table).where((table.c.host == host) & (table.c.kernel == kernel)))
        connection.execute(
            insert(table).values(
                host=host, kernel=kernel, rollout=rollout, at=at, reason=str(data.get("reason", ""))
            )
        )


def forget(connection: Connection, host: str, kernels: Collection[str]) -> None:
    """The host has booted that kernel and every check has passed: nothing stands against it any more."""
    table = schema.rejections
    connection.execute(delete(table).where((table.c.host == host) & table.c.kernel.in_(list(kernels))))


def find(connection: Connection, host: str, kernels: Collection[str]) -> Rejection | None:
    """What stands against one of these kernels on this host, or None."""
    table = schema.rejections
    query = select(table).where((table.c.host == host) & table.c.kernel.in_(list(kernels)))
    row = connection.execute(query.order_by(table.c.at.desc())).first()
    return None if row is None else Rejection(**row._mapping)
