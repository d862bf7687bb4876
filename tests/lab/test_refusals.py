"""Hosts that say no: one clear error each, the right exit code, nothing left loaded, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tests.support.rollouts import Rollouts

pytestmark = pytest.mark.usefixtures("hosts_up")

HOST = "cma2"
FILLER = "/var/lib/filler"


def refused(rollouts: Rollouts, playbook: str, inventory: str | None = None) -> dict[str, Any]:
    """Run a rollout over the one host, which must fail; the host's summary."""
    words = rollouts.run_words(rollouts.playbook(playbook), HOST)
    if inventory is not None:
        words[words.index("-i") + 1] = inventory
    process = rollouts.start(*words)
    result = rollouts.finish(process)
    log = rollouts.log_of(process)
    rollouts.assert_exit(result, 1)
    assert "Traceback" not in log
    (host,) = result["hosts"]
    assert host["phase"] == "failed" and host["hint"], host
    assert rollouts.on_host(HOST, "cat /sys/kernel/kexec_loaded").strip() == "0"
    assert HOST not in rollouts.boots(HOST)
    return dict(host)


def with_host(rollouts: Rollouts, name: str, **changes: object) -> str:
    """An inventory in which the host has other settings; None takes one away."""
    inventory = yaml.safe_load(rollouts.fleet.inventory_path.read_text())
    host = inventory["hosts"][HOST]
    for key, value in changes.items():
        host.pop(key, None)
        if value is not None:
            host[key] = value
    path = rollouts.folder / f"{name}.inventory.yaml"
    path.write_text(yaml.safe_dump(inventory))
    return str(path)


def other_key(rollouts: Rollouts) -> str:
    hosts = yaml.safe_load(rollouts.fleet.inventory_path.read_text())["hosts"]
    return str(hosts["cma1"]["host_key"])


def test_a_changed_host_key(rollouts: Rollouts) -> None:
    inventory = with_host(rollouts, "changed", host_key=other_key(rollouts))
    host = refused(rollouts, "changed", inventory)
    assert "host key" in host["reason"] and "SHA256:" in host["reason"] + host["hint"]
    assert host["attempts"] == []


def test_an_unknown_host_key(rollouts: Rollouts) -> None:
    empty = rollouts.folder / "known_hosts"
    empty.touch()
    inventory = with_host(rollouts, "unknown", host_key=None, known_hosts=str(empty))
    host = refused(rollouts, "unknown", inventory)
    assert "host key" in host["reason"] and "host_key" in host["hint"]
    assert empty.read_text() == "", "an unknown key is never learnt by itself"


def test_a_refused_login(rollouts: Rollouts) -> None:
    inventory = with_host(rollouts, "login", user="nobody-here")
    host = refused(rollouts, "login", inventory)
    assert "login as nobody-here refused" in host["reason"]


def test_a_closed_port(rollouts: Rollouts) -> None:
    playbook = rollouts.playbook("closed")
    text = playbook.read_text()
    assert "connect: 5m" in text
    playbook.write_text(text.replace("connect: 5m", "connect: 3s"))
    words = rollouts.run_words(playbook, HOST)
    words[words.index("-i") + 1] = with_host(rollouts, "closed", port=9)
    result = rollouts.finish(rollouts.start(*words))
    rollouts.assert_exit(result, 1)
    assert "unreachable" in result["hosts"][0]["reason"]


@contextmanager
def on_host(rollouts: Rollouts, command: str, undo: str) -> Iterator[None]:
    rollouts.on_host(HOST, command)
    try:
        yield
    finally:
        rollouts.on_host(HOST, undo)


def test_no_python3(rollouts: Rollouts) -> None:
    away = "mv /usr/bin/python3 /usr/bin/python3.away"
    with on_host(rollouts, away, "mv /usr/bin/python3.away /usr/bin/python3"):
        host = refused(rollouts, "python")
    assert "python3" in host["reason"]


def test_a_full_disk(rollouts: Rollouts) -> None:
    fill = f"rm -rf /var/lib/kexec-fleet; dd if=/dev/zero of={FILLER} bs=1M; sync"
    with on_host(rollouts, fill, f"rm -f {FILLER}; sync"):
        host = refused(rollouts, "disk")
    assert "stage" in host["reason"] and "bytes" in host["reason"]


def test_a_command_line_that_is_too_long_with_the_running_one(rollouts: Rollouts) -> None:
    playbook = rollouts.playbook("long")
    playbook.write_text(playbook.read_text() + f"cmdline: {{append: [x={'y' * 1900}]}}\n")
    result = rollouts.finish(rollouts.start(*rollouts.run_words(playbook, HOST)))
    rollouts.assert_exit(result, 1)
    (host,) = result["hosts"]
    assert "the command line takes" in host["reason"] and "the image allows 2017" in host["reason"]
    assert "remove" in host["hint"]


def test_loading_is_disabled(rollouts: Rollouts) -> None:
    """The sysctl cannot be taken back on a running kernel: the VM is reset afterwards."""
    rollouts.on_host(HOST, "echo 1 > /proc/sys/kernel/kexec_load_disabled")
    host = refused(rollouts, "disabled")
    assert "kexec_load_disabled" in host["reason"]
    rollouts.power_cycle(HOST)


@pytest.mark.parametrize("words", [["no-such-host"], ["all & !all"]])
def test_a_limit_that_leaves_no_host_touches_none(rollouts: Rollouts, words: list[str]) -> None:
    process = rollouts.start(*rollouts.run_words(rollouts.playbook("none"), *words))
    assert rollouts.finish(process)["exit_code"] == 2
    assert "hint" in rollouts.log_of(process)
