"""From claim to reboot(2): one jump an attempt, and nothing left loaded when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import LOG_LINE, OTHER_BOOT, Host, alive, claim, host_in, load_args, until


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def test_a_direct_jump_happens_once_and_at_the_appointment(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=1.5)
    assert agent.ask("go", mine, appointment=armed["appointment"]) == {"going": True}
    [jump] = until(lambda: host.calls("reboot"), "reboot(2)")
    wanted = armed["monotonic_raw_ns"] / 1e9 + 1.5
    assert jump["raw"] == pytest.approx(wanted, abs=0.5)
    assert jump["raw"] > wanted - 0.001
    assert host.names() == ["load", "reboot"]
    assert host.record()["phase"] == "told"
    assert len([call for call in host.calls("sync") if call["at"] < jump["at"]]) == 2


def test_a_second_go_changes_nothing(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=1.5)
    agent.ask("go", mine, appointment=armed["appointment"])
    again = agent.refused("go", mine, deadline=1.0, appointment=armed["appointment"])
    assert (again["code"], again["detail"]["phase"]) == ("busy", "told")
    until(lambda: host.calls("reboot"), "reboot(2)")
    agent.kill()
    assert host.names() == ["load", "reboot"]


def test_a_jump_that_the_kernel_refuses_is_written_down_and_unloaded(host: Host) -> None:
    host.behave(reboot_errno=16)
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=1.5)
    agent.ask("go", mine, appointment=armed["appointment"])
    until(lambda: host.record()["phase"] == "jump_refused", "the refusal on record")
    status = agent.ask("status")
    assert status["phase"] == "jump_refused"
    assert status["note"]["errname"] == "EBUSY"
    assert host.names() == ["load", "reboot", "unload"]
    assert not host.loaded()
    # The same attempt is spent: it can be neither loaded nor told again.
    assert agent.refused("go", mine, appointment=armed["appointment"])["code"] == "not_armed"
    agent.ask("claim", mine)
    assert agent.refused("load", mine, kernel="/x", cmdline="", hold=1.0)["code"] == "spent"


def test_the_last_look_before_a_jump_finds_one_that_was_told(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=20.0)
    path = host.root / "run/kexec-fleet/fence.json"
    path.write_text(
        path.read_text().replace('"told": {}', json.dumps({"told": {"journal-a": [mine["nonce"]]}})[1:-1])
    )
    assert agent.refused("go", mine, appointment=armed["appointment"])["code"] == "spent"
    assert agent.ask("status")["phase"] == "armed"


def test_a_late_go_stays_armed_and_can_be_armed_again(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=0.0005)
    error = agent.refused("go", mine, appointment=armed["appointment"])
    assert error["code"] == "too_late"
    assert agent.ask("status")["phase"] == "armed"
    again = agent.ask("arm", mine, lead=1.5, span=0.05)
    assert agent.refused("go", mine, appointment=armed["appointment"])["code"] == "not_armed"
    agent.ask("go", mine, appointment=again["appointment"])
    until(lambda: host.calls("reboot"), "reboot(2)")
    assert host.names() == ["load", "reboot"]


def test_go_without_arm_or_after_disarm_is_refused(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    assert agent.refused("go", mine, appointment=1)["code"] == "not_armed"
    agent.load(host, mine)
    assert agent.refused("go", mine, appointment=1)["code"] == "not_armed"
    armed = agent.ask("arm", mine, lead=1.5, span=0.05)
    assert agent.ask("disarm", mine) == {"phase": "loaded"}
    assert agent.refused("go", mine, appointment=armed["appointment"])["code"] == "not_armed"
    assert agent.ask("status")["phase"] == "loaded"
    assert host.calls("reboot") == []


@pytest.mark.parametrize("phase", ["loading", "loaded", "armed"])
def test_a_killed_session_leaves_nothing_loaded(host: Host, phase: str) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    if phase == "loading":
        host.behave(loading=True)
        assert agent.load(host, mine, deadline=2.0)["state"] == "loading"
    else:
        agent.load(host, mine)
    if phase == "armed":
        agent.ask("arm", mine, lead=30.0, span=0.05)
    assert host.record()["phase"] == phase
    keeper = host.keeper_pid()
    agent.kill()
    host.behave()
    until(lambda: not alive(keeper), "the keeper's end")
    assert host.names() == ["load", "unload"]
    assert not host.loaded()
    if phase == "loading":
        # The load was let go to its end: a killed load leaks CMA.
        assert len(host.calls("load_ended")) == 1


def test_a_session_killed_after_go_changes_nothing(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=1.5)
    agent.ask("go", mine, appointment=armed["appointment"])
    agent.kill()
    until(lambda: host.calls("reboot"), "reboot(2)")
    assert host.names() == ["load", "reboot"]


@pytest.mark.parametrize("phase", ["loading", "loaded", "armed", "told"])
def test_a_killed_keeper_leaves_nothing_loaded(host: Host, phase: str) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    if phase == "loading":
        host.behave(loading=True)
        assert agent.load(host, mine, deadline=2.0)["state"] == "loading"
    else:
        agent.load(host, mine)
    if phase in ("armed", "told"):
        armed = agent.ask("arm", mine, lead=60.0, span=0.05)
    if phase == "told":
        agent.ask("go", mine, appointment=armed["appointment"])
    assert host.record()["phase"] == phase
    os.kill(host.keeper_pid(), signal.SIGKILL)
    until(lambda: host.names() == ["load", "unload"], "the session's unload")
    status = until(lambda: (s := agent.ask("status"))["recorded_phase"] != phase and s, "the new phase")
    assert status["phase"] == ("jump_refused" if phase == "told" else "claimed")
    assert status["note"]["why"] == "keeper killed"
    assert not status["keeper_alive"]
    code = agent.refused("go", mine, appointment=1)["code"]
    assert code == "not_armed"


def test_a_keeper_ignores_the_signals_of_a_stopping_scope(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.armed(host, mine)
    keeper = host.keeper_pid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        os.kill(keeper, number)
    assert agent.ask("disarm", mine) == {"phase": "loaded"}
    assert alive(keeper)
    agent.process.terminate()
    until(lambda: not alive(keeper), "the keeper's end after the session's")
    assert host.names() == ["load", "unload"]


def test_the_hold_timer_unloads(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine, hold=0.4)
    until(lambda: not host.loaded(), "the unload")
    until(lambda: agent.ask("status")["phase"] == "claimed", "phase claimed")
    error = agent.refused("arm", mine, lead=1.0)
    assert error["code"] == "not_loaded"
    assert "hold" in error["message"]


def test_a_file_system_that_hangs_does_not_take_the_image_with_it(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine)
    host.behave(sync_seconds=600.0)
    error = agent.refused("arm", mine, deadline=1.0, lead=5.0, span=0.05)
    assert (error["code"], "unknown" in error["detail"]) == ("deadline", False)
    assert agent.ask("status")["phase"] == "loaded"
    agent.begin("arm", mine, deadline=30.0, lead=5.0, span=0.05)
    until(lambda: len(host.calls("sync")) == 2, "the second sync")
    agent.kill()
    until(lambda: host.names() == ["load", "unload"], "the unload")


def test_nothing_is_loaded_for_a_session_that_is_gone(host: Host) -> None:
    host.write("proc/meminfo", "MemTotal: 16384000 kB\nMemAvailable: 16384000 kB\n")
    os.truncate(host.initrd, 0)
    os.truncate(host.initrd, 1 << 30)  # hashing it takes a moment, and the session dies meanwhile
    zeros = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
    agent, mine, other = host.agent(), claim(), host.agent()
    agent.ask("claim", mine)
    args = {"kernel": str(host.kernel), "initrd": str(host.initrd), "cmdline": "", "hold": 60.0}
    agent.begin("load", mine, **args, expect={"initrd": zeros})
    until(lambda: other.ask("status")["keeper_alive"], "the keeper")
    agent.kill()
    until(lambda: not other.ask("status")["keeper_alive"], "the keeper's end", 60.0)
    assert host.names() == []
    assert other.ask("status")["note"]["why"] == "session lost"


def test_another_boot_is_never_driven(host: Host) -> None:
    agent, mine = host.agent(), claim()
    armed = agent.armed(host, mine, lead=5.0)
    wrong = claim(boot_id=OTHER_BOOT)
    for op in ("claim", "go", "unload"):
        assert agent.refused(op, wrong, appointment=armed["appointment"])["code"] == "wrong_boot"
    assert host.names() == ["load"]


def test_a_load_past_its_deadline_goes_on(host: Host) -> None:
    host.behave(loading=True)
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    first = agent.load(host, mine, deadline=2.0)
    assert first["state"] == "loading"
    assert agent.ask("status")["phase"] == "loading"
    assert agent.refused("unload", mine, deadline=0.2)["detail"]["phase"] == "loading"
    assert agent.refused("arm", mine, deadline=0.2, lead=1.0)["detail"]["phase"] == "loading"
    assert agent.ask("load_wait", mine, deadline=0.1)["state"] == "loading"
    host.behave()
    done = agent.ask("load_wait", mine)
    assert (done["state"], done["kexec_loaded"], done["errno"]) == ("loaded", 1, None)
    assert done["seconds"] >= first["seconds"] > 0
    assert done["log"] == [LOG_LINE]
    assert done["log_complete"]
    # Asked again it says the same.
    assert agent.ask("load_wait", mine) == done
    assert agent.ask("unload", mine)["kexec_loaded"] == 0
    assert agent.ask("unload", mine)["kexec_loaded"] == 0


def test_a_refused_load_leaves_nothing_loaded_not_even_a_spacer(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine)
    host.behave(load_errno=22)
    answer = agent.load(host, mine, flags=0x10)
    assert (answer["state"], answer["errname"], answer["kexec_loaded"]) == ("refused", "EINVAL", 0)
    assert host.calls("load")[1]["flags"] == 0x18
    assert host.names() == ["load", "load", "unload"]
    host.behave()
    assert agent.load(host, mine)["state"] == "loaded"


def test_a_second_load_follows_a_spacer_in_the_same_keeper(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine)
    first = host.keeper_pid()
    agent.load(host, mine)
    assert host.keeper_pid() == first
    assert host.names() == ["load", "load"]
    agent.ask("arm", mine, lead=5.0, span=0.05)
    assert agent.refused("load", mine, kernel="/x", cmdline="", hold=1.0)["detail"]["phase"] == "armed"


@pytest.mark.parametrize("lead", [0, -1, 301, float("nan"), float("inf")])
def test_a_lead_that_nobody_could_stop_is_refused(host: Host, lead: float) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    agent.load(host, mine)
    assert agent.refused("arm", mine, lead=lead)["code"] == "bad_request"
    assert agent.ask("status")["phase"] == "loaded"


@pytest.mark.parametrize("hold", [0, float("nan"), float("inf")])
def test_an_image_is_never_held_for_ever(host: Host, hold: float) -> None:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    assert agent.refused("load", mine, **{**load_args(host), "hold": hold})["code"] == "bad_request"
    assert host.names() == []
