"""Fences: who may change a host, who must wait, and whose image is taken away."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import BOOT, OTHER_BOOT, Host, alive, claim, host_in, until


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def test_a_first_claim_finds_nothing(host: Host) -> None:
    answer = host.agent().ask("claim", claim())
    assert answer == {
        "jump": "none",
        "unloaded": False,
        "kexec_loaded": 0,
        "shutdown": {"under_way": False, "why": "", "scheduled": None},
        "before": None,
    }
    assert (host.root / "run/kexec-fleet").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("phase", ["loaded", "armed"])
def test_a_higher_fence_ends_the_older_keeper_and_says_so(host: Host, phase: str) -> None:
    old, mine = host.agent(), claim(17)
    armed = old.armed(host, mine, lead=60.0)
    if phase == "loaded":
        old.ask("disarm", mine)
    keeper = host.keeper_pid()
    new = host.agent()
    answer = new.ask("claim", claim(18))
    assert (answer["jump"], answer["unloaded"], answer["kexec_loaded"]) == ("dead", False, 0)
    # Its locks are free, and what counts is that: the process itself may take a moment to go.
    until(lambda: not alive(keeper), "the keeper's end")
    assert host.names() == ["load", "unload"]
    # The old session may do nothing any more, and does not touch what the new one loads.
    assert old.refused("go", mine, appointment=armed["appointment"])["code"] == "stale_fence"
    new.load(host, claim(18))
    assert old.refused("unload", mine)["code"] == "stale_fence"
    assert old.refused("claim", mine)["detail"]["fence"] == 18
    old.end()
    assert host.loaded()
    assert new.ask("status")["phase"] == "loaded"


def test_a_killed_old_keeper_does_not_make_its_session_unload_the_new_image(host: Host) -> None:
    old = host.agent()
    old.ask("claim", claim(17))
    old.load(host, claim(17))
    keeper = host.keeper_pid()
    # Session and keeper stopped: the keeper cannot hear the higher fence until it is killed.
    os.kill(old.process.pid, signal.SIGSTOP)
    os.kill(keeper, signal.SIGSTOP)
    new = host.agent()
    busy = new.refused("claim", claim(18), deadline=0.5)
    assert (busy["code"], busy["detail"]["phase"]) == ("busy", "loaded")
    os.kill(keeper, signal.SIGKILL)
    answer = new.ask("claim", claim(18))
    assert (answer["jump"], answer["unloaded"]) == ("dead", True)
    new.load(host, claim(18))
    os.kill(old.process.pid, signal.SIGCONT)
    assert old.ask("status")["fences"] == {"journal-a": 18}
    assert host.names() == ["load", "unload", "load"]
    assert host.loaded()


def test_a_claim_waits_for_a_load_and_never_kills_it(host: Host) -> None:
    host.behave(loading=True)
    old = host.agent()
    old.ask("claim", claim(17))
    assert old.load(host, claim(17), deadline=2.0)["state"] == "loading"
    new = host.agent()
    busy = new.refused("claim", claim(18), deadline=0.5)
    assert (busy["code"], busy["detail"]["phase"]) == ("busy", "loading")
    host.behave()
    # The raised fence stays: the keeper unloads when the load ends, whoever asks.
    assert new.ask("claim", claim(18))["jump"] == "dead"
    assert [call["call"] for call in host.calls()] == ["load", "load_ended", "unload"]
    assert old.refused("load_wait", claim(17))["code"] == "stale_fence"


def test_a_claim_after_go_is_busy_until_the_jump_is_dead(host: Host) -> None:
    old = host.agent()
    armed = old.armed(host, claim(17), lead=1.5)
    old.ask("go", claim(17), appointment=armed["appointment"])
    until(lambda: host.calls("reboot"), "reboot(2)")
    new = host.agent()
    busy = new.refused("claim", claim(18), deadline=0.5)
    assert (busy["code"], busy["detail"]["phase"]) == ("busy", "told")
    # The keeper holds the fence itself from its last check on: nobody can overtake it unseen.
    status = new.ask("status")
    assert (status["phase"], status["fences"]) == ("told", {"journal-a": 17})
    host.behave(reboot_errno=16)
    answer = new.ask("claim", claim(18))
    assert (answer["jump"], answer["kexec_loaded"]) == ("dead", 0)
    assert answer["before"]["phase"] == "jump_refused"
    assert answer["before"]["note"]["errno"] == 16


def test_a_claim_unloads_what_a_dead_session_and_its_dead_keeper_left(host: Host) -> None:
    old = host.agent()
    armed = old.armed(host, claim(17), lead=1.5)
    old.ask("go", claim(17), appointment=armed["appointment"])
    until(lambda: host.calls("reboot"), "reboot(2)")
    keeper = host.keeper_pid()
    old.kill()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not alive(keeper), "the keeper's end")
    assert host.loaded()
    new = host.agent()
    assert new.ask("status")["phase"] == "idle"
    answer = new.ask("claim", claim(18))
    assert (answer["jump"], answer["unloaded"], answer["kexec_loaded"]) == ("dead", True, 0)
    assert answer["before"] == {"phase": "told", "note": {}, "nonce": "nonce-journal-a-17"}


def test_another_journal_waits_for_the_living_and_replaces_the_dead(host: Host) -> None:
    first = host.agent()
    first.ask("claim", claim(17))
    first.load(host, claim(17))
    second = host.agent()
    other = claim(1, journal="journal-b")
    refused = second.refused("claim", other)
    assert (refused["code"], refused["detail"]["phase"]) == ("claimed", "loaded")
    assert refused["detail"]["claim"]["journal"] == "journal-a"
    assert second.refused("load", other, kernel="/x", cmdline="", hold=1.0)["code"] == "claimed"
    keeper = host.keeper_pid()
    first.kill()
    until(lambda: not alive(keeper), "the keeper's end")
    assert second.ask("claim", other)["jump"] == "dead"
    assert second.ask("status")["fences"] == {"journal-a": 17, "journal-b": 1}


def test_a_stale_fence_is_refused_even_when_nobody_lives(host: Host) -> None:
    host.agent().ask("claim", claim(18))
    for agent in host._agents:
        agent.kill()
    late = host.agent()
    assert late.refused("claim", claim(17))["code"] == "stale_fence"
    # Cleaning up does not make the host forget the fence.
    late.ask("claim", claim(19))
    late.ask("clean", claim(19))
    assert late.refused("claim", claim(18))["code"] == "stale_fence"
    assert not (host.root / "var/lib/kexec-fleet").exists()


def test_one_fence_has_one_session(host: Host) -> None:
    first, second = host.agent(), host.agent()
    first.ask("claim", claim(17))
    assert second.refused("claim", claim(17), deadline=0.3)["code"] == "busy"
    # The requests of a session that holds nothing are refused, whatever they carry.
    assert second.refused("unload", claim(17))["code"] == "not_claimed"
    first.end()
    second.ask("claim", claim(17))
    second.ask("unload", claim(17))


def test_a_session_claims_before_it_changes_anything(host: Host) -> None:
    agent = host.agent()
    for op in ("load", "unload", "arm", "go", "release", "clean", "stage_begin"):
        assert agent.refused(op, claim())["code"] == "not_claimed"
    assert agent.refused("load", None)["code"] == "bad_request"
    assert agent.refused("claim", {**claim(), "fence": "17"})["code"] == "bad_request"
    agent.ask("claim", claim(17))
    assert agent.refused("unload", claim(18))["code"] == "not_claimed"
    assert host.calls() == []


def test_claiming_again_in_one_session_takes_its_image_away(host: Host) -> None:
    agent = host.agent()
    agent.armed(host, claim(17), lead=30.0)
    answer = agent.ask("claim", claim(17))
    assert (answer["jump"], answer["kexec_loaded"]) == ("dead", 0)
    assert host.names() == ["load", "unload"]
    agent.load(host, claim(17))
    agent.ask("release", claim(17))
    assert not host.loaded()
    assert agent.ask("status")["phase"] == "idle"


def test_what_another_boot_left_behind_is_nothing(host: Host) -> None:
    host.agent().ask("claim", claim(99))
    for agent in host._agents:
        agent.kill()
    host.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")
    agent = host.agent()
    assert agent.ask("status")["fences"] == {}
    assert agent.ask("claim", claim(1, boot_id=OTHER_BOOT))["jump"] == "none"


def test_damaged_state_counts_as_absent(host: Host) -> None:
    for name in ("fence.json", "claim.json"):
        host.write(f"run/kexec-fleet/{name}", '{"boot_id": "' + BOOT)
    agent = host.agent()
    assert agent.ask("status")["phase"] == "idle"
    agent.ask("claim", claim())
    assert json.loads((host.root / "run/kexec-fleet/fence.json").read_text())["fences"] == {"journal-a": 17}


def test_a_login_without_root_may_look_and_not_touch(host: Host) -> None:
    host.behave(root=False)
    agent = host.agent()
    assert agent.ask("status")["phase"] == "idle"
    assert agent.refused("claim", claim())["code"] == "not_root"
    assert not (host.root / "run/kexec-fleet").exists()
