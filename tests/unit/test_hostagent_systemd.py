"""The orderly jump: systemd is asked, is not hindered, and what it refuses is found out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import Agent, Host, alive, claim, host_in, until

_SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> systemctl.calls
case "$*" in
    is-system-running) cat state ;;
    "--no-block kexec") test ! -e inhibited || echo "$* while inhibited" >> systemctl.calls
        sleep "$(cat seconds)"; cat answer; exit "$(cat status)" ;;
esac
"""
_INHIBIT = """#!/bin/sh
cd "$(dirname "$0")"
echo "$1 $2" > inhibited
cat
rm inhibited
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        host.write("proc/1/comm", "systemd\n")
        (host.root / "run/systemd/system").mkdir(parents=True)
        for name, text in (
            ("state", "running\n"),
            ("answer", ""),
            ("status", "0\n"),
            ("seconds", "0\n"),
            ("systemctl.calls", ""),
        ):
            host.write(name, text)
        for name, text in (("systemctl", _SYSTEMCTL), ("systemd-inhibit", _INHIBIT)):
            host.write(name, text).chmod(0o755)
        yield host


def asked(host: Host) -> list[str]:
    return (host.root / "systemctl.calls").read_text().splitlines()


def hook(host: Host) -> Path:
    return host.root / "usr/lib/systemd/system-shutdown/kexec-fleet-stamp"


def told(host: Host, give_up: float = 30.0) -> Agent:
    """A session whose jump has been told to systemd, and taken."""
    agent = host.agent()
    armed = agent.armed(host, claim(), lead=1.5, method="systemd")
    assert armed["method"] == "systemd"
    answer = agent.ask("go", claim(), appointment=armed["appointment"], give_up=give_up)
    assert answer == {"going": True, "stamp": True, "stamp_detail": str(hook(host))}
    until(lambda: "--no-block kexec" in asked(host), "systemctl kexec")
    return agent


def test_systemd_is_asked_once_with_the_image_loaded(host: Host) -> None:
    agent = told(host)
    assert agent.ask("status")["phase"] == "systemd"
    assert hook(host).exists()
    assert host.loaded()
    assert agent.refused("go", claim(), deadline=0.5, appointment=1)["detail"]["phase"] == "systemd"
    assert asked(host).count("--no-block kexec") == 1
    assert host.calls("reboot") == []


def test_a_keeper_that_systemd_stops_goes_at_once_and_unloads_nothing(host: Host) -> None:
    agent = told(host)
    keeper = host.keeper_pid()

    def stopped() -> bool:
        os.kill(keeper, signal.SIGTERM)
        return not alive(keeper)

    until(stopped, "the keeper's end")
    host.write("state", "stopping\n")
    status = agent.ask("status")
    assert (status["phase"], status["keeper_alive"]) == ("systemd", False)
    assert status["shutdown"]["under_way"] is True
    agent.kill()
    assert host.names() == ["load"]
    assert host.loaded()
    # The jump is still to come: nobody may call it dead.
    busy = host.agent().refused("claim", claim(18), deadline=1.0)
    assert (busy["code"], busy["detail"]["phase"]) == ("busy", "systemd")
    # When systemd has thought better of it, the image goes.
    host.write("state", "running\n")
    answer = host.agent().ask("claim", claim(19))
    assert (answer["jump"], answer["unloaded"]) == ("dead", True)
    assert not hook(host).exists()


def test_a_refusal_of_systemd_is_written_down_and_unloaded(host: Host) -> None:
    host.write("status", "1\n")
    host.write("answer", "Call to Kexec failed: Access denied\n")
    agent = told(host)
    until(lambda: host.record()["phase"] == "jump_refused", "the refusal on record")
    status = agent.ask("status")
    assert "Access denied" in status["note"]["why"]
    assert host.names() == ["load", "unload"]
    assert not hook(host).exists()


def test_a_system_that_does_not_stop_is_given_up(host: Host) -> None:
    agent = told(host, give_up=0.5)
    until(lambda: host.record()["phase"] == "jump_refused", "giving up")
    assert "not stopping" in agent.ask("status")["note"]["why"]
    assert host.names() == ["load", "unload"]


def test_a_system_that_stops_slowly_is_not_given_up(host: Host) -> None:
    host.write("state", "stopping\n")
    agent = told(host, give_up=0.3)
    calls = len(asked(host))
    until(lambda: len(asked(host)) >= calls + 2, "two looks at the shutdown")
    assert agent.ask("status")["phase"] == "systemd"
    assert host.loaded()


def test_a_shutdown_that_logind_holds_back_is_under_way(host: Host) -> None:
    """Up to InhibitDelayMaxSec systemd knows nothing of it and says "running"."""
    host.write("busctl", '#!/bin/sh\n[ "$6" = PreparingForShutdown ] && echo b true\n').chmod(0o755)
    agent = told(host, give_up=0.3)
    calls = len(asked(host))
    until(lambda: len(asked(host)) >= calls + 2, "two looks at the shutdown")
    shutdown = agent.ask("status")["shutdown"]
    assert (shutdown["under_way"], shutdown["why"]) == (True, "logind waits for its inhibitors")
    assert host.loaded()
    host.write("busctl", "#!/bin/sh\necho b false\n")
    until(lambda: host.record()["phase"] == "jump_refused", "giving up")


def test_a_keeper_that_is_stopped_before_systemctl_has_answered_goes_at_once(host: Host) -> None:
    """systemd stops the session's scope as soon as it has the request; systemctl may end later."""
    host.write("seconds", "3\n")
    told(host)
    keeper = host.keeper_pid()
    os.kill(keeper, signal.SIGTERM)
    until(lambda: not alive(keeper), "the keeper's end", seconds=2.0)
    assert (host.record()["phase"], host.names(), host.loaded()) == ("systemd", ["load"], True)


def test_a_session_lost_after_go_changes_nothing(host: Host) -> None:
    told(host).kill()
    assert host.record()["phase"] == "systemd"
    assert host.names() == ["load"]
    os.kill(host.keeper_pid(), signal.SIGKILL)


def test_a_keeper_killed_after_go_leaves_the_image_to_systemd(host: Host) -> None:
    agent = told(host)
    keeper = host.keeper_pid()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not alive(keeper), "the keeper's end")
    assert agent.ask("status")["phase"] == "systemd"
    assert host.names() == ["load"]


def test_others_may_not_shut_down_while_an_image_is_loaded(host: Host) -> None:
    inhibited = host.root / "inhibited"
    agent = host.agent()
    agent.ask("claim", claim())
    agent.load(host, claim())
    until(inhibited.exists, "the inhibitor")
    assert inhibited.read_text() == "--what=shutdown --mode=block\n"
    agent.ask("unload", claim())
    until(lambda: not inhibited.exists(), "the inhibitor's end")
    # However the keeper dies, its inhibitor goes with it.
    agent.load(host, claim())
    until(inhibited.exists, "the inhibitor")
    os.kill(host.keeper_pid(), signal.SIGKILL)
    until(lambda: not inhibited.exists(), "the inhibitor's end")
    agent.end()
    # And it goes before systemd is asked, which would refuse us too.
    told(host)
    assert "--no-block kexec while inhibited" not in asked(host)
    assert not inhibited.exists()


def test_no_inhibitor_is_no_obstacle(host: Host) -> None:
    (host.root / "systemd-inhibit").unlink()
    agent = host.agent()
    agent.ask("claim", claim())
    assert agent.load(host, claim())["state"] == "loaded"
    assert agent.ask("unload", claim())["kexec_loaded"] == 0


@pytest.mark.parametrize("state", ["stopping\n", "", "offline\n", "unknown\n"])
def test_a_systemd_that_stops_or_does_not_answer_counts_as_stopping(host: Host, state: str) -> None:
    host.write("state", state)
    assert host.agent().ask("status")["shutdown"]["under_way"] is True


@pytest.mark.parametrize("state", ["running\n", "degraded\n", "starting\n", "maintenance\n"])
def test_a_systemd_that_runs_is_not_stopping(host: Host, state: str) -> None:
    host.write("state", state)
    assert host.agent().ask("status")["shutdown"]["under_way"] is False


def test_a_scheduled_shutdown_is_told(host: Host) -> None:
    host.write("run/systemd/shutdown/scheduled", "USEC=1\nMODE=reboot\n")
    assert host.agent().ask("status")["shutdown"]["scheduled"] == "USEC=1\nMODE=reboot\n"


def test_without_systemd_only_the_direct_jump_is_there(host: Host) -> None:
    host.write("proc/1/comm", "mini_init.py\n")
    (host.root / "run/systemd/system").rmdir()
    agent = host.agent()
    agent.ask("claim", claim())
    agent.load(host, claim())
    assert agent.refused("arm", claim(), method="systemd", lead=1.0)["code"] == "no_systemd"
    assert agent.ask("arm", claim(), method="direct", lead=1.0, span=0.05)["method"] == "direct"
    assert asked(host) == []
