"""Broker and journal settings: no password on an argv, one clear error each."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError
from workers.settings import broker_url, journal_path, require_no_password

SECRET = "hunter2"


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        require_no_password(f"redis://:{SECRET}@127.0.0.1/0", "--broker")
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert "KEXEC_FLEET_BROKER" in caught.value.hint


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "rediss://broker.example/1"])
def test_a_url_without_password_is_taken(url: str) -> None:
    assert require_no_password(url, "--broker") == url


@pytest.mark.parametrize("url", ["amqp://127.0.0.1", "redis:///0", "127.0.0.1:6379", "redis://[::1", ""])
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="--broker"):
        require_no_password(url, "--broker")


def test_the_broker_comes_from_environment_or_file(tmp_path: Path) -> None:
    file = tmp_path / "broker"
    file.write_text(f"redis://:{SECRET}@127.0.0.1/0\n")
    assert broker_url({}) is None
    assert broker_url({"KEXEC_FLEET_BROKER": "redis://a/0"}) == "redis://a/0"
    assert broker_url({"KEXEC_FLEET_BROKER_FILE": str(file)}) == f"redis://:{SECRET}@127.0.0.1/0"
    with pytest.raises(InputError, match="No such file"):
        broker_url({"KEXEC_FLEET_BROKER_FILE": str(tmp_path / "none")})


def test_where_the_journal_is() -> None:
    home = Path("/a/home")
    assert journal_path({"KEXEC_FLEET_JOURNAL": "/x/j"}, home) == Path("/x/j")
    assert journal_path({"XDG_STATE_HOME": "/s"}, home) == Path("/s/kexec-fleet/journal.sqlite")
    assert journal_path({}, home) == home / ".local/state/kexec-fleet/journal.sqlite"
