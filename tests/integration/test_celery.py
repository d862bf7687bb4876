"""Celery over a real Redis, with real workers: delivery only; a foreign journal's task is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client

from orchestrator.control.dispatch import QUEUE, CeleryDispatcher, require_broker
from orchestrator.domain.errors import BrokerError, SetupError
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.playbook import Deadlines, HostImage, Kernel, Playbook
from orchestrator.domain.rollout import Phase
from orchestrator.journal.spec import RolloutSpec
from orchestrator.journal.store import Journal
from tests.support.redis import PASSWORD, RedisServer, redis_server

pytestmark = pytest.mark.redis
PATIENCE = 180.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def rollout_of_a_closed_port(journal: Journal) -> str:
    """One host where nobody listens: a drive ends with `failed` without needing a machine."""
    host = Host(name="nobody", address="127.0.0.1", port=9, host_key_policy="strict")
    playbook = Playbook(
        name="p",
        kernel=Kernel(on_host=HostImage(image="/boot/vmlinuz")),
        deadlines=Deadlines(connect=1),
    )
    spec = RolloutSpec(playbook=playbook, inventory=Inventory(hosts={"nobody": host}))
    return journal.create_rollout(spec, [["nobody"]]).id


def worker(words: list[str], journal: Path, redis: RedisServer, log: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "KEXEC_FLEET_JOURNAL": str(journal), "KEXEC_FLEET_BROKER": redis.url}
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", *words], env=env, stdout=out, stderr=out)


def wait_for(what: str, condition: object, log: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def test_a_message_is_json_with_ids_and_no_secret(tmp_path: Path, redis: RedisServer) -> None:
    journal = Journal.open(tmp_path / "j.sqlite")
    dispatcher = CeleryDispatcher(redis.url, journal.id)
    dispatcher.dispatch("some-rollout", "web1")
    dispatcher.dispatch("some-rollout", "web1")
    broker = client.Redis(port=redis.port, password=PASSWORD)
    messages = broker.lrange(QUEUE, 0, -1)
    broker.delete(QUEUE)
    dispatcher.close()
    assert len(messages) == 1, "asked twice within a moment, sent once"
    message = json.loads(messages[0])
    assert message["content-type"] == "application/json"
    assert PASSWORD not in messages[0].decode()
    assert journal.id in message["headers"]["argsrepr"]


@pytest.mark.parametrize(
    "words",
    [
        ["celery", "-A", "workers.app", "worker", "--concurrency=1", "--loglevel=info"],
        ["tests.support.cli", "worker", "--concurrency", "1"],
    ],
    ids=["celery", "kexec-fleet"],
)
def test_a_worker_drives_what_its_journal_calls_due_and_nothing_else(
    words: list[str], tmp_path: Path, redis: RedisServer
) -> None:
    journal = Journal.open(tmp_path / "mine.sqlite")
    rollout = rollout_of_a_closed_port(journal)
    stranger = Journal.open(tmp_path / "other.sqlite")
    foreign = rollout_of_a_closed_port(stranger)
    log = tmp_path / "worker.log"
    process = worker(words, journal.path, redis, log)
    try:
        CeleryDispatcher(redis.url, stranger.id).dispatch(foreign, "nobody")
        CeleryDispatcher(redis.url, journal.id).dispatch(rollout, "nobody")
        wait_for("driven", lambda: journal.host(rollout, "nobody").phase is Phase.FAILED, log)
        assert "unreachable" in journal.host(rollout, "nobody").reason
        wait_for("refused", lambda: "refused: the message is of journal" in log.read_text(), log)
        assert stranger.host(foreign, "nobody").phase is Phase.PENDING
        assert PASSWORD not in log.read_text()
        with open(f"/proc/{process.pid}/cmdline") as arguments:  # noqa: PTH123
            assert PASSWORD not in arguments.read()
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_broker_that_is_gone_is_one_clear_error_without_its_password(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j.sqlite")
    dispatcher = CeleryDispatcher(f"redis://:{PASSWORD}@127.0.0.1:9/0", journal.id)
    with pytest.raises(BrokerError) as caught:
        dispatcher.dispatch("some-rollout", "web1")
    assert "127.0.0.1:9" in str(caught.value) and PASSWORD not in str(caught.value)


@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}@127.0.0.1:9/0", f"http://:{PASSWORD}@127.0.0.1/"])
def test_a_rollout_is_not_even_made_where_no_broker_answers(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        require_broker(url)
    assert PASSWORD not in f"{caught.value} {caught.value.hint}"


def test_a_broker_that_answers_is_taken(redis: RedisServer) -> None:
    require_broker(redis.url)
