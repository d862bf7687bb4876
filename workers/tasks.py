"""The Celery skin over the drive: one task that carries ids, and refuses another journal's."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.journal.store import Journal
from workers.drive.drive import drive_host
from workers.settings import journal_path
from workers.wiring import make_tools

if TYPE_CHECKING:
    from celery import Celery

    from workers.drive.context import Tools

log = logging.getLogger(__name__)


@cache
def _tools(journal: Path) -> Tools:
    """One journal and one connector for all tasks of this process."""
    return make_tools(Journal.open(journal, create=False))


def drive(journal_id: str, rollout: str, host: str) -> None:
    """Drive one host as far as the journal says that it is due. A message of another journal is refused."""
    tools = _tools(journal_path(os.environ, Path.home()))
    if tools.journal.id != journal_id:
        log.error("refused: the message is of journal %s, this worker's is %s", journal_id, tools.journal.id)
        return
    if drive_host(tools, rollout, host):
        log.info("rollout %s host %s: drive ended", rollout, host)
    else:
        log.info("rollout %s host %s: another driver has it", rollout, host)


def register(app: Celery) -> None:
    """Give the application its one task."""
    task: Any = app.task(name="kexec_fleet.drive")
    task(drive)
