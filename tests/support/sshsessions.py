"""Sessions of our own with an SSH server: one that must come about, and one that must not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from orchestrator.domain.errors import (
    HostError,
)
from orchestrator.domain.inventory import Host
from workers.connection.ssh import SshConnection, SshConnector
from workers.deadline import Deadline

LONG = 60.0


def soon() -> Deadline:
    """Generous: it bounds a test that hangs, no test is about how long it takes."""
    return Deadline.after(LONG)


@contextlib.contextmanager
def connected(host: Host) -> Iterator[SshConnection]:
    connection = SshConnector().connect(host, soon())
    try:
        yield connection
    finally:
        connection.close()


def refused(host: Host, kind: type[HostError], deadline: Deadline | None = None) -> HostError:
    """The error of a connect that must fail, of exactly this kind."""
    with pytest.raises(HostError) as caught:
        SshConnector().connect(host, deadline or soon())
    assert type(caught.value) is kind, caught.value
    assert caught.value.host == host.name
    assert caught.value.hint
    return caught.value
