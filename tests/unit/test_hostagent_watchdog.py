"""The watchdog around the jump: kept alive until go, left running by a jump, stopped by everything else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hostagent_harness import Host, claim, host_in, until

CLASS = "sys/class/watchdog/watchdog0"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        host.write("dev/watchdog", b"")
        host.write("timeout", "30")
        host.write(f"{CLASS}/nowayout", "0\n")
        host.write(f"{CLASS}/state", "inactive\n")
        host.write("sys/module/watchdog/parameters/stop_on_reboot", "0\n")
        yield host


def device(host: Host) -> Path:
    return host.root / "dev/watchdog"


def pings(host: Host) -> int:
    written = device(host).read_bytes()
    assert set(written) <= {ord("V")}, "every keepalive allows the close that stops the timer"
    return len(written)


def holders(host: Host, pid: int) -> bool:
    """Whether the process has the device open."""
    try:
        names = list(Path(f"/proc/{pid}/fd").iterdir())
        return any(name.readlink() == device(host) for name in names)
    except OSError:
        return False


def test_it_is_kept_alive_until_disarmed(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, watchdog=5)["watchdog"]
    assert armed == {
        "armed": True, "device": str(device(host)), "identity": "i6300ESB timer", "timeout_s": 5,
        "survives": True, "why": "watchdog.stop_on_reboot=0", "detail": "",
    }  # fmt: skip
    keeper = host.keeper_pid()
    assert holders(host, keeper)
    before = pings(host)
    until(lambda: pings(host) >= before + 3, "three more keepalives")
    agent.ask("disarm", mine)
    assert not holders(host, keeper)
    after = pings(host)
    assert agent.ask("arm", mine, lead=30.0, span=0.05)["watchdog"]["detail"] == "not asked for"
    assert pings(host) == after
    # Armed anew, then anew without: the second arm ends the first one's.
    agent.ask("arm", mine, lead=30.0, span=0.05, watchdog=5)
    assert holders(host, keeper)
    agent.ask("arm", mine, lead=30.0, span=0.05)
    assert not holders(host, keeper)


def test_at_the_jump_it_is_left_running(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=3.0, watchdog=5)
    keeper = host.keeper_pid()
    agent.ask("go", mine, appointment=armed["appointment"])
    told = pings(host)
    until(lambda: host.calls("reboot"), "reboot(2)")
    assert pings(host) >= told + 2, "kept alive while the appointment is waited for"
    threads = Path(f"/proc/{keeper}/task")
    until(lambda: len(list(threads.iterdir())) == 1, "only the jump is left, and nobody feeds the timer")
    last = pings(host)
    agent.kill()
    assert holders(host, keeper)
    assert pings(host) == last


def test_a_refused_jump_stops_it(host: Host) -> None:
    host.behave(reboot_errno=16)
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=1.5, watchdog=5)
    keeper = host.keeper_pid()
    agent.ask("go", mine, appointment=armed["appointment"])
    until(lambda: host.record()["phase"] == "jump_refused", "the refusal on record")
    until(lambda: not holders(host, keeper), "the device's close")
    assert "watchdog" not in host.record()["note"]


def test_a_timer_that_does_not_stop_is_told(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.armed(host, mine, watchdog=5)
    host.write(f"{CLASS}/state", "active\n")
    agent.ask("unload", mine)
    note = agent.ask("status")["note"]
    assert "the host will be reset" in note["watchdog"]


@pytest.mark.parametrize("end", ["session", "keeper", "unload", "fence"])
def test_whoever_ends_closes_the_device_with_the_magic_word(host: Host, end: str) -> None:
    agent, mine = host.agent(), claim()
    agent.armed(host, mine, watchdog=5)
    keeper = host.keeper_pid()
    assert holders(host, keeper)
    if end == "session":
        agent.kill()
    elif end == "keeper":
        os.kill(keeper, signal.SIGKILL)
    elif end == "unload":
        agent.ask("unload", mine)
    else:
        host.agent().ask("claim", claim(fence=18))
    until(lambda: not holders(host, keeper), "the device's close")
    assert pings(host) > 0
    assert device(host).read_bytes().endswith(b"V")


def ask(host: Host, **more: Any) -> dict[str, Any]:
    agent = host.agent()
    answer = agent.armed(host, claim(), **{"watchdog": 60, **more})["watchdog"]
    assert (answer["armed"], answer["survives"], answer["timeout_s"]) == (False, None, None)
    assert not holders(host, host.keeper_pid())
    return answer


def test_none_is_armed_where_there_is_none(host: Host) -> None:
    device(host).unlink()
    assert "load the driver" in ask(host)["detail"]


def test_a_busy_device_names_systemds_way(host: Host) -> None:
    host.behave(device_errno=16)
    assert "KExecWatchdogSec" in ask(host)["detail"]


def test_with_nowayout_it_is_not_opened(host: Host) -> None:
    host.write(f"{CLASS}/nowayout", "1\n")
    assert "nowayout is set" in ask(host)["detail"]
    assert pings(host) == 0


def test_where_nobody_tells_of_nowayout_it_is_not_opened(host: Host) -> None:
    (host.root / CLASS / "nowayout").unlink()
    assert "does not say" in ask(host)["detail"]
    assert pings(host) == 0


def test_a_shorter_timeout_than_asked_for_is_refused(host: Host) -> None:
    host.behave(most_timeout=50)
    assert "timeout of 30 s and refuses 60 s with EINVAL" in ask(host)["detail"]
    assert pings(host) > 0 and device(host).read_bytes().endswith(b"V")


def test_an_orderly_jump_leaves_it_to_systemd(host: Host) -> None:
    (host.root / "run/systemd/system").mkdir(parents=True)
    script = "#!/bin/sh\ncase $1 in show) echo 10min ;; *) echo running ;; esac\n"
    host.write("systemctl", script).chmod(0o755)
    answer = ask(host, method="systemd")
    assert "KExecWatchdogSec" in answer["detail"] and answer["detail"].endswith("now 10min")
    assert pings(host) == 0


@pytest.mark.parametrize(
    ("identity", "parameter", "survives", "why"),
    [
        ("i6300ESB timer", "0", True, "stop_on_reboot=0"),
        ("i6300ESB timer", "-1", False, "its driver stops it"),
        ("i6300ESB timer", "1", False, "the kernel stops it"),
        ("i6300ESB timer", None, False, "its driver stops it"),
        ("Odd dog", "-1", None, "the driver odd_wdt decides"),
        ("Odd dog", "0", True, "stop_on_reboot=0"),
        ("Software Watchdog", "0", False, "timer of the old kernel"),
        ("IPMI", "-1", True, "120 s"),
    ],
)
def test_it_is_told_whether_it_survives_the_jump(
    host: Host, identity: str, parameter: str | None, survives: bool | None, why: str
) -> None:
    host.behave(identity=identity)
    path = host.write("sys/module/watchdog/parameters/stop_on_reboot", f"{parameter}\n")
    if parameter is None:
        path.unlink()
    (host.root / CLASS / "device").mkdir()
    (host.root / CLASS / "device/driver").symlink_to("../../bus/odd_wdt")
    answer = host.agent().armed(host, claim(), watchdog=60)["watchdog"]
    assert (answer["armed"], answer["survives"]) == (True, survives)
    assert why in answer["why"]


@pytest.mark.parametrize("seconds", [4, 3601, True, "60"])
def test_a_timeout_out_of_range_is_bad(host: Host, seconds: object) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine)
    assert agent.refused("arm", mine, lead=3.0, watchdog=seconds)["code"] == "bad_request"
