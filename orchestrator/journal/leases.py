"""Leases: who may drive a host (or a whole rollout) now, and the fence that proves it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select, update

from orchestrator.domain.errors import StaleFence
from orchestrator.journal import schema
from orchestrator.journal.database import now

LEASE_SECONDS = 60.0
"""How long a lease holds without a heartbeat; heartbeats come every third of it."""

CONTROLLER = ""
"""The name under which a controller holds its lease on a whole rollout."""


@dataclass(frozen=True)
class Lease:
    """The right to write about one host of one rollout, as long as `fence` is the newest."""

    rollout: str
    host: str
    owner: str
    fence: int


def this_owner() -> str:
    """A name that no later process can take: machine, boot, pid, start time (proc(5), stat, field 22)."""
    return f"{socket.gethostname()}:{_boot()}:{os.getpid()}:{_started(os.getpid())}"


def owner_is_dead(owner: str) -> bool:
    """Whether the process named by `this_owner` surely lives no more. Unsure (another machine) is False."""
    try:
        machine, boot, pid, started = owner.rsplit(":", 3)
    except ValueError:
        return False
    if machine != socket.gethostname():
        return False
    return boot != _boot() or _started(int(pid)) != started


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"


def next_fence(connection: Connection) -> int:
    """A number higher than any given before; one counter serves all hosts, so it grows for each."""
    connection.execute(update(schema.meta).values(last_fence=schema.meta.c.last_fence + 1))
    return int(connection.execute(select(schema.meta.c.last_fence)).scalar_one())


def acquire(connection: Connection, rollout: str, host: str, owner: str) -> Lease | None:
    """The lease, with a new fence, or None while somebody else who may live holds it."""
    table = schema.leases
    mine = (table.c.rollout == rollout) & (table.c.host == host)
    held = connection.execute(select(table).where(mine)).one_or_none()
    clock = now(connection)
    if host != CONTROLLER and _held_elsewhere(connection, rollout, host, clock):
        return None
    if held is not None and held.owner != owner and held.expires_at > clock and not owner_is_dead(held.owner):
        return None
    if held is not None and held.owner == owner and held.expires_at > clock:
        return None  # another thread of this process drives it
    lease = Lease(rollout, host, owner, next_fence(connection))
    values = {"owner": owner, "fence": lease.fence, "expires_at": clock + LEASE_SECONDS}
    if held is None:
        connection.execute(table.insert().values(rollout=rollout, host=host, **values))
    else:
        connection.execute(update(table).where(mine).values(**values))
    return lease


def _held_elsewhere(connection: Connection, rollout: str, host: str, clock: float) -> bool:
    """Whether another rollout drives this host now: two rollouts must not fight over one host."""
    table = schema.leases
    others = connection.execute(
        select(table.c.owner).where(
            (table.c.host == host) & (table.c.rollout != rollout) & (table.c.expires_at > clock)
        )
    )
    return any(not owner_is_dead(row.owner) for row in others)


def require(connection: Connection, lease: Lease) -> None:
    """Raise StaleFence unless `lease` is still the newest. To be called inside the writing transaction."""
    table = schema.leases
    current = connection.execute(
        select(table.c.fence).where((table.c.rollout == lease.rollout) & (table.c.host == lease.host))
    ).scalar_one_or_none()
    if current != lease.fence:
        raise StaleFence(
            f"{lease.host or lease.rollout}: fence {lease.fence} is stale, the journal has {current}",
            hint="another process has taken over; this one stops",
        )


def renew(connection: Connection, lease: Lease) -> None:
    """Put the expiry off; StaleFence where the lease has moved on."""
    require(connection, lease)
    connection.execute(
        update(schema.leases)
        .where(schema.leases.c.fence == lease.fence)
        .values(expires_at=now(connection) + LEASE_SECONDS)
    )


def rotate(connection: Connection, lease: Lease) -> Lease:
    """The same lease under a new, higher fence: each attempt has one of its own."""
    require(connection, lease)
    fence = next_fence(connection)
    connection.execute(
        update(schema.leases)
        .where(schema.leases.c.fence == lease.fence)
        .values(fence=fence, expires_at=now(connection) + LEASE_SECONDS)
    )
    return Lease(lease.rollout, lease.host, lease.owner, fence)


def release(connection: Connection, lease: Lease) -> None:
    """Give the lease back. One that has moved on is left alone."""
    connection.execute(
        update(schema.leases).where(schema.leases.c.fence == lease.fence).values(expires_at=0.0)
    )
