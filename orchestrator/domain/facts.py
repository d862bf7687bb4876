"""What is known of a host: the agent's raw `facts` answer (docs/agent-protocol.md, "Facts") as frozen values.

A missing or malformed key becomes None, never a guess: the rules that read these values say themselves what
they do when they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from orchestrator.domain.raw import mapping_of, optional_bool, optional_int, optional_text, texts_of

# Linux, Documentation/ABI/testing/sysfs-kernel-mm-cma: one folder an area. The default area is called
# "reserved" (kernel/dma/contiguous.c, dma_contiguous_reserve_area); a device tree's default pool carries its
# node's name, "linux,cma" by the shared-dma-pool binding.
_DEFAULT_AREA_NAMES = ("reserved", "linux,cma")

# mm/cma.c over the versions: "Reserved %ld MiB at %pa", that with " on node %d" behind (6.x), "CMA: reserved
# %ld MiB at %08lx" (3.x); "Reserved %lu MiB in %d range%s" (cma_declare_contiguous_multi) tells no address.
# kernel/dma/contiguous.c, rmem_cma_setup: "created CMA memory pool at %pa, size %ld MiB".
_RESERVED_AT = re.compile(r"\bcma: reserved (\d+) MiB at (?:0x)?([0-9a-f]{6,16})\b", re.IGNORECASE)
_RESERVED_POOL = re.compile(
    r"created CMA memory pool at (?:0x)?([0-9a-f]{6,16}), size (\d+) MiB", re.IGNORECASE
)
_MEMINFO_LINE = re.compile(r"^([A-Za-z0-9_()]+):\s+(\d+)(?:\s+kB)?\s*$", re.MULTILINE)
_HEAP_ALLOC = re.compile(r"mem auto-init:.*\bheap alloc:(on|off)")
_CONFIG_LINE = re.compile(r"^(?:# )?(CONFIG_[A-Za-z0-9_]+)(?:=(.*)| is not set)$")

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CmaArea:
    """One CMA area; page counters are sysfs's (CONFIG_CMA_SYSFS) and None where the kernel has none."""

    name: str
    base: int | None = None  # physical address; only the boot log tells it
    size: int | None = None  # bytes
    total_pages: int | None = None
    available_pages: int | None = None
    alloc_pages_success: int | None = None  # pages ever allocated, not calls
    alloc_pages_fail: int | None = None
    release_pages_success: int | None = None

    def holds(self, address: int, size: int) -> bool | None:
        """Whether [address, address + size) lies inside; None when base or size is unknown."""
        if self.base is None or self.size is None:
            return None
        return self.base <= address and address + size <= self.base + self.size


@dataclass(frozen=True, kw_only=True)
class NetDevice:
    """A network interface; `driver` None: virtual, or no driver is bound."""

    name: str
    mac: str | None
    driver: str | None
    operstate: str | None
    bus: str | None = None  # the device behind it, "0000:00:03.0" or "virtio1"; None: a virtual interface


@dataclass(frozen=True, kw_only=True)
class PciDevice:
    """A PCI function; `driver` None: no driver is bound."""

    address: str
    vendor: str | None
    device: str | None
    driver: str | None


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """One host at one moment. Sizes are bytes; None means that the host did not say."""

    boot_id: str | None = None
    release: str | None = None  # uname -r
    machine: str | None = None  # uname -m
    hostname: str | None = None
    cmdline: str | None = None
    cpus_online: int | None = None
    mem_total_bytes: int | None = None  # MemTotal: RAM less what the kernel keeps for itself
    page_size: int | None = None
    cma_areas: tuple[CmaArea, ...] | None = None  # None: sysfs tells of none, which does not mean none
    cma_total_bytes: int | None = None  # CmaTotal; counts hugetlb_cma and others too: a hint
    cma_free_bytes: int | None = None  # CmaFree; moves with the page cache: a hint
    cma_log_area: CmaArea | None = None  # the area that the boot log tells of
    iomem_ram: tuple[tuple[int, int], ...] | None = None  # System RAM, [first, last] physical addresses
    meminfo_read: bool = False
    knows_no_cma: bool | None = None  # KEXEC_FILE_NO_CMA, by the flag probe
    knows_debug: bool | None = None  # KEXEC_FILE_DEBUG, by the flag probe
    kexec_loaded: bool | None = None
    crash_loaded: bool | None = None
    load_disabled: bool | None = None  # sysctl kernel.kexec_load_disabled
    load_limit_reboot: int | None = None  # sysctl; -1: no limit
    lockdown: str | None = None  # none, integrity, confidentiality
    secure_boot: bool | None = None
    clocksource: str | None = None
    cpu_flags: frozenset[str] | None = None
    init_on_alloc: bool | None = None
    build_id: str | None = None  # lower-case hex
    taint: int | None = None
    config: Mapping[str, str] | None = None  # CONFIG_X -> y, m, 250, ...; "n" for "is not set"
    net: tuple[NetDevice, ...] | None = None
    pci: tuple[PciDevice, ...] | None = None
    block: Mapping[str, Any] = field(default_factory=_empty)
    failed_units: tuple[str, ...] | None = None
    init: str | None = None
    virt: str | None = None
    disk_free_bytes: int | None = None
    uptime_s: float | None = None

    @property
    def default_area(self) -> CmaArea | None:
        """The one area that kexec uses (dma_contiguous_default_area), with base and size where known."""
        for name in _DEFAULT_AREA_NAMES:
            for area in self.cma_areas or ():
                if area.name == name or area.name.startswith(f"{name}@"):
                    return _with_place(area, self.cma_log_area)
        return self.cma_log_area if self.cma_areas is None else None

    @property
    def has_cma_area(self) -> bool | None:
        """Whether the default area exists and is not empty; None: cannot be told from here."""
        area = self.default_area
        if area is not None and area.size is not None:
            return area.size > 0
        if self.cma_areas is not None:
            return False  # the counters are there and none of them is the default area's
        if self.cma_total_bytes is not None and self.cma_total_bytes > 0:
            return None  # some area, perhaps hugetlb's
        # fs/proc/meminfo.c prints CmaTotal under CONFIG_CMA only.
        return False if self.meminfo_read else None

    @property
    def invariant_counter(self) -> bool | None:
        """Whether the CPU promises that its counter runs on at one rate, also through idle states.

        x86: constant_tsc and nonstop_tsc (arch/x86/kernel/cpu/intel.c). aarch64: the generic timer is
        required to (Arm ARM, D12 "The Generic Timer": always-on, fixed frequency).
        """
        if self.machine == "aarch64":
            return True
        if self.cpu_flags is None or self.machine != "x86_64":
            return None
        return {"constant_tsc", "nonstop_tsc"} <= self.cpu_flags

    @property
    def tick_seconds(self) -> float | None:
        """Length of one timer tick from CONFIG_HZ, in seconds."""
        hz = optional_int((self.config or {}).get("CONFIG_HZ"))
        return 1 / hz if hz else None


def _with_place(area: CmaArea, log_area: CmaArea | None) -> CmaArea:
    """The sysfs area with the boot log's base, when both speak of an area of one size."""
    if log_area is None or area.base is not None or (area.size is not None and area.size != log_area.size):
        return area
    return CmaArea(**{**area.__dict__, "base": log_area.base, "size": log_area.size})


def parse_facts(raw: Mapping[str, Any]) -> HostFacts:
    """`facts` answer of the agent -> HostFacts. Never raises for missing or odd values."""
    meminfo = parse_meminfo(optional_text(raw.get("meminfo")) or "")
    page_size = optional_int(raw.get("page_size"))
    cma = mapping_of(raw.get("cma"))
    kexec = mapping_of(raw.get("kexec"))
    flags = mapping_of(raw.get("flags"))
    cpu_flags = raw.get("cpu_flags")
    failed = raw.get("failed_units")
    config = raw.get("config")
    return HostFacts(
        boot_id=optional_text(raw.get("boot_id")),
        release=optional_text(raw.get("release")),
        machine=optional_text(raw.get("machine")),
        hostname=optional_text(raw.get("hostname")),
        cmdline=optional_text(raw.get("cmdline")),
        cpus_online=_cpus_online(mapping_of(raw.get("cpus"))),
        mem_total_bytes=meminfo.get("MemTotal"),
        page_size=page_size,
        cma_areas=parse_areas(cma.get("areas"), page_size),
        cma_total_bytes=_kib(cma.get("total_kb"), meminfo.get("CmaTotal")),
        cma_free_bytes=_kib(cma.get("free_kb"), meminfo.get("CmaFree")),
        cma_log_area=parse_cma_log(texts_of(cma.get("boot_log")) or ()),
        iomem_ram=_ranges(raw.get("iomem_ram")),
        meminfo_read="MemTotal" in meminfo,
        knows_no_cma=optional_bool(flags.get("no_cma")),
        knows_debug=optional_bool(flags.get("debug")),
        kexec_loaded=optional_bool(kexec.get("loaded")),
        crash_loaded=optional_bool(kexec.get("crash_loaded")),
        load_disabled=optional_bool(kexec.get("load_disabled")),
        load_limit_reboot=optional_int(kexec.get("load_limit_reboot")),
        lockdown=_chosen(optional_text(raw.get("lockdown"))),
        secure_boot=optional_bool(raw.get("secure_boot")),
        clocksource=optional_text(mapping_of(raw.get("clocksource")).get("current")),
        cpu_flags=None if cpu_flags is None else frozenset(texts_of(cpu_flags) or ()),
        init_on_alloc=_init_on_alloc(raw.get("init_on_alloc")),
        build_id=_lower(optional_text(raw.get("notes_build_id"))),
        taint=optional_int(raw.get("taint")),
        config=None if config is None else parse_config(config),
        net=_net(raw.get("net")),
        pci=_pci(raw.get("pci")),
        block=MappingProxyType(dict(mapping_of(raw.get("block")))),
        failed_units=None if failed is None else texts_of(failed),
        init=optional_text(raw.get("init")),
        virt=optional_text(raw.get("virt")),
        disk_free_bytes=optional_int(mapping_of(raw.get("disk_free")).get("bytes")),
        uptime_s=_seconds(raw.get("uptime_s")),
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo -> name -> bytes (lines without kB, the huge page counts, stay counts)."""
    return {
        found[1]: int(found[2]) * (1024 if found[0].rstrip().endswith("kB") else 1)
        for found in _MEMINFO_LINE.finditer(text)
    }


def parse_areas(raw: object, page_size: int | None) -> tuple[CmaArea, ...] | None:
    """{area: {counter: pages}} of /sys/kernel/mm/cma -> areas; none -> None.

    No folder may mean no area or no CONFIG_CMA_SYSFS: from here both look alike.
    """
    if not isinstance(raw, Mapping) or not raw:
        return None
    areas = []
    for name, counters in raw.items():
        read = {key: optional_int(value) for key, value in mapping_of(counters).items()}
        total = read.get("total_pages")
        areas.append(
            CmaArea(
                name=str(name),
                size=None if total is None or page_size is None else total * page_size,
                total_pages=total,
                available_pages=read.get("available_pages"),
                alloc_pages_success=read.get("alloc_pages_success"),
                alloc_pages_fail=read.get("alloc_pages_fail"),
                release_pages_success=read.get("release_pages_success"),
            )
        )
    return tuple(areas)


def parse_cma_log(lines: Iterable[str]) -> CmaArea | None:
    """Boot log lines -> the area that they place; None when none does, or when several differ.

    With several areas (hugetlb_cma, per-NUMA areas) the log does not say which is the default one.
    """
    found = set()
    for line in lines:
        if match := _RESERVED_AT.search(line):
            found.add((int(match[2], 16), int(match[1]) * _MIB))
        elif match := _RESERVED_POOL.search(line):
            found.add((int(match[1], 16), int(match[2]) * _MIB))
    if len(found) != 1:
        return None
    base, size = found.pop()
    return CmaArea(name="reserved", base=base, size=size)


def parse_config(raw: object) -> Mapping[str, str]:
    """Selected lines of a kernel config, as text, a list of lines or a mapping -> CONFIG_X -> value."""
    if isinstance(raw, Mapping):
        return MappingProxyType({str(key): str(value) for key, value in raw.items()})
    lines = raw.splitlines() if isinstance(raw, str) else texts_of(raw) or ()
    matches = [match for line in lines if (match := _CONFIG_LINE.match(line.strip()))]
    return MappingProxyType({match[1]: "n" if match[2] is None else match[2].strip('"') for match in matches})


def selector_facts(facts: HostFacts) -> dict[str, str]:
    """What a playbook's selector may ask of a host (`kernel<7`, `cma=yes`). An unknown fact has no key."""
    cma: bool | None = None
    if facts.knows_no_cma is False or facts.has_cma_area is False:
        cma = False
    elif facts.knows_no_cma and facts.has_cma_area:
        cma = True
    asked: dict[str, object] = {
        "kernel": facts.release,
        "machine": facts.machine,
        "hostname": facts.hostname,
        "cpus": facts.cpus_online,
        "memory_mib": None if facts.mem_total_bytes is None else facts.mem_total_bytes // _MIB,
        "cma": cma,  # yes: an image can be placed in CMA here
        "no_cma_flag": facts.knows_no_cma,
        "init": facts.init,
        "virt": facts.virt,
        "lockdown": facts.lockdown,
        "secure_boot": facts.secure_boot,
        "clocksource": facts.clocksource,
    }
    return {key: _selectable(value) for key, value in asked.items() if value is not None}


def _selectable(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _cpus_online(cpus: Mapping[str, Any]) -> int | None:
    online = optional_text(cpus.get("online"))
    counted = None if online is None else count_cpu_list(online)
    return optional_int(cpus.get("count")) if counted is None else counted


def count_cpu_list(text: str) -> int | None:
    """A CPU list as sysfs prints it ("0-3,8") -> how many; None when it is no such list."""
    count = 0
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            return None
        count += int(match[2] or match[1]) - int(match[1]) + 1
    return count


def _kib(value: object, otherwise: int | None) -> int | None:
    kib = optional_int(value)
    return otherwise if kib is None else kib * 1024


def _chosen(text: str | None) -> str | None:
    """securityfs marks the chosen lockdown level with brackets: "none [integrity] confidentiality"."""
    marked = None if text is None else re.search(r"\[(\w+)\]", text)
    return marked[1] if marked else (text.strip() or None if text else None)


def _init_on_alloc(raw: object) -> bool | None:
    """The kernel's own report in its boot log (mm/mm_init.c, report_meminit) is better than the parameter."""
    if isinstance(raw, Mapping):
        texts = [text for value in raw.values() if (text := optional_text(value))]
    else:
        texts = [text for text in [optional_text(raw)] if text]
    for text in texts:
        if match := _HEAP_ALLOC.search(text):
            return match[1] == "on"
    for text in texts:
        if match := re.search(r"(?:^|init_on_alloc=)([01])$", text.strip()):
            return match[1] == "1"
    return None


def _net(raw: object) -> tuple[NetDevice, ...] | None:
    if not isinstance(raw, Mapping):
        return None
    return tuple(
        NetDevice(
            name=str(name),
            mac=_lower(optional_text(mapping_of(entry).get("mac"))),
            driver=optional_text(mapping_of(entry).get("driver")),
            operstate=optional_text(mapping_of(entry).get("operstate")),
            bus=optional_text(mapping_of(entry).get("bus")),
        )
        for name, entry in raw.items()
    )


def _pci(raw: object) -> tuple[PciDevice, ...] | None:
    if not isinstance(raw, Mapping):
        return None
    return tuple(
        PciDevice(
            address=str(address),
            vendor=optional_text(mapping_of(entry).get("vendor")),
            device=optional_text(mapping_of(entry).get("device")),
            driver=optional_text(mapping_of(entry).get("driver")),
        )
        for address, entry in raw.items()
    )


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _ranges(raw: object) -> tuple[tuple[int, int], ...] | None:
    """[[first, last], ...]; nothing or anything odd is None (/proc/iomem shows zeros to all but root)."""
    items = raw if isinstance(raw, list) else []
    pairs = [tuple(item) for item in items if isinstance(item, list)]
    ranges = [pair for pair in pairs if [type(end) for end in pair] == [int, int] and pair[0] <= pair[1]]
    return tuple(ranges) if ranges and len(ranges) == len(items) else None


def _seconds(raw: object) -> float | None:
    return float(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else None
