"""The order of the tests, and the promise that those with virtual machines or a real Redis never skip.

A test under tests/lab is marked `lab` by its place. A `lab` or `redis` test that would skip fails instead: a
machine without QEMU must not look like a green run. KEXEC_FLEET_WHOLE (set by ./deploy/test: `fast`, then
`lab`) extends that to all tests; `lab` refuses a run that has no lab test in it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.machine import why_qemu_cannot_run

TESTS = Path(__file__).parent
# Fast ones first: the rules and the units tell in seconds what the machines would tell in minutes.
ORDER = ("rules", "unit", "integration", "lab")
# The files that take longest first: two run side by side, and the last one to end is waited for. Those that
# share a lab follow one another, so that one process runs both.
LABS = ("test_watchdog", "test_rollout", "test_refusals", "test_scenarios")
WHOLE = os.environ.get("KEXEC_FLEET_WHOLE", "")


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""


def _rank(item: pytest.Item) -> tuple[int, int, int]:
    folder, stem = _folder(item), item.path.stem
    marked = item.get_closest_marker("lab") is not None
    return (
        int(marked),
        ORDER.index(folder) if folder in ORDER else 0,
        LABS.index(stem) if stem in LABS else len(LABS),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _folder(item) == "lab":
            item.add_marker("lab")
    items.sort(key=_rank)  # a stable sort: within a folder the order stays


def pytest_collection_finish(session: pytest.Session) -> None:
    if (
        WHOLE == "lab"
        and not session.config.option.collectonly
        and not any(_must_run(item, "lab") for item in session.items)
    ):
        raise pytest.UsageError(
            "the whole was asked for (KEXEC_FLEET_WHOLE=lab), and no lab test is among the tests"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _must_run(item, "lab") and (why := why_qemu_cannot_run()):
        pytest.fail(f"QEMU cannot run here, and this test does not skip: {why}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = hasattr(report, "wasxfail")
    if report.skipped and not expected and (WHOLE or _must_run(item, "lab", "redis")):
        report.outcome = "failed"
        report.longrepr = f"this test must not skip, and did: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself whole (importorskip) never becomes a test that could fail."""
    report = yield
    if report.skipped and (WHOLE or (TESTS / "lab") in collector.path.parents):
        report.outcome = "failed"
        report.longrepr = f"this file must not skip, and did: {report.longrepr}"
    return report


def _must_run(item: pytest.Item, *markers: str) -> bool:
    return any(item.get_closest_marker(marker) for marker in markers)
