"""Showing a rollout while it runs: a live table on a terminal, one plain line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.domain.events import HostRecord, RolloutRecord
from orchestrator.domain.rollout import SPENT, TERMINAL, Phase
from orchestrator.report.summary import booted_attempt, figure_text, ladder_text, verdict

_COLOURS = {Phase.DONE: "green", Phase.SKIPPED: "dim", Phase.DARK: "yellow", Phase.JUMPING: "yellow"}


class Progress:
    """Observes a controller; give it to `Controller(observe=...)`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, tuple[object, ...]] = {}
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def __call__(
        self, record: RolloutRecord, hosts: Sequence[HostRecord], under_way: Collection[str] = ()
    ) -> None:
        """Show the state as it is now."""
        if self._live is not None:
            self._live.update(running_table(record, hosts, under_way))
            return
        for host in hosts:
            phase = phase_text(host, under_way)
            state = (phase, len(host.attempts), host.reason)
            if self._seen.get(host.host) != state:
                self._seen[host.host] = state
                self._console.print(_line(host, phase), soft_wrap=True)


def phase_text(host: HostRecord, under_way: Collection[str]) -> str:
    """The host's phase; a pending one that somebody drives is being reached and asked for its facts."""
    return "connecting" if host.phase is Phase.PENDING and host.host in under_way else str(host.phase)


def _line(host: HostRecord, phase: str) -> str:
    attempt = f" attempt {host.attempts[-1].number} ({host.attempts[-1].path})" if host.attempts else ""
    reason = f": {host.reason}" if host.reason else ""
    return f"{host.host}: {phase}{attempt}{reason}"


def running_table(
    record: RolloutRecord, hosts: Sequence[HostRecord], under_way: Collection[str] = ()
) -> Table:
    """A row a host: phase, attempt, how long it has been there, what was tried."""
    table = Table(title=f"rollout {record.id} · {record.name} · {record.status}", title_justify="left")
    for column in ("host", "wave", "phase", "attempt", "for", "tried"):
        table.add_column(column, overflow="fold")
    now = time.time()
    for host in hosts:
        table.add_row(
            host.host,
            str(host.wave + 1),
            _coloured(host, phase_text(host, under_way)),
            str(len(host.attempts) or ""),
            f"{max(0.0, now - host.updated_at):.0f} s" if _moving(host) else "",
            ladder_text(host),
        )
    return table


def _moving(host: HostRecord) -> bool:
    return host.phase not in TERMINAL and host.phase is not Phase.PENDING


def final_table(record: RolloutRecord, hosts: Sequence[HostRecord]) -> Table:
    """The result: each host's path, attempts, hot phase, outage and verdict."""
    table = Table(title=f"rollout {record.id} · {record.name} · {record.status}", title_justify="left")
    for column in ("host", "wave", "result", "tried", "CMA bytes", "hot phase", "outage", "checks", "why"):
        table.add_column(column, overflow="fold")
    for host in hosts:
        attempt = booted_attempt(host)
        measured = attempt.measured if attempt else None
        table.add_row(
            host.host,
            str(host.wave + 1),
            _coloured(host, str(host.phase)),
            ladder_text(host),
            _cma(attempt.loaded if attempt else None),
            figure_text(measured, "hot_phase"),
            figure_text(measured, "outage"),
            verdict(attempt) or "",
            host.reason,
        )
    return table


def _cma(loaded: dict[str, object] | None) -> str:
    """Bytes in CMA of all bytes placed."""
    placement = (loaded or {}).get("placement")
    if not isinstance(placement, dict) or placement.get("bytes_total") is None:
        return "not known" if loaded else ""
    inside = placement.get("bytes_in_cma")
    return f"{'?' if inside is None else inside} of {placement['bytes_total']}"


def _coloured(host: HostRecord, text: str) -> Text:
    return Text(text, style="red" if host.phase in SPENT else _COLOURS.get(host.phase, ""))
