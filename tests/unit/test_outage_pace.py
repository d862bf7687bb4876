"""The prober's pace: dense right after the jump, gentler the longer a host is away."""

from __future__ import annotations

import time

import pytest

from tests.unit.test_outage import Service, host, probing, service, until  # noqa: F401  (a fixture)
from workers import outage
from workers.deadline import Deadline


def test_the_longer_a_host_is_away_the_gentler_it_is_asked(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An emulated guest could neither stop nor boot under 50 probes a second."""
    monkeypatch.setattr(outage, "PACE_SHARE", 0.5)
    monkeypatch.setattr(outage, "BACK_INTERVAL_S", 30.0)
    with probing(host(service), interval_s=0.01) as prober:
        until(lambda: prober.result().answers >= 3, "answers")
        service.down()
        prober.mark_jump()
        asked = prober.result().probes_sent
        time.sleep(2.0)
        # 200 at the full pace. Each step is half as long again as the last one: a dozen from 0.02 s to 2 s.
        assert 3 <= prober.result().probes_sent - asked <= 30
        service.up()
        assert prober.wait_first_answer(Deadline.after(60))
        record = prober.result()
    assert record.outage_s is not None and record.resolution_s is not None
    assert record.resolution_s < record.outage_s
