"""The journal: append-only events, the state folded from them, both written in one transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.errors import JournalError, JournalNotFound
from orchestrator.domain.events import (
    AttemptRecord,
    Event,
    EventKind,
    HostRecord,
    RolloutRecord,
    apply_to_host,
    apply_to_rollout,
)
from orchestrator.domain.rollout import Phase, RolloutStatus
from orchestrator.journal import leases, rejections, schema
from orchestrator.journal.database import now, read, write
from orchestrator.journal.leases import CONTROLLER, Lease
from orchestrator.journal.opening import open_journal_file
from orchestrator.journal.rejections import Rejection
from orchestrator.journal.spec import RolloutSpec


class Journal:
    """One journal file. Safe to use from several threads and processes."""

    def __init__(self, engine: Engine, identity: str, path: Path) -> None:
        self._engine = engine
        self.id = identity
        self.path = path

    @classmethod
    def open(cls, path: Path, *, create: bool = True) -> Journal:
        """Open the journal in `path`, making it where it is not there and `create` is set.

        Raises JournalNotFound where it is not there, JournalUnusable where the file is something else.
        """
        engine, identity = open_journal_file(path, create=create)
        return cls(engine, identity, path)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # ---- rollouts

    def create_rollout(self, spec: RolloutSpec, waves: Sequence[Sequence[str]]) -> RolloutRecord:
        """Write a new rollout with all its hosts pending."""
        with write(self._engine) as connection:
            at = now(connection)
            record = RolloutRecord(
                id=uuid.uuid4().hex[:12],
                name=spec.playbook.name,
                created_at=at,
                updated_at=at,
                waves=tuple(tuple(wave) for wave in waves),
            )
            connection.execute(
                insert(schema.rollouts).values(
                    id=record.id,
                    created_at=at,
                    spec=spec.model_dump_json(by_alias=True),
                    record=record.model_dump_json(),
                )
            )
            position = 0
            for number, wave in enumerate(waves):
                for host in wave:
                    fresh = HostRecord(rollout=record.id, host=host, wave=number, updated_at=at)
                    connection.execute(
                        insert(schema.hosts).values(
                            rollout=record.id,
                            host=host,
                            position=position,
                            phase=fresh.phase,
                            record=fresh.model_dump_json(),
                        )
                    )
                    position += 1
            _insert_event(connection, record.id, EventKind.ROLLOUT_CREATED, {"waves": record.waves})
            return record

    def rollouts(self) -> list[RolloutRecord]:
        """All rollouts, the newest first."""
        with read(self._engine) as connection:
            rows = connection.execute(
                select(schema.rollouts.c.record).order_by(schema.rollouts.c.created_at.desc())
            )
            return [RolloutRecord.model_validate_json(row.record) for row in rows]

    def find(self, prefix: str) -> RolloutRecord:
        """The rollout whose id starts with `prefix`; `last` is the newest. JournalNotFound otherwise."""
        known = self.rollouts()
        matches = known[:1] if prefix == "last" else [r for r in known if r.id.startswith(prefix)]
        if len(matches) != 1:
            what = "no rollout" if not matches else f"{len(matches)} rollouts"
            raise JournalNotFound(
                f"{what} with id {prefix!r} in {self.path}", hint="`kexec-fleet rollout list` shows them"
            )
        return matches[0]

    def rollout(self, rollout: str) -> RolloutRecord:
        """One rollout by its full id."""
        with read(self._engine) as connection:
            return _rollout(connection, rollout)

    def spec(self, rollout: str) -> RolloutSpec:
        """What the rollout was started from."""
        with read(self._engine) as connection:
            text = connection.execute(
                select(schema.rollouts.c.spec).where(schema.rollouts.c.id == rollout)
            ).scalar_one_or_none()
        if text is None:
            raise JournalNotFound(f"no rollout {rollout} in {self.path}")
        return RolloutSpec.model_validate_json(text)

    def set_status(self, lease: Lease, status: RolloutStatus, reason: str = "") -> None:
        """Write the rollout's status; `lease` is the controller's."""
        with write(self._engine) as connection:
            leases.require(connection, lease)
            data = {"status": status, "reason": reason}
            _append_to_rollout(connection, lease.rollout, EventKind.ROLLOUT_STATUS, data, lease.fence)

    def note_wave(self, lease: Lease, kind: EventKind, wave: int) -> None:
        """Write that a wave started or ended; `lease` is the controller's."""
        with write(self._engine) as connection:
            leases.require(connection, lease)
            _append_to_rollout(connection, lease.rollout, kind, {"wave": wave}, lease.fence)

    def request_abort(self, rollout: str) -> None:
        """Ask whoever runs the rollout to start no new host. Needs no lease: anybody may ask."""
        with write(self._engine) as connection:
            _append_to_rollout(connection, rollout, EventKind.ABORT_REQUESTED, {}, 0)

    # ---- hosts

    def hosts(self, rollout: str) -> list[HostRecord]:
        """All hosts of a rollout in the order of its waves."""
        with read(self._engine) as connection:
            rows = connection.execute(
                select(schema.hosts.c.record)
                .where(schema.hosts.c.rollout == rollout)
                .order_by(schema.hosts.c.position)
            )
            return [HostRecord.model_validate_json(row.record) for row in rows]

    def host(self, rollout: str, host: str) -> HostRecord:
        """One host of a rollout."""
        with read(self._engine) as connection:
            return _host(connection, rollout, host)

    def append(
        self, lease: Lease, kind: EventKind, data: Mapping[str, Any] | None = None, *, attempt: int = 0
    ) -> HostRecord:
        """Write one event about the lease's host, and the state after it; StaleFence: nothing is written."""
        return self.append_all(lease, [(kind, data or {})], attempt=attempt)

    def append_all(
        self, lease: Lease, batch: Sequence[tuple[EventKind, Mapping[str, Any]]], *, attempt: int = 0
    ) -> HostRecord:
        """Write several events in one transaction: all of them or none."""
        with write(self._engine) as connection:
            leases.require(connection, lease)
            record = _host(connection, lease.rollout, lease.host)
            for kind, data in batch:
                record = _append_to_host(connection, record, kind, data, attempt, lease.fence)
            return record

    def start_attempt(
        self, lease: Lease, number: int, data: Mapping[str, Any]
    ) -> tuple[Lease, AttemptRecord]:
        """Bind a new attempt to one boot and one new fence before anything happens on the host.

        `data` has nonce, boot_id, path, flags and reason. Returns the lease under its new fence.
        """
        with write(self._engine) as connection:
            lease = leases.rotate(connection, lease)
            try:
                connection.execute(
                    insert(schema.attempts).values(
                        nonce=data["nonce"],
                        rollout=lease.rollout,
                        host=lease.host,
                        number=number,
                        fence=lease.fence,
                        boot_id=data["boot_id"],
                    )
                )
            except IntegrityError as error:
                raise JournalError(f"{lease.host}: attempt {number} is in the journal already") from error
            record = _host(connection, lease.rollout, lease.host)
            payload = {**data, "fence": lease.fence}
            record = _append_to_host(
                connection, record, EventKind.ATTEMPT_STARTED, payload, number, lease.fence
            )
            return lease, record.attempts[-1]

    def rejection(self, host: str, kernels: Collection[str]) -> Rejection | None:
        """What this host has against one of these kernels (build-id or SHA-256), in whatever rollout."""
        with read(self._engine) as connection:
            return rejections.find(connection, host, kernels)

    # ---- events and leases

    def events(self, rollout: str, *, after: int = 0, host: str | None = None) -> Iterator[Event]:
        """The events of a rollout in order, those with a number above `after`."""
        table = schema.events
        query = (
            select(table).where((table.c.rollout == rollout) & (table.c.seq > after)).order_by(table.c.seq)
        )
        if host is not None:
            query = query.where(table.c.host == host)
        with read(self._engine) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Event(**{**row._mapping, "data": json.loads(row.data)})

    def acquire(self, rollout: str, host: str = CONTROLLER, *, owner: str | None = None) -> Lease | None:
        """The lease on a host (or, without one, on the rollout), or None while another holds it."""
        with write(self._engine) as connection:
            return leases.acquire(connection, rollout, host, owner or leases.this_owner())

    def holder(self, rollout: str, host: str = CONTROLLER) -> str | None:
        """Who holds the lease now, or None where nobody does."""
        table = schema.leases
        with read(self._engine) as connection:
            row = connection.execute(
                select(table).where((table.c.rollout == rollout) & (table.c.host == host))
            ).one_or_none()
            live = row is not None and row.expires_at > now(connection)
            return row.owner if row is not None and live and not leases.owner_is_dead(row.owner) else None

    def drivers(self, rollout: str) -> dict[str, tuple[int, bool]]:
        """Of each host ever driven: its newest fence, and whether somebody who may live drives it."""
        table = schema.leases
        with read(self._engine) as connection:
            clock = now(connection)
            rows = connection.execute(
                select(table).where((table.c.rollout == rollout) & (table.c.host != CONTROLLER))
            ).all()
        return {
            row.host: (row.fence, row.expires_at > clock and not leases.owner_is_dead(row.owner))
            for row in rows
        }

    def is_driven(self, host: str) -> bool:
        """Whether somebody who may live drives this host now, in whatever rollout."""
        table = schema.leases
        with read(self._engine) as connection:
            owners = connection.execute(
                select(table.c.owner).where((table.c.host == host) & (table.c.expires_at > now(connection)))
            ).scalars()
            return any(not leases.owner_is_dead(owner) for owner in owners)

    def fence(self) -> int:
        """A new fence for work on a host that belongs to no rollout."""
        with write(self._engine) as connection:
            return leases.next_fence(connection)

    def rotate(self, lease: Lease) -> Lease:
        """The lease under a new, higher fence."""
        with write(self._engine) as connection:
            return leases.rotate(connection, lease)

    def renew(self, lease: Lease) -> None:
        """Heartbeat; StaleFence where the lease has moved on."""
        with write(self._engine) as connection:
            leases.renew(connection, lease)

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        with write(self._engine) as connection:
            leases.release(connection, lease)


def _rollout(connection: Connection, rollout: str) -> RolloutRecord:
    text = connection.execute(
        select(schema.rollouts.c.record).where(schema.rollouts.c.id == rollout)
    ).scalar_one_or_none()
    if text is None:
        raise JournalNotFound(f"no rollout {rollout} in this journal")
    return RolloutRecord.model_validate_json(text)


def _host(connection: Connection, rollout: str, host: str) -> HostRecord:
    text = connection.execute(
        select(schema.hosts.c.record).where(
            (schema.hosts.c.rollout == rollout) & (schema.hosts.c.host == host)
        )
    ).scalar_one_or_none()
    if text is None:
        raise JournalNotFound(f"rollout {rollout} has no host {host}")
    return HostRecord.model_validate_json(text)


def _insert_event(
    connection: Connection,
    rollout: str,
    kind: EventKind,
    data: Mapping[str, Any],
    *,
    host: str = "",
    attempt: int = 0,
    fence: int = 0,
) -> Event:
    at = now(connection)
    values: dict[str, Any] = {"rollout": rollout, "host": host, "attempt": attempt, "fence": fence, "at": at}
    text = json.dumps(dict(data), sort_keys=True)
    seq = connection.execute(
        insert(schema.events).values(kind=kind, data=text, **values)
    ).inserted_primary_key
    # What is folded is what is stored: the data as it comes back from JSON.
    return Event(seq=int(seq[0]) if seq else 0, kind=kind, data=json.loads(text), **values)


def _append_to_rollout(
    connection: Connection, rollout: str, kind: EventKind, data: Mapping[str, Any], fence: int
) -> None:
    record = _rollout(connection, rollout)
    event = _insert_event(connection, rollout, kind, data, fence=fence)
    changed = apply_to_rollout(record, event)
    connection.execute(
        update(schema.rollouts)
        .where(schema.rollouts.c.id == rollout)
        .values(record=changed.model_dump_json())
    )


def _append_to_host(
    connection: Connection,
    record: HostRecord,
    kind: EventKind,
    data: Mapping[str, Any],
    attempt: int,
    fence: int,
) -> HostRecord:
    event = _insert_event(
        connection, record.rollout, kind, data, host=record.host, attempt=attempt, fence=fence
    )
    changed = apply_to_host(record, event)
    if kind is EventKind.REJECTED:
        rejections.remember(connection, record.rollout, record.host, event.at, event.data)
    elif kind is EventKind.ACCEPTED:
        rejections.forget(connection, record.host, event.data["kernels"])
    connection.execute(
        update(schema.hosts)
        .where((schema.hosts.c.rollout == record.rollout) & (schema.hosts.c.host == record.host))
        .values(phase=Phase(changed.phase), record=changed.model_dump_json())
    )
    return changed
