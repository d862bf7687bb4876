"""The machine, initrd and units checks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.domain.checks import initrd, machine, units
from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Verdict
from orchestrator.domain.facts import HostFacts, parse_facts

EXPECTED = Expectation(nonce="n", old_boot_id="b")

# Shapes of workers/hostagent/devices.py; MemTotal of 6.16.12 in a 2 GiB QEMU machine.
MACHINE: dict[str, Any] = {
    "cpus": {"online": "0-1", "count": 2},
    "memory": {"MemTotal": 2020584},
    "nodes": {"node0": 2020584, "node1": 2020584},
    "net": {
        "lo": {"mac": "00:00:00:00:00:00", "operstate": "unknown", "driver": None, "bus": None},
        "eth0": {"mac": "52:54:00:00:00:01", "operstate": "up", "driver": "virtio_net", "bus": "virtio0"},
        "eth1": {"mac": "52:54:00:00:00:02", "operstate": "down", "driver": "e1000", "bus": "0000:00:04.0"},
    },
    "pci": {
        "0000:00:02.0": {"vendor": "0x1af4", "device": "0x1000", "driver": "virtio-pci"},
        "0000:00:03.0": {"vendor": "0x8086", "device": "0x25ab", "driver": None},
    },
    "default_routes": ["eth0"],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """MACHINE with the value at "net/eth0/mac" replaced, or removed where it is `...`."""
    data = copy.deepcopy(MACHINE)
    *way, last = path.split("/")
    inner = data
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


def judged(
    new: dict[str, Any],
    old: dict[str, Any] = MACHINE,
    cmdlines: tuple[str | None, str | None] = ("", ""),
    **collected: Any,
) -> CheckResult:
    return machine.judge(
        Before(facts=HostFacts(cmdline=cmdlines[0]), collected={"machine": old}),
        After(facts=HostFacts(cmdline=cmdlines[1]), collected={"machine": new, **collected}),
        EXPECTED,
    )


@pytest.mark.parametrize(
    ("path", "value", "verdict", "says"),
    [
        ("cpus", {"online": "0-1"}, Verdict.PASS, "as before: 2 CPUs"),
        ("cpus", {"online": "0"}, Verdict.FAIL, "1 CPUs online, 2 before"),
        ("cpus", {"online": "0-3"}, Verdict.INCONCLUSIVE, "4 CPUs online"),
        ("cpus", ..., Verdict.INCONCLUSIVE, "CPUs is not known"),
        ("memory/MemTotal", 2015028, Verdict.PASS, "1967 MiB of memory"),  # 7.3.4 in the same machine
        ("memory/MemTotal", 2020584 - 90 * 1024, Verdict.PASS, "as before"),
        ("memory/MemTotal", 2020584 - 128 * 1024, Verdict.FAIL, "1845 MiB of memory, 1973 before"),
        ("memory/MemTotal", 2020584 + 256 * 1024, Verdict.INCONCLUSIVE, "2229 MiB of memory"),
        ("memory", ..., Verdict.INCONCLUSIVE, "size of the memory is not known"),
        ("nodes/node1", ..., Verdict.FAIL, "NUMA nodes gone: node1"),
        ("nodes", ..., Verdict.PASS, "as before"),
        ("net/eth0", ..., Verdict.FAIL, "eth0 (52:54:00:00:00:01) is gone"),
        ("net/lo", ..., Verdict.PASS, "as before"),
        ("net/eth0/driver", None, Verdict.FAIL, "has no driver, it was virtio_net"),
        ("net/eth1/driver", "e1000e", Verdict.INCONCLUSIVE, "driven by e1000e, it was e1000"),
        ("net/eth0/operstate", "down", Verdict.INCONCLUSIVE, "is down, it was up"),
        ("net/eth1/operstate", "up", Verdict.PASS, "as before"),
        ("net/eth0/mac", "52:54:00:00:00:99", Verdict.INCONCLUSIVE, "has the address 52:54:00:00:00:99"),
        ("net", None, Verdict.INCONCLUSIVE, "network devices are not known"),
        ("pci/0000:00:02.0", ..., Verdict.FAIL, "0000:00:02.0 0x1af4:0x1000 is gone"),
        ("pci/0000:00:02.0/device", "0x1041", Verdict.FAIL, "is gone"),
        ("pci/0000:00:02.0/driver", None, Verdict.FAIL, "has no driver, it was virtio-pci"),
        ("pci/0000:00:03.0/driver", "i6300esb", Verdict.PASS, "as before"),
        ("pci/0000:00:09.0", {"vendor": "0x1"}, Verdict.PASS, "3 PCI devices"),
        ("pci", None, Verdict.INCONCLUSIVE, "PCI devices are not known"),
        ("default_routes", [], Verdict.INCONCLUSIVE, "no default route"),
        ("default_routes", ["eth7"], Verdict.PASS, "as before"),
    ],
)
def test_against_before(path: str, value: Any, verdict: Verdict, says: str) -> None:
    result = judged(changed(path, value))
    assert result.verdict is verdict
    assert says in result.evidence


def test_a_renamed_interface_is_the_same_device() -> None:
    data = copy.deepcopy(MACHINE)
    data["net"]["ens3"] = data["net"].pop("eth0")
    assert judged(data).verdict is Verdict.PASS


def test_slaves_of_a_bond_share_an_address() -> None:
    old, new = copy.deepcopy(MACHINE), copy.deepcopy(MACHINE)
    bond = {"mac": "52:54:00:00:00:01", "operstate": "up", "driver": None, "bus": None}
    for data, mac in ((old, "52:54:00:00:00:01"), (new, "52:54:00:00:00:02")):
        for name in ("eth0", "eth1"):
            data["net"][name] = {**data["net"][name], "mac": mac}
        data["net"]["bond0"] = {**bond, "mac": mac}
    assert judged(old, old).verdict is Verdict.PASS
    turned = {**old, "net": dict(reversed(old["net"].items()))}
    assert judged(turned, old).verdict is Verdict.PASS  # each is found in its own place
    lost = copy.deepcopy(old)
    del lost["net"]["eth1"]
    assert "eth1 (52:54:00:00:00:01) is gone" in judged(lost, old).evidence
    result = judged(new, old)  # the bond has taken its other slave's address
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "gone" not in result.evidence


def test_what_the_command_line_takes_away_is_no_damage() -> None:
    fewer = changed("cpus", {"online": "0"})
    assert judged(fewer, cmdlines=("quiet", "quiet maxcpus=1")).verdict is Verdict.INCONCLUSIVE
    assert judged(fewer, cmdlines=("maxcpus=1", "maxcpus=1")).verdict is Verdict.FAIL
    less = changed("memory/MemTotal", 1024 * 1024)
    taken = judged(less, cmdlines=("quiet", "crashkernel=512M"))
    assert taken.verdict is Verdict.INCONCLUSIVE and "crashkernel=512M" in taken.evidence
    assert judged(less, cmdlines=("quiet", "quiet maxcpus=1")).verdict is Verdict.FAIL


def test_drivers_may_come_late_while_systemd_starts() -> None:
    unbound = changed("pci/0000:00:02.0/driver", None)
    assert judged(unbound, units={"state": "starting"}).verdict is Verdict.INCONCLUSIVE
    assert judged(unbound, units={"state": "running"}).verdict is Verdict.FAIL
    assert judged(MACHINE, units={"state": "starting"}).verdict is Verdict.PASS


def test_facts_serve_where_the_collector_is_missing() -> None:
    raw = {**MACHINE, "meminfo": "MemTotal: 2020584 kB\n"}
    old, new = parse_facts(raw), parse_facts({**raw, "cpus": {"online": "0"}})
    result = machine.judge(Before(facts=old), After(facts=new), EXPECTED)
    assert result.verdict is Verdict.FAIL and "1 CPUs" in result.evidence


@pytest.mark.parametrize("gib", [1, 2, 4])
def test_a_lost_memory_block_is_noticed_on_small_machines(gib: int) -> None:
    old = changed("memory/MemTotal", gib << 20)
    new = changed("memory/MemTotal", (gib << 20) - 129 * 1024)
    assert judged(new, old).verdict is Verdict.FAIL


def test_an_initrd_that_is_kept_is_not_memory_that_is_gone() -> None:
    """Seen in the lab: 100 MiB of initrd kept on a host of 2 GiB was called a loss of memory."""
    less = changed("memory/MemTotal", 2020584 - 132 * 1024)
    kept = Expectation(nonce="n", old_boot_id="b", initrd_size=100 << 20)
    lines = ("quiet", "quiet retain_initrd")

    def verdict(new: dict[str, Any], cmdlines: tuple[str, str], expectation: Expectation) -> Verdict:
        before, after = (parse_facts({"cmdline": line}) for line in cmdlines)
        return machine.judge(
            Before(facts=before, collected={"machine": MACHINE}),
            After(facts=after, collected={"machine": new}),
            expectation,
        ).verdict

    assert verdict(less, lines, kept) is Verdict.PASS
    assert verdict(less, ("quiet", "quiet"), kept) is Verdict.FAIL, "nothing is kept without the word"
    much_less = changed("memory/MemTotal", 2020584 - 260 * 1024)
    assert verdict(much_less, lines, kept) is Verdict.FAIL, "more is gone than the initrd"
    more = changed("memory/MemTotal", 2020584 + 256 * 1024)
    assert verdict(more, lines[::-1], kept) is Verdict.PASS, "the old kernel kept one, of a size unknown"


UNPACKED = "6,301,1192776,-;Trying to unpack rootfs image as initramfs..."
FREED = "6,320,1826425,-;Freeing initrd memory: 43720K"
# Seen on 7.3.4 after a jump with a misaligned kernel in CMA.
FAILED = "0,302,1983299,-;Initramfs unpacking failed: invalid magic at start of compressed archive"


@pytest.mark.parametrize(
    ("data", "wanted", "verdict", "says"),
    [
        ({"lines": [UNPACKED, FREED], "complete": True}, None, Verdict.PASS, "unpacked without complaint"),
        ({"lines": [UNPACKED, FAILED, FREED], "complete": True}, None, Verdict.FAIL, "invalid magic"),
        ({"lines": [FAILED], "complete": False}, None, Verdict.FAIL, "invalid magic"),
        ({"lines": [UNPACKED, FREED], "complete": False}, None, Verdict.INCONCLUSIVE, "whole boot"),
        ({"lines": [], "complete": True}, None, Verdict.PASS, "not applicable"),
        ({"lines": [], "complete": True}, "ab", Verdict.FAIL, "saw none"),
        ({"lines": [UNPACKED], "complete": True}, "ab", Verdict.PASS, "unpacked"),
        ({"lines": [UNPACKED], "complete": False, "sha256": "ab"}, "ab", Verdict.PASS, "bytes are those"),
        ({"lines": [UNPACKED], "complete": True, "sha256": "cd"}, "ab", Verdict.FAIL, "not the one"),
        ({"lines": [UNPACKED], "complete": True, "sha256": "cd"}, None, Verdict.PASS, "unpacked"),
        ({"lines": [f"14{FAILED[1:]}", UNPACKED], "complete": True}, None, Verdict.PASS, "unpacked"),
        ({}, None, Verdict.INCONCLUSIVE, "whole boot"),
    ],
)
def test_initrd(data: dict[str, Any], wanted: str | None, verdict: Verdict, says: str) -> None:
    expected = Expectation(nonce="n", old_boot_id="b", initrd_sha256=wanted)
    after = After(facts=HostFacts(), collected={"initrd": data})
    result = initrd.judge(Before(facts=HostFacts()), after, expected)
    assert result.verdict is verdict
    assert says in result.evidence


def unit_data(init: str | None, failed: list[str] | None, state: str | None = None) -> dict[str, Any]:
    return {"init": init, "failed": failed, "state": state, "jobs": None}


@pytest.mark.parametrize(
    ("old", "new", "verdict", "says"),
    [
        (
            unit_data("systemd", [], "running"),
            unit_data("systemd", [], "running"),
            Verdict.PASS,
            "no unit failed anew",
        ),
        (
            unit_data("systemd", ["a.service"], "degraded"),
            unit_data("systemd", ["a.service"], "degraded"),
            Verdict.PASS,
            "1 failed before as well",
        ),
        (
            unit_data("systemd", ["a.service"]),
            unit_data("systemd", ["a.service", "b.service"], "degraded"),
            Verdict.FAIL,
            "failed since the jump: b.service",
        ),
        (
            unit_data("systemd", []),
            unit_data("systemd", ["b.service"], "starting"),
            Verdict.FAIL,
            "b.service",
        ),
        (
            unit_data("systemd", []),
            unit_data("systemd", [], "starting"),
            Verdict.INCONCLUSIVE,
            "still starting",
        ),
        (
            unit_data("systemd", []),
            unit_data("systemd", [], "maintenance"),
            Verdict.FAIL,
            "rescue",
        ),
        (
            unit_data("systemd", []),
            unit_data("systemd", None, "running"),
            Verdict.INCONCLUSIVE,
            "did not tell",
        ),
        (
            unit_data("systemd", None),
            unit_data("systemd", ["b.service"], "degraded"),
            Verdict.INCONCLUSIVE,
            "not known whether before",
        ),
        (unit_data("init", None), unit_data("init", None), Verdict.PASS, "not applicable: the init is init"),
        (unit_data("systemd", []), unit_data("sh", None), Verdict.FAIL, "it was systemd"),
        (unit_data("systemd", []), {}, Verdict.INCONCLUSIVE, "does not tell its init"),
    ],
)
def test_units(old: dict[str, Any], new: dict[str, Any], verdict: Verdict, says: str) -> None:
    result = units.judge(
        Before(facts=HostFacts(), collected={"units": old}),
        After(facts=HostFacts(), collected={"units": new}),
        EXPECTED,
    )
    assert result.verdict is verdict
    assert says in result.evidence
