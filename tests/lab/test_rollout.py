"""The main job on the default fleet, and kill -9 of every part in every phase: real kernels, SSH and jumps.

The tests share one fleet and follow one another: the first one moves it, the others jump from there.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.deathstage import DeathStage
from orchestrator.domain.rollout import Phase
from orchestrator.lab.waiting import wait_until_up
from tests.support.redis import RedisServer, redis_server
from tests.support.rollouts import (
    PATIENCE,
    ROLLOUT_SECONDS,
    Rollouts,
    host_of,
    outcomes,
    phase_of,
    wait_until,
)

# A host that hangs is waited for, then power-cycled; ROLLOUT_SECONDS ends earlier than this, and tells why.
pytestmark = [pytest.mark.usefixtures("hosts_up"), pytest.mark.timeout(2 * ROLLOUT_SECONDS)]

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
DEMO, UNSAFE = PLAYBOOKS / "lab-demo.yaml", PLAYBOOKS / "lab-unsafe.yaml"

# Runs in the CLI's process: dies at the moment when `jumping` is committed and go has not been sent.
DIE_BEFORE_GO = (
    "import os, signal, workers.agent as a; "
    "a.AgentClient.go = lambda *args, **words: os.kill(os.getpid(), signal.SIGKILL)"
)
BEFORE_THE_JUMP = (Phase.LOADED, Phase.ARMED)
STAGES = {DeathStage.PURGATORY, DeathStage.EARLY_KERNEL, DeathStage.INITRAMFS, DeathStage.USER_SPACE}
"""Where an image can die whose initrd was overwritten."""

KILL_AGENT = "pkill -KILL -f 'python3 -I -c import hashlib' -o"


def test_the_default_fleet_moves_onto_the_target(rollouts: Rollouts) -> None:
    """One jump each. CMA where the kernel has it, moved by a spacer: unrepaired it would be corrupted."""
    old = {vm.host: vm.config for vm in rollouts.fleet.vms()}
    assert {config.role for config in old.values()} == {"cma", "flag", "old"}
    result = rollouts.finish(rollouts.start(*rollouts.run_words(DEMO)))
    rollouts.assert_exit(result)
    release = rollouts.fleet.target.release
    for host in result["hosts"]:
        name = host["host"]
        assert (host["phase"], host["verdict"]) == ("done", "pass"), rollouts.story(result)
        in_cma = old[name].role == "cma"
        assert outcomes(result, name) == [("cma" if in_cma else "plain", "booted")], rollouts.story(result)
        (attempt,) = host["attempts"]
        if in_cma:
            assert_wholly_in_cma(attempt)
        else:
            assert attempt["bytes_in_cma"] == 0 and attempt["repair"] is None
        for figure in ("hot_phase", "outage", "time_to_ssh"):
            assert host[figure]["value"] > 0, host[figure]
        assert host["hot_phase"]["uncertainty"] > 0 and host["outage"]["resolution"] > 0
        assert host["hot_phase"]["value"] < host["outage"]["value"] < host["time_to_ssh"]["value"] + 60
        assert {check["verdict"] for check in attempt["checks"]} == {"pass"}
        assert (
            attempt["finalised"]["after"]
            == f"{name}: {old[name].release} -> {release} from the next power-on"
        )
        assert rollouts.on_host(name, "uname -r").strip() == release
    rollouts.assert_no_nonce_booted_twice()


def assert_wholly_in_cma(attempt: dict[str, Any]) -> None:
    """All of the image lies in CMA, behind a spacer, and memory was read back after the load and again."""
    assert attempt["bytes_in_cma"] == attempt["bytes_total"] > 0 and attempt["bytes_to_copy"] == 0
    assert attempt["kernel_misaligned"] is False and attempt["repair"]["spacers"] >= 1
    first, *_, loaded, again = attempt["audits"]
    assert first["kernel_misaligned"] is True, "without its repair the kernel would have been corrupted"
    for audit, when in ((loaded, "after the load"), (again, "before the jump")):
        found = (audit["when"], audit["verdict"], audit["strength"])
        assert found == (when, "sound", "read_back"), audit["reason"]


def test_again_skips_every_host_and_says_why(rollouts: Rollouts) -> None:
    result = rollouts.finish(rollouts.start(*rollouts.run_words(DEMO)))
    rollouts.assert_exit(result)
    assert {host["phase"] for host in result["hosts"]} == {"skipped"}, rollouts.story(result)
    assert all("runs the target already" in host["reason"] for host in result["hosts"])


def test_the_firmware_boots_the_target_once_it_is_the_default(rollouts: Rollouts) -> None:
    """The power fails: what comes up was not told by us."""
    vm = rollouts.fleet.vm("old1")
    before = vm.ask_service()
    vm.kill()
    vm.start()
    wait_until_up([vm], rollouts.fleet.paths, PATIENCE)
    assert vm.ask_service() not in (None, before)
    assert rollouts.on_host("old1", "uname -r").strip() == rollouts.fleet.target.release
    assert "kexec_fleet.nonce" not in rollouts.on_host("old1", "cat /proc/cmdline")


def test_without_audit_and_repair_cma_fails_and_no_cma_is_forced(rollouts: Rollouts) -> None:
    """From 7.2 again, which a reset brings back: QEMU reads the new default only at its next start."""
    rollouts.power_cycle("cma1")
    source = rollouts.on_host("cma1", "uname -r").strip()
    assert source != rollouts.fleet.target.release
    result = rollouts.finish(rollouts.start(*rollouts.run_words(UNSAFE, "cma1")))
    rollouts.assert_exit(result)
    failed, arrived = host_of(result, "cma1")["attempts"]
    assert failed["kernel_misaligned"] is True and failed["bytes_in_cma"] == failed["bytes_total"] > 0
    assert failed["repair"] is None and failed["audits"][0]["verdict"] == "hazardous"
    # Where the overwritten initrd lets the new kernel panic it resets itself; elsewhere it hangs.
    ways = {"fell_back": [], "silent": ["ordered", "accepted"]}
    assert failed["outcome"] in ways, rollouts.story(result)
    assert [power["state"] for power in failed["power"]] == ways[failed["outcome"]]
    assert failed["stage_of_death"] in STAGES and failed["evidence"]["console"], rollouts.story(result)
    assert failed["evidence"]["old_log"], "the old kernel wrote its log to the disk before it jumped"
    assert (arrived["path"], arrived["outcome"], arrived["bytes_in_cma"]) == ("no_cma", "booted", 0)
    assert rollouts.on_host("cma1", "uname -r").strip() == rollouts.fleet.target.release
    rollouts.assert_no_nonce_booted_twice()


def test_the_cli_is_killed_before_the_jump(rollouts: Rollouts) -> None:
    """Loaded or armed: the host unloads by itself, and the resume makes a new attempt."""
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("before"), "old1"))
    rollouts.wait_phase(process, "old1", *BEFORE_THE_JUMP, rollout_above=before)
    rollouts.kill(process)
    wait_until(
        "nothing stays loaded after a lost session",
        lambda: rollouts.on_host("old1", "cat /sys/kernel/kexec_loaded").strip() == "0",
    )
    result = rollouts.resume()
    rollouts.assert_exit(result)
    assert [outcome for _, outcome in outcomes(result, "old1")] == ["cancelled", "booted"]
    rollouts.assert_no_nonce_booted_twice()


def test_the_cli_is_killed_between_commit_and_go(rollouts: Rollouts) -> None:
    """`jumping` is journaled and go was never sent: the agent calls the jump dead; then a new attempt."""
    words = rollouts.run_words(rollouts.playbook("commit"), "old1")
    process = rollouts.start(*words, code=DIE_BEFORE_GO)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    record = rollouts.host("old1")
    assert record is not None and record.phase is Phase.JUMPING
    result = rollouts.resume()
    rollouts.assert_exit(result)
    assert [outcome for _, outcome in outcomes(result, "old1")] == ["never_left", "booted"]
    rollouts.assert_no_nonce_booted_twice()


def test_the_cli_is_killed_while_hosts_are_dark_and_while_they_are_verified(rollouts: Rollouts) -> None:
    """Several hosts at once; the jump goes on without us, and each host ends with one jump."""
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("dark"), "old1", "flag1"))
    rollouts.wait_phase(process, "old1", Phase.DARK, rollout_above=before)
    rollouts.kill(process)
    record = rollouts.host("old1")
    assert record is not None and record.phase is Phase.DARK, "killed only after it had seen the return"
    process = rollouts.start("rollout", "resume", "last", "--json")
    rollouts.wait_phase(process, "old1", Phase.RETURNED, rollout_above=before)
    rollouts.kill(process)
    result = rollouts.resume()
    rollouts.assert_exit(result)
    for name in ("old1", "flag1"):
        assert phase_of(result, name) == "done"
    assert outcomes(result, "old1")[-1][1] == "booted" and len(outcomes(result, "old1")) == 1
    # Of flag1 nothing can be said: it may have jumped only after the resume, which then saw it all.
    outage = host_of(result, "old1")["outage"]
    assert outage["value"] is None and "did not see the jump" in outage["why_not"], outage
    rollouts.assert_no_nonce_booted_twice()


def test_agent_session_and_vm_are_killed(rollouts: Rollouts) -> None:
    """On three hosts at once: the agent before the jump, all SSH sessions at any time, and a whole VM."""
    before = rollouts.count()
    early = (Phase.STAGED, *BEFORE_THE_JUMP)

    def kill_agent() -> None:
        rollouts.wait_phase(process, "old1", *early, rollout_above=before)
        rollouts.on_host("old1", KILL_AGENT)

    def kill_sessions() -> None:
        rollouts.wait_phase(process, "flag1", *early, rollout_above=before)
        rollouts.on_host("flag1", "pkill -KILL -f 'sshd-session: root@notty'")

    def kill_vm() -> None:
        rollouts.wait_phase(process, "cma1", *early, rollout_above=before)
        rollouts.fleet.vm("cma1").kill()
        time.sleep(1.0)
        rollouts.fleet.vm("cma1").start()

    process = rollouts.start(*rollouts.run_words(rollouts.playbook("parts"), "old1", "flag1", "cma1"))
    # Each watches its own host: one after the other, the later hosts would be through before their turn.
    with ThreadPoolExecutor() as pool:
        killers = [pool.submit(kill) for kill in (kill_agent, kill_sessions, kill_vm)]
        result = rollouts.finish(process)
    missed = [str(error) for killer in killers if (error := killer.exception()) is not None]
    assert not missed, "\n".join([*missed, rollouts.story(result)])
    rollouts.assert_exit(result)
    for name in ("old1", "flag1", "cma1"):
        tried = [outcome for _, outcome in outcomes(result, name)]
        assert tried[-1] == "booted" and len(tried) <= 3, (name, tried)
    assert outcomes(result, "cma1")[0][1] in ("interrupted", "fell_back")
    rollouts.assert_no_nonce_booted_twice()


def test_an_interrupted_rollout_is_resumable_and_says_so(rollouts: Rollouts) -> None:
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("interrupt"), "old1"))
    rollouts.wait_phase(process, "old1", Phase.STAGED, *BEFORE_THE_JUMP, Phase.DARK, rollout_above=before)
    process.send_signal(signal.SIGINT)
    stopped = rollouts.finish(process)
    rollouts.assert_exit(stopped, 130)
    assert stopped["status"] == "interrupted"
    assert phase_of(stopped, "old1") in ("pending", "dark")
    result = rollouts.resume()
    rollouts.assert_exit(result)
    assert phase_of(result, "old1") == "done"
    rollouts.assert_no_nonce_booted_twice()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_a_rollout_through_redis_survives_its_worker(rollouts: Rollouts, redis: RedisServer) -> None:
    """Real broker, real worker processes; the first worker is killed while the host is dark."""
    before = rollouts.count()
    broker = {"KEXEC_FLEET_BROKER": redis.url}
    first = rollouts.start("worker", "--concurrency", "2", env=broker)
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("redis"), "flag1"), env=broker)
    rollouts.wait_phase(process, "flag1", Phase.DARK, rollout_above=before)
    rollouts.kill(first)
    second = rollouts.start("worker", "--concurrency", "2", env=broker)
    result = rollouts.finish(process)
    rollouts.assert_exit(result)
    assert phase_of(result, "flag1") == "done", rollouts.log_of(second)
    assert outcomes(result, "flag1") == [("no_cma", "booted")]
    second.send_signal(signal.SIGTERM)
    try:
        second.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        pytest.fail("a worker must end when it is told to")
    rollouts.assert_no_nonce_booted_twice()


def test_clean_removes_what_we_left(rollouts: Rollouts) -> None:
    there = "ls -d /var/lib/kexec-fleet /run/kexec-fleet/claim.json 2>/dev/null; true"
    assert "/var/lib/kexec-fleet" in rollouts.on_host("old1", there)
    inventory = str(rollouts.fleet.inventory_path)
    result = rollouts.finish(rollouts.start("host", "clean", "old1", "-i", inventory, "--json"))
    assert "/var/lib/kexec-fleet" in result["hosts"]["old1"]["removed"]
    assert rollouts.on_host("old1", there).strip() == ""
