"""Raw facts to values: what each key becomes, and that nothing is guessed where something is missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.facts import (
    CmaArea,
    HostFacts,
    count_cpu_list,
    parse_areas,
    parse_cma_log,
    parse_config,
    parse_facts,
    parse_meminfo,
    selector_facts,
)

BASE = 0x60C00000
MIB = 1 << 20

MEMINFO = """MemTotal:        2014872 kB
MemFree:         1325944 kB
HugePages_Total:       3
Active(anon):       1024 kB
CmaTotal:         393216 kB
CmaFree:          391680 kB
"""

RAW: dict[str, Any] = {
    "boot_id": "0b6d6c34-5b7b-4f0e-9d8f-1d2a2f6c4b11",
    "release": "7.3.4+deb14-cloud-amd64",
    "version": "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1~bpo13+1",
    "machine": "x86_64",
    "cmdline": "root=/dev/vda1 cma=384M console=ttyS0",
    "hostname": "web1",
    "cpus": {"online": "0-1", "present": "0-1", "possible": "0-1", "count": 2},
    "meminfo": MEMINFO,
    "cma": {
        "areas": {
            "reserved": {
                "total_pages": 98304,
                "available_pages": 97920,
                "alloc_pages_success": 384,
                "alloc_pages_fail": 0,
                "release_pages_success": 0,
            }
        },
        "total_kb": 393216,
        "free_kb": 391680,
        "boot_log": ["6,12,0,-;cma: Reserved 384 MiB at 0x0000000060c00000"],
    },
    "kexec": {"loaded": 0, "crash_loaded": 0, "crash_size": 0, "load_disabled": 0, "load_limit_reboot": -1},
    "flags": {"no_cma": True, "debug": True},
    "flag_errnos": {"no_cma": 9, "debug": 9},
    "lockdown": "[none] integrity confidentiality",
    "secure_boot": False,
    "clocksource": {"current": "tsc", "available": ["tsc", "hpet", "acpi_pm"]},
    "cpu_flags": ["constant_tsc", "nonstop_tsc"],
    "init_on_alloc": {
        "boot_log": "mem auto-init: stack:all(zero), heap alloc:on, heap free:off",
        "parameter": None,
    },
    "page_size": 4096,
    "notes_build_id": "5F2A19C0",
    "taint": 0,
    "config": ["CONFIG_HZ=250", "# CONFIG_KEXEC_HANDOVER is not set", "CONFIG_CMA=y"],
    "net": {"enp0s2": {"mac": "52:54:00:AB:CD:01", "operstate": "up", "driver": "virtio_net", "carrier": 1}},
    "pci": {"0000:00:02.0": {"vendor": "0x1af4", "device": "0x1000", "driver": "virtio-pci"}},
    "block": {"vda": {"size": 4194304}},
    "failed_units": ["foo.service"],
    "init": "systemd",
    "disk_free": {"path": "/var/lib", "bytes": 1234},
    "virt": "kvm",
    "uptime_s": 12.5,
    "python": "3.13.2",
}


def test_whole_answer() -> None:
    facts = parse_facts(RAW)
    assert facts.release == "7.3.4+deb14-cloud-amd64"
    assert (facts.cpus_online, facts.page_size, facts.taint) == (2, 4096, 0)
    assert facts.mem_total_bytes == 2014872 * 1024
    assert (facts.knows_no_cma, facts.knows_debug) == (True, True)
    assert (facts.kexec_loaded, facts.load_disabled, facts.load_limit_reboot) == (False, False, -1)
    assert (facts.lockdown, facts.secure_boot) == ("none", False)
    assert facts.clocksource == "tsc"
    assert facts.invariant_counter is True
    assert facts.init_on_alloc is True
    assert facts.build_id == "5f2a19c0"
    assert facts.tick_seconds == 0.004
    assert facts.config is not None and facts.config["CONFIG_KEXEC_HANDOVER"] == "n"
    assert facts.net is not None and facts.net[0].mac == "52:54:00:ab:cd:01"
    assert facts.pci is not None and facts.pci[0].driver == "virtio-pci"
    assert (facts.failed_units, facts.init, facts.disk_free_bytes) == (("foo.service",), "systemd", 1234)
    area = facts.default_area
    assert area is not None
    assert (area.base, area.size, area.available_pages) == (BASE, 384 * MIB, 97920)
    assert facts.has_cma_area is True


def test_nothing_known_is_nothing_guessed() -> None:
    facts = parse_facts({})
    assert facts == HostFacts()
    assert facts.has_cma_area is None
    assert facts.invariant_counter is None
    assert selector_facts(facts) == {}


ASCII = "01ax-,[] =\n"  # the whole of Unicode takes a second to build
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(ASCII, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(ASCII, max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.dictionaries(st.sampled_from(sorted(RAW)), json_values))
def test_odd_shapes_never_raise(raw: dict[str, Any]) -> None:
    facts = parse_facts(raw)
    selector_facts(facts)
    assert facts.has_cma_area in (True, False, None)
    assert facts.tick_seconds is None or facts.tick_seconds != 0


@pytest.mark.parametrize(
    ("line", "base", "size_mib"),
    [
        ("cma: Reserved 384 MiB at 0x0000000060c00000", BASE, 384),
        ("6,12,0,-;cma: Reserved 384 MiB at 0x0000000060c00000", BASE, 384),
        ("[    0.000000] cma: Reserved 64 MiB at 0x000000003c000000 on node -1", 0x3C000000, 64),
        ("cma: Reserved 16 MiB at 0x000000003f000000", 0x3F000000, 16),
        ("CMA: reserved 16 MiB at 3f000000", 0x3F000000, 16),
        ("Reserved memory: created CMA memory pool at 0x000000002c000000, size 320 MiB", 0x2C000000, 320),
    ],
)
def test_forms_of_the_boot_log(line: str, base: int, size_mib: int) -> None:
    assert parse_cma_log([line]) == CmaArea(name="reserved", base=base, size=size_mib * MIB)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["cma: Reserved 384 MiB in 2 ranges"],
        ["cma: Failed to reserve 384 MiB"],
        ["hugetlb_cma: reserved 512 MiB on node 0"],
        # Two areas: the log does not say which is the default one.
        ["cma: Reserved 64 MiB at 0x0000000060c00000", "cma: Reserved 512 MiB at 0x0000000080000000"],
    ],
)
def test_boot_logs_that_place_no_one_area(lines: list[str]) -> None:
    assert parse_cma_log(lines) is None


def _with_cma(cma: dict[str, Any] | None, meminfo: str = MEMINFO, **more: Any) -> HostFacts:
    return parse_facts({"page_size": 4096, "meminfo": meminfo, "cma": cma, **more})


NO_CMA_MEMINFO = "MemTotal: 2014872 kB\n"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (parse_facts(RAW), True),
        # A kernel without CONFIG_CMA prints no CmaTotal.
        (_with_cma({"areas": None, "total_kb": None, "boot_log": []}, NO_CMA_MEMINFO), False),
        # CONFIG_CMA, no cma= and no default size (Debian 7.x): CmaTotal 0, no folder of counters.
        (_with_cma({"areas": {}, "total_kb": 0}, "MemTotal: 1 kB\nCmaTotal: 0 kB\n"), False),
        (_with_cma({"areas": None, "total_kb": 0}, "MemTotal: 1 kB\nCmaTotal: 0 kB\n"), False),
        # Only hugetlb's area.
        (_with_cma({"areas": {"hugetlb0": {"total_pages": 131072}}, "total_kb": 524288}), False),
        # No counters (CONFIG_CMA_SYSFS off): the boot log decides.
        (_with_cma({"areas": None, "boot_log": RAW["cma"]["boot_log"]}), True),
        (_with_cma({"areas": {}, "total_kb": 393216, "boot_log": RAW["cma"]["boot_log"]}), True),
        # No counters and a log that has wrapped: some area, nobody knows whose.
        (_with_cma({"areas": None, "total_kb": 393216, "boot_log": []}), None),
        (_with_cma({"areas": {"reserved": {"total_pages": 0}}}), False),
        (_with_cma({"areas": {"linux,cma@2c000000": {"total_pages": 16384}}}), True),
        (_with_cma(None, ""), None),
    ],
)
def test_whether_there_is_an_area(facts: HostFacts, expected: bool | None) -> None:
    assert facts.has_cma_area is expected


def test_the_log_places_only_an_area_of_its_own_size() -> None:
    other = {"areas": {"reserved": {"total_pages": 65536}}, "boot_log": RAW["cma"]["boot_log"]}
    area = _with_cma(other).default_area
    assert area is not None and area.base is None and area.size == 256 * MIB


def test_area_counters_as_text_and_without_page_size() -> None:
    areas = parse_areas({"reserved": {"total_pages": "98304\n", "available_pages": "x"}}, None)
    assert areas == (CmaArea(name="reserved", total_pages=98304),)


@pytest.mark.parametrize(
    ("address", "size", "inside"),
    [
        (BASE, 384 * MIB, True),
        (BASE - 1, 1, False),
        (BASE, 384 * MIB + 1, False),
        (BASE + 384 * MIB - 1, 1, True),
        (BASE + 384 * MIB, 0, True),
    ],
)
def test_area_holds(address: int, size: int, inside: bool) -> None:
    assert CmaArea(name="reserved", base=BASE, size=384 * MIB).holds(address, size) is inside
    assert CmaArea(name="reserved", size=384 * MIB).holds(address, size) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 1), ("0-3", 4), ("0-3,8", 5), ("0,2-3,7-8\n", 5), ("", None), ("all", None), ("0-", None)],
)
def test_cpu_lists(text: str, count: int | None) -> None:
    assert count_cpu_list(text) == count


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("mem auto-init: stack:all(zero), heap alloc:on, heap free:off", True),
        ("mem auto-init: stack:off, heap alloc:off, heap free:off", False),
        ({"log": None, "parameter": "0"}, False),
        (
            {"log": "mem auto-init: stack:off, heap alloc:on, heap free:off", "parameter": "init_on_alloc=0"},
            True,
        ),
        ("init_on_alloc=0", False),
        (None, None),
        ("", None),
        ({}, None),
    ],
)
def test_init_on_alloc(raw: object, expected: bool | None) -> None:
    assert parse_facts({"init_on_alloc": raw}).init_on_alloc is expected


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", ["constant_tsc", "nonstop_tsc"], True),
        ("x86_64", ["constant_tsc"], False),
        ("x86_64", [], False),  # QEMU's TCG
        ("x86_64", None, None),
        ("aarch64", None, True),
        (None, ["constant_tsc", "nonstop_tsc"], None),
    ],
)
def test_invariant_counter(machine: str | None, flags: list[str] | None, expected: bool | None) -> None:
    assert parse_facts({"machine": machine, "cpu_flags": flags}).invariant_counter is expected


@pytest.mark.parametrize(
    ("lockdown", "expected"),
    [
        ("none [integrity] confidentiality", "integrity"),
        ("none", "none"),
        (None, None),
        ("", None),
    ],
)
def test_lockdown(lockdown: str | None, expected: str | None) -> None:
    assert parse_facts({"lockdown": lockdown}).lockdown == expected


def test_meminfo_units() -> None:
    read = parse_meminfo(MEMINFO)
    assert read["HugePages_Total"] == 3
    assert read["Active(anon)"] == 1024 * 1024


@pytest.mark.parametrize(
    "raw",
    [
        'CONFIG_HZ=250\n# CONFIG_KHO is not set\n# a comment\nCONFIG_X="text"\n',
        ["CONFIG_HZ=250", "# CONFIG_KHO is not set", "", 'CONFIG_X="text"'],
        {"CONFIG_HZ": 250, "CONFIG_KHO": "n", "CONFIG_X": "text"},
    ],
)
def test_config_forms(raw: object) -> None:
    assert dict(parse_config(raw)) == {"CONFIG_HZ": "250", "CONFIG_KHO": "n", "CONFIG_X": "text"}


def test_what_selectors_see() -> None:
    seen = selector_facts(parse_facts(RAW))
    assert seen["kernel"] == "7.3.4+deb14-cloud-amd64"
    assert (seen["cma"], seen["no_cma_flag"], seen["cpus"], seen["machine"]) == ("yes", "yes", "2", "x86_64")
    assert seen["memory_mib"] == "1967"
    no_area = parse_facts({**RAW, "cma": {"areas": {}, "total_kb": 0}})
    assert (selector_facts(no_area)["cma"], selector_facts(no_area)["no_cma_flag"]) == ("no", "yes")
    old = parse_facts({**RAW, "flags": {"no_cma": False}})
    assert selector_facts(old)["cma"] == "no"
    unknown = parse_facts({**RAW, "flags": {}})
    assert "cma" not in selector_facts(unknown)
