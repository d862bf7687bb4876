"""The fleet that the rollout tests share: the default lab, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.spec import LabOptions
from tests.support.rollouts import Rollouts


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    """cma1, cma2, flag1 and old1 on stock kernels, with a journal of their own."""
    labs = tmp_path_factory.mktemp("labs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(labs))
        fleet = LabFleet.open("test-rollout")
        made = Rollouts(fleet, tmp_path_factory.mktemp("rollouts"))
        try:
            fleet.up(None, LabOptions(), lambda event: print(event.text))
            yield made
        finally:
            made.kill_all()
            fleet.down()


@pytest.fixture
def hosts_up(rollouts: Rollouts) -> None:
    """Every host answers and nobody drives it: a test that failed does not fail those after it."""
    rollouts.kill_all()
    rollouts.bring_back()
