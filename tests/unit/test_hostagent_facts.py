"""Facts and collectors on a directory that plays /proc and /sys; the domain understands their answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.facts import parse_facts
from tests.unit.hostagent_harness import Host, host_in, sha256


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        for path, text in {
            "proc/cmdline": "root=/dev/vda init_on_alloc=0 init_on_alloc=1\n",
            "proc/uptime": "12.34 5.00\n",
            "proc/mounts": "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/vdb /data xfs ro 0 0\n",
            "proc/iomem": "00001000-0009fbff : System RAM\n  00002000-00003000 : Kernel code\n"
            "000f0000-000fffff : Reserved\n00100000-5ffd9fff : System RAM\n",
            "proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n"
            "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\n"
            "eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n",
            "proc/sys/kernel/tainted": "512\n",
            "proc/sys/kernel/hostname": "web1\n",
            "sys/kernel/kexec_crash_loaded": "1\n",
            "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
            "sys/firmware/initrd": "the initrd",
            "sys/devices/system/cpu/online": "0-3\n",
            "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:  2048000 kB\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
            "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet \n",
            "sys/class/net/eth0/address": "52:54:00:00:00:01\n",
            "sys/class/net/eth0/operstate": "up\n",
            "sys/class/net/bonding_masters": "\n",
            "sys/bus/pci/devices/0000:00:03.0/vendor": "0x1af4\n",
            "sys/bus/pci/devices/0000:00:03.0/device": "0x1000\n",
            "sys/block/vda/size": "8\n",
            "sys/block/loop0/size": "0\n",
            "sys/drivers/virtio_net/x": "",
            "boot/config-7.2.12-test": "CONFIG_CMA=y\nCONFIG_USB=y\n# CONFIG_KEXEC_HANDOVER is not set\n",
            "dev/kmsg": "6,0,0,-;Linux version 7.2.12-test\n"
            "6,1,0,-;cma: Reserved 256 MiB at 0x000000004fe00000\n"
            "6,2,0,-;mem auto-init: stack:all(zero), heap alloc:on, heap free:off\n"
            "6,3,0,-;usb 1-1: new device\n SUBSYSTEM=usb\n"
            "4,4,0,-;something to worry about\n"
            "6,5,0,-;Initramfs unpacking failed: invalid magic at start of compressed archive\n"
            "6,6,0,-;PM: hibernation: Registered nosave memory: [mem 0x0-0xfff]\n",
        }.items():
            host.write(path, text)
        driver = host.root / "sys/class/net/eth0/device/driver"
        driver.parent.mkdir()
        driver.symlink_to(host.root / "sys/drivers/virtio_net")
        yield host


def test_facts_ship_what_was_read(host: Host) -> None:
    facts = host.agent().ask("facts")
    expected: dict[str, Any] = {
        "release": "7.2.12-test",
        "hostname": "web1",
        "init": "init",
        "failed_units": None,
        "taint": 512,
        "uptime_s": 12.34,
        "cpus": {"online": "0-3", "present": None, "possible": None, "count": 4},
        "cpu_flags": ["constant_tsc", "nonstop_tsc"],
        "clocksource": {"current": "tsc", "available": ["tsc", "hpet"]},
        "flags": {"no_cma": True, "debug": True},
        "flag_errnos": {"no_cma": 9, "debug": 9},
        "lockdown": "[none] integrity confidentiality",
        "secure_boot": None,
        "config": ["CONFIG_CMA=y", "# CONFIG_KEXEC_HANDOVER is not set"],
        "nodes": {"node0": 2048000},
        "iomem_ram": [[0x1000, 0x9FBFF], [0x100000, 0x5FFD9FFF]],
        "default_routes": ["eth0"],
        "disk_free": {"path": str(host.root), "bytes": 10**12},
        "virt": None,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["cma"] == {
        "areas": {"reserved": {"available_pages": 65536}},
        "total_kb": 262144,
        "free_kb": 262144,
        "boot_log": ["cma: Reserved 256 MiB at 0x000000004fe00000"],
    }
    assert facts["init_on_alloc"] == {
        "boot_log": "mem auto-init: stack:all(zero), heap alloc:on, heap free:off",
        "parameter": "1",
    }
    assert facts["kexec"] == {
        "loaded": 0,
        "crash_loaded": 1,
        "crash_size": None,
        "load_disabled": 0,
        "load_limit_reboot": -1,
    }
    assert list(facts["net"]) == ["eth0"]
    assert facts["net"]["eth0"]["driver"] == "virtio_net"
    assert facts["block"] == {
        "vda": {"bytes": 4096, "read_only": None, "driver": None, "model": None, "serial": None}
    }
    assert [mount["target"] for mount in facts["mounts"]] == ["/", "/data"]


def test_the_domain_understands_them(host: Host) -> None:
    facts = parse_facts(host.agent().ask("facts"))
    assert facts.knows_no_cma is True
    assert facts.mem_total_bytes == 2048000 * 1024
    assert facts.cma_log_area is not None
    assert facts.build_id is None


def test_facts_without_devices_and_on_an_empty_host(host: Host, tmp_path: Path) -> None:
    facts = host.agent().ask("facts", devices=False)
    assert not {"net", "pci", "block"} & set(facts)
    with host_in(tmp_path / "empty") as empty:
        for path in ("proc/meminfo", "proc/cpuinfo", "sys/kernel/kexec_loaded", "dev/kmsg"):
            (empty.root / path).unlink()
        bare = empty.agent().ask("facts")
        assert bare["cmdline"] is None
        assert bare["kexec"]["loaded"] is None
        assert parse_facts(bare).mem_total_bytes is None


def test_a_limit_on_loads_is_not_used_up_by_probing(host: Host) -> None:
    host.write("proc/sys/kernel/kexec_load_limit_reboot", "3\n")
    facts = host.agent().ask("facts")
    assert (facts["flags"], facts["flag_errnos"]) == ({"no_cma": None, "debug": None}, {})


def collected(host: Host, name: str, **args: Any) -> dict[str, Any]:
    answer = host.agent().ask("check", collector=name, args=args)
    assert answer["collector"] == name
    assert answer["seconds"] >= 0
    return answer["data"]


def test_the_log_sends_warnings_and_what_tells_of_damage(host: Host) -> None:
    data = collected(host, "log")
    numbers = [int(line.split(",")[1]) for line in data["lines"]]
    assert numbers == [1, 2, 4, 5]
    assert (data["total"], data["first_seq"], data["wrapped"]) == (7, 0, False)
    assert (data["complete"], data["truncated"], data["taint"]) == (True, False, 512)
    assert len(collected(host, "log", all=True)["lines"]) == 7
    short = collected(host, "log", bytes=60)
    assert (len(short["lines"]), short["truncated"]) == (1, True)


def test_a_ring_that_has_lost_its_beginning_says_so(host: Host) -> None:
    host.write("dev/kmsg", "6,700,0,-;late\n")
    assert collected(host, "log")["wrapped"] is True
    assert collected(host, "initrd")["complete"] is False


def test_the_initrd_is_hashed_where_it_was_kept(host: Host) -> None:
    data = collected(host, "initrd")
    assert [line.partition(";")[2][:9] for line in data["lines"]] == ["Initramfs"]
    assert (data["sha256"], data["size"], data["complete"]) == (sha256(b"the initrd"), 10, True)
    (host.root / "sys/firmware/initrd").unlink()
    assert collected(host, "initrd")["sha256"] is None


def test_identity_and_machine_and_units(host: Host) -> None:
    assert collected(host, "identity")["uptime_s"] == 12.34
    machine = collected(host, "machine")
    assert machine["memory"]["CmaTotal"] == 262144
    assert machine["pci"]["0000:00:03.0"]["vendor"] == "0x1af4"
    units = collected(host, "units")
    assert (units["init"], units["failed"], units["state"]) == ("init", None, None)


def test_files_are_found_and_hashed(host: Host) -> None:
    agent = host.agent()
    data = os.urandom(9000)
    path = host.write("boot/vmlinuz-7.3", data)
    found = agent.ask("resolve", pattern=str(host.root / "boot/vmlinuz*"))
    assert [match["path"] for match in found["matches"]] == [str(host.kernel), str(path)]
    assert found["matches"][1]["size"] == 9000
    digest = agent.ask("digest", path=str(path))
    assert (digest["sha256"], digest["size"]) == (sha256(data), 9000)
    for wrong in ("/nowhere", str(host.root), "nul\0"):
        assert agent.refused("digest", path=wrong)["code"] == "no_file"
