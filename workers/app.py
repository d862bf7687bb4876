"""The Celery application: a composition root that puts the journal, SSH and the drive together for workers.

Both `kexec-fleet worker` and `celery -A workers.app worker` use it. Settings come from the environment,
where a broker's password belongs: KEXEC_FLEET_BROKER (or KEXEC_FLEET_BROKER_FILE), KEXEC_FLEET_JOURNAL.
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from workers import tasks
from workers.settings import broker_url


def make_app(broker: str | None) -> Celery:
    """The application. JSON only; nothing is kept in the broker that the journal does not know better."""
    made = Celery("kexec-fleet", broker=broker)
    made.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # acknowledged at receipt: the controller sends again, the broker never does
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_pool="threads",  # a drive waits for hosts nearly all its time
        broker_connection_retry_on_startup=True,
        task_default_queue="kexec-fleet",
    )
    tasks.register(made)
    return made


app = make_app(broker_url(os.environ))


def worker(concurrency: int, broker: str, journal: Path, level: str) -> None:
    """Run a worker in this process until it is told to stop."""
    os.environ["KEXEC_FLEET_JOURNAL"] = str(journal)
    app.conf.update(broker_url=broker)
    options = [f"--concurrency={concurrency}", f"--loglevel={level}", "--without-gossip", "--without-mingle"]
    app.worker_main(["worker", *options])
