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

import pytest

from orchestrator.domain.rollout import Phase
from tests.support.redis import RedisServer, redis_server
from tests.support.rollouts import Rollouts, outcomes, phase_of, wait_until

# Runs in the CLI's process: dies at the moment when `jumping` is committed and go has not been sent.
DIE_BEFORE_GO = (
    "import os, signal, workers.agent as a; "
    "a.AgentClient.go = lambda *args, **words: os.kill(os.getpid(), signal.SIGKILL)"
)
BEFORE_THE_JUMP = (Phase.LOADED, Phase.ARMED)
KILL_AGENT = "pkill -KILL -f 'python3 -I -c import hashlib' -o"


def test_the_default_fleet_moves_onto_the_target(rollouts: Rollouts) -> None:
    """CMA where the kernel has it: corrupted, back through the firmware, and in with the flag forced."""
    playbook = Path(__file__).parents[2] / "playbooks" / "lab-demo.yaml"
    result = rollouts.finish(rollouts.start(*rollouts.run_words(playbook)))
    assert result["exit_code"] == 0, result
    roles = {vm.host: vm.config.role for vm in rollouts.fleet.vms()}
    assert set(roles.values()) == {"cma", "flag", "old"}
    for host in result["hosts"]:
        assert (host["phase"], host["verdict"]) == ("done", "pass"), host
        tried = outcomes(result, host["host"])
        if roles[host["host"]] == "cma":
            first = host["attempts"][0]
            assert first["kernel_misaligned"] is True, "an aligned kernel would not have been corrupted"
            assert first["bytes_in_cma"] == first["bytes_total"] > 0
            assert tried == [("cma", "fell_back"), ("no_cma", "booted")]
        else:
            assert tried == [("plain", "booted")]
        last = host["attempts"][-1]
        assert last["bytes_in_cma"] == 0
        for figure in ("hot_phase", "outage", "time_to_ssh"):
            assert host[figure]["value"] > 0, host[figure]
        assert host["hot_phase"]["uncertainty"] > 0 and host["outage"]["resolution"] > 0
        assert host["hot_phase"]["value"] < host["outage"]["value"] < host["time_to_ssh"]["value"] + 60
        assert {check["verdict"] for check in last["checks"]} == {"pass"}
        assert rollouts.on_host(host["host"], "uname -r").strip() == rollouts.fleet.target.release
    rollouts.assert_no_nonce_booted_twice()


def test_again_skips_every_host_and_says_why(rollouts: Rollouts) -> None:
    playbook = Path(__file__).parents[2] / "playbooks" / "lab-demo.yaml"
    result = rollouts.finish(rollouts.start(*rollouts.run_words(playbook)))
    assert result["exit_code"] == 0
    assert {host["phase"] for host in result["hosts"]} == {"skipped"}
    assert all("runs the target already" in host["reason"] for host in result["hosts"])


def test_the_cli_is_killed_before_the_jump(rollouts: Rollouts) -> None:
    """Loaded or armed: the host unloads by itself, and the resume makes a new attempt."""
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("before"), "old1"))
    rollouts.wait_phase("old1", *BEFORE_THE_JUMP, rollout_above=before)
    rollouts.kill(process)
    wait_until(
        "nothing stays loaded after a lost session",
        lambda: rollouts.on_host("old1", "cat /sys/kernel/kexec_loaded").strip() == "0",
    )
    result = rollouts.resume()
    assert phase_of(result, "old1") == "done"
    assert [outcome for _, outcome in outcomes(result, "old1")] == ["cancelled", "booted"]
    rollouts.assert_no_nonce_booted_twice()


def test_the_cli_is_killed_between_commit_and_go(rollouts: Rollouts) -> None:
    """`jumping` is journaled and go was never sent: the agent calls the jump dead; then a new attempt."""
    words = rollouts.run_words(rollouts.playbook("commit"), "old1")
    process = rollouts.start(*words, code=DIE_BEFORE_GO)
    process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL
    record = rollouts.host("old1")
    assert record is not None and record.phase is Phase.JUMPING
    result = rollouts.resume()
    assert [outcome for _, outcome in outcomes(result, "old1")] == ["never_left", "booted"]
    rollouts.assert_no_nonce_booted_twice()


def test_the_cli_is_killed_while_hosts_are_dark_and_while_they_are_verified(rollouts: Rollouts) -> None:
    """Several hosts at once; the jump goes on without us, and each host ends with one jump."""
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("dark"), "old1", "flag1"))
    rollouts.wait_phase("old1", Phase.DARK, rollout_above=before)
    rollouts.kill(process)
    process = rollouts.start("rollout", "resume", "last", "--json")
    rollouts.wait_phase("old1", Phase.RETURNED, rollout_above=before)
    rollouts.kill(process)
    result = rollouts.resume()
    for name in ("old1", "flag1"):
        assert phase_of(result, name) == "done"
    assert outcomes(result, "old1")[-1][1] == "booted" and len(outcomes(result, "old1")) == 1
    assert result["hosts"][0]["outage"]["value"] is None, "nobody saw the outage: no number"
    rollouts.assert_no_nonce_booted_twice()


def test_agent_session_and_vm_are_killed(rollouts: Rollouts) -> None:
    """On three hosts at once: the agent before the jump, all SSH sessions at any time, and a whole VM."""
    before = rollouts.count()
    early = (Phase.STAGED, *BEFORE_THE_JUMP)

    def kill_agent() -> None:
        rollouts.wait_phase("old1", *early, rollout_above=before)
        rollouts.on_host("old1", KILL_AGENT)

    def kill_sessions() -> None:
        rollouts.wait_phase("flag1", *early, rollout_above=before)
        rollouts.on_host("flag1", "pkill -KILL -f 'sshd-session: root@notty'")

    def kill_vm() -> None:
        rollouts.wait_phase("cma1", *early, rollout_above=before)
        rollouts.fleet.vm("cma1").kill()
        time.sleep(1.0)
        rollouts.fleet.vm("cma1").start()

    # Each watches its own host: one after the other, the later hosts would be through before their turn.
    with ThreadPoolExecutor() as pool:
        killers = [pool.submit(kill) for kill in (kill_agent, kill_sessions, kill_vm)]
        process = rollouts.start(*rollouts.run_words(rollouts.playbook("parts"), "old1", "flag1", "cma1"))
        result = rollouts.finish(process)
        for killer in killers:
            killer.result(timeout=60)
    assert result["exit_code"] == 0, result
    for name in ("old1", "flag1", "cma1"):
        tried = [outcome for _, outcome in outcomes(result, name)]
        assert tried[-1] == "booted" and len(tried) <= 3, (name, tried)
    assert outcomes(result, "cma1")[0][1] in ("interrupted", "fell_back")
    rollouts.assert_no_nonce_booted_twice()


def test_an_interrupted_rollout_is_resumable_and_says_so(rollouts: Rollouts) -> None:
    before = rollouts.count()
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("interrupt"), "old1"))
    rollouts.wait_phase("old1", Phase.STAGED, *BEFORE_THE_JUMP, Phase.DARK, rollout_above=before)
    process.send_signal(signal.SIGINT)
    stopped = rollouts.finish(process)
    assert (stopped["exit_code"], stopped["status"]) == (130, "interrupted")
    assert phase_of(stopped, "old1") in ("pending", "dark")
    assert phase_of(rollouts.resume(), "old1") == "done"
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
    rollouts.wait_phase("flag1", Phase.DARK, rollout_above=before)
    rollouts.kill(first)
    second = rollouts.start("worker", "--concurrency", "2", env=broker)
    result = rollouts.finish(process)
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
