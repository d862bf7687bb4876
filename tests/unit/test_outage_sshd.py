"""The outage prober of a host without a probe of its own: it asks sshd, which it otherwise leaves alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support import probed
from tests.support.probed import Service, host, more_failures, unmeasured
from workers.deadline import Deadline
from workers.outage import OutageProber

service = probed.service  # a fixture


def ssh_prober(service: Service, **more: Any) -> OutageProber:
    return OutageProber(host(service, probe=None, **more))


def test_sshd_is_not_asked_before_the_jump_nor_after_its_first_banner(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.1)
    prober = ssh_prober(service)
    prober.start()
    time.sleep(0.5)
    assert service.connections == 0
    service.down()
    prober.mark_jump()
    more_failures(prober, 3)
    assert not prober.first_banner_seen
    service.up()
    assert prober.wait_first_answer(Deadline.after(60))
    assert prober.first_banner_seen
    time.sleep(0.5)
    assert service.connections == 1
    record = prober.result()
    assert record.source == "ssh banner"
    assert record.outage_s is not None and record.resolution_s is not None
    assert record.last_success_before and record.first_success_after
    assert record.resolution_s >= 0.1
    prober.close()


def test_sshd_is_asked_once_a_second_at_most(service: Service) -> None:
    prober = OutageProber(host(service, probe=None), interval_s=0.001)
    service.down()
    prober.mark_jump()
    more_failures(prober, 3)
    record = prober.result()
    assert record.interval_s == 1.0
    silence = prober._fold.open
    assert silence and silence.last_failure.monotonic - silence.first_failure.monotonic >= 0.9
    service.up()
    prober.close()


def test_the_old_sshd_that_still_answers_is_not_an_outage(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.1)
    prober = ssh_prober(service)
    prober.mark_jump()
    assert prober.wait_first_answer(Deadline.after(60))
    assert "before any probe had failed" in unmeasured(prober.result())
    # The drive has looked, and found the host still stopping: it marks again.
    service.down()
    prober.mark_jump()
    assert not prober.first_banner_seen
    more_failures(prober, 2)
    service.up()
    assert prober.wait_first_answer(Deadline.after(60))
    assert prober.result().outage_s is not None
    assert service.connections == 2
    prober.close()


def test_sshd_is_not_asked_while_the_host_surely_stays(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.SSH_INTERVAL_S", 0.05)
    prober = ssh_prober(service)
    prober.mark_jump(stays_s=1000)
    time.sleep(0.4)
    assert service.connections == 0
    assert "no probe was sent" in unmeasured(prober.result())
    prober.close()


def test_a_host_behind_a_jump_host_has_no_banner_to_ask_for(service: Service) -> None:
    prober = ssh_prober(service, proxy_jump="bastion")
    prober.start()
    prober.mark_jump()
    assert "jump host" in unmeasured(prober.result())
    assert not prober.wait_first_answer(Deadline.after(0))
    assert service.connections == 0
    prober.close()
