"""Is the machine still all there: processors, memory, network and PCI devices with their drivers, as before.

Field failures after a kexec (Talos): secondary CPUs missing, a NIC or GPU dead, driver bindings changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict, worst
from orchestrator.domain.facts import HostFacts, NetDevice, PciDevice, parse_facts
from orchestrator.domain.raw import mapping_of, optional_int, texts_of
from orchestrator.domain.words import parameter, split_words

NAME = "machine"

_MIB = 1 << 20

MEMORY_TOLERANCE_SHARE = 1 / 64
MEMORY_TOLERANCE_BYTES = 64 * _MIB
"""MemTotal leaves out what a kernel keeps for itself from the start: its image, and a `struct page` for every
page, 64 bytes for 4096, so 1/64 of the memory. Two kernels differ in a part of that at most: four Debian
kernels from 6.16 to 7.3 lay within 5.6 MiB of each other in one 2 GiB machine. What must be noticed is a
memory block (128 MiB on x86, arch/x86/include/asm/sparsemem.h) on small machines and a DIMM on large ones."""

# Words with which the command line itself takes CPUs or memory away (admin-guide/kernel-parameters.txt).
_TAKES_CPUS = frozenset({"maxcpus", "nr_cpus", "nosmp", "nosmt", "possible_cpus", "mitigations"})
_TAKES_MEMORY = frozenset(
    {"mem", "memmap", "crashkernel", "hugepages", "movablecore", "memory_corruption_check_size"}
)

_Finding = tuple[Verdict, str]


def judge(before: Before, after: After, expectation: Expectation) -> CheckResult:
    """Fail for what is gone, inconclusive for what is there in another way or cannot be compared."""
    old, new = _machine(before), _machine(after)
    kept = expectation.initrd_size or 0
    findings = [
        *_cpus(before.facts.cmdline, after.facts.cmdline, old.cpus_online, new.cpus_online),
        *_memory(before.facts.cmdline, after.facts.cmdline, old.mem_total_bytes, new.mem_total_bytes, kept),
        *_nodes(before, after),
        *_net(old.net, new.net),
        *_routes(before, after),
        *_pci(old.pci, new.pci),
    ]
    if _still_starting(after):
        # Drivers are bound as udev goes through the devices: what is not there yet may still come.
        findings = [_unsure(finding) for finding in findings]
    return CheckResult(
        name=NAME,
        verdict=worst(Verdict.PASS, *(verdict for verdict, _ in findings)),
        evidence="; ".join(text for _, text in sorted(findings, key=_grave_first)) or _summary(new),
        details={
            "cpus": {"before": old.cpus_online, "after": new.cpus_online},
            "memory_bytes": {"before": old.mem_total_bytes, "after": new.mem_total_bytes},
            "findings": [{"verdict": verdict.value, "text": text} for verdict, text in findings],
        },
    )


def _machine(side: Before) -> HostFacts:
    """The collector's data where it is there (it is the later reading), else the facts."""
    data = side.data("machine")
    if not data:
        return side.facts
    memory = optional_int(mapping_of(data.get("memory")).get("MemTotal"))
    meminfo = None if memory is None else f"MemTotal: {memory} kB\n"
    return parse_facts({**{key: data.get(key) for key in ("cpus", "net", "pci")}, "meminfo": meminfo})


def _cpus(old_line: str | None, new_line: str | None, old: int | None, new: int | None) -> list[_Finding]:
    if old is None or new is None:
        return [(Verdict.INCONCLUSIVE, "the number of CPUs is not known")]
    if new == old:
        return []
    deliberate = _asked(old_line, new_line, _TAKES_CPUS)
    verdict = Verdict.FAIL if new < old and not deliberate else Verdict.INCONCLUSIVE
    return [(verdict, f"{new} CPUs online, {old} before{deliberate}")]


def _keeps_initrd(line: str | None) -> bool:
    """An initrd that stays in memory is never added to MemTotal (retain_initrd, init/initramfs.c)."""
    return any(parameter(word) == "retain_initrd" for word in split_words(line or ""))


def _memory(
    old_line: str | None, new_line: str | None, old: int | None, new: int | None, initrd: int
) -> list[_Finding]:
    """`initrd`: bytes of the new kernel's."""
    if old is None or new is None:
        return [(Verdict.INCONCLUSIVE, "the size of the memory is not known")]
    tolerance = old * MEMORY_TOLERANCE_SHARE + MEMORY_TOLERANCE_BYTES
    kept = initrd if _keeps_initrd(new_line) else 0
    more_is_fine = _keeps_initrd(old_line)  # by how much, nobody knows: the old one's size
    if old - kept - tolerance <= new and (more_is_fine or new <= old + tolerance):
        return []
    deliberate = _asked(old_line, new_line, _TAKES_MEMORY)
    verdict = Verdict.FAIL if new < old and not deliberate else Verdict.INCONCLUSIVE
    return [(verdict, f"{new // _MIB} MiB of memory, {old // _MIB} before{deliberate}")]


def _asked(old: str | None, new: str | None, names: frozenset[str]) -> str:
    """Empty where both command lines say the same about these parameters, else what the new one says."""
    words = [
        sorted(word for word in split_words(line or "") if parameter(word) in names) for line in (old, new)
    ]
    if words[0] == words[1]:
        return ""
    return f" (the command line has {' '.join(words[1]) or 'no such option'} now)"


def _nodes(before: Before, after: After) -> list[_Finding]:
    old, new = (mapping_of(side.data("machine").get("nodes")) for side in (before, after))
    gone = sorted(set(old) - set(new))
    return [(Verdict.FAIL, f"NUMA nodes gone: {', '.join(gone)}")] if gone and new else []


def _net(old: tuple[NetDevice, ...] | None, new: tuple[NetDevice, ...] | None) -> list[_Finding]:
    """Interfaces with a driver, by MAC address: names may change, and virtual ones come and go."""
    if old is None or new is None:
        return [(Verdict.INCONCLUSIVE, "the network devices are not known")]
    left = list(new)
    findings: list[_Finding] = []
    for device in (device for device in old if device.driver is not None):
        match = _same_device(device, left)
        what = f"network device {device.name} ({device.mac})"
        if match is None:
            findings.append((Verdict.FAIL, f"{what} is gone"))
            continue
        left.remove(match)
        if match.mac != device.mac:
            findings.append((Verdict.INCONCLUSIVE, f"{what} has the address {match.mac} now"))
        findings += _binding(what, device.driver, match.driver)
        if device.operstate == "up" and match.operstate not in ("up", "unknown", None):
            # A link may take seconds to train, and whether it must be up is not ours to say.
            findings.append((Verdict.INCONCLUSIVE, f"{what} is {match.operstate}, it was up"))
    return findings


def _same_device(device: NetDevice, among: list[NetDevice]) -> NetDevice | None:
    """The one with its address, else the one in its place.

    A bond has its slaves' address and gives it to all of them (Documentation/networking/bonding.rst): of
    several the one in its place is taken, and never a virtual one.
    """
    real = [other for other in among if other.driver is not None or other.bus is not None]
    same = [other for other in real if other.mac == device.mac]
    in_place = [other for other in real if device.bus is not None and other.bus == device.bus]
    both = [other for other in same if other in in_place]
    return next(iter([*both, *same, *in_place]), None)


def _routes(before: Before, after: After) -> list[_Finding]:
    old, new = (texts_of(side.data("machine").get("default_routes")) for side in (before, after))
    return (
        [(Verdict.INCONCLUSIVE, "there is no default route, there was one before")]
        if old and new == ()
        else []
    )


def _pci(old: tuple[PciDevice, ...] | None, new: tuple[PciDevice, ...] | None) -> list[_Finding]:
    if old is None or new is None:
        return [(Verdict.INCONCLUSIVE, "the PCI devices are not known")]
    found: Mapping[str, PciDevice] = {device.address: device for device in new}
    findings: list[_Finding] = []
    for device in old:
        match = found.get(device.address)
        if match is None or (match.vendor, match.device) != (device.vendor, device.device):
            findings.append(
                (Verdict.FAIL, f"PCI device {device.address} {device.vendor}:{device.device} is gone")
            )
        else:
            findings += _binding(f"PCI device {device.address}", device.driver, match.driver)
    return findings


def _binding(what: str, old: str | None, new: str | None) -> list[_Finding]:
    """A lost driver is a dead device; another one may be the new kernel's better idea: a human judges."""
    if old is None or old == new:
        return []
    if new is None:
        return [(Verdict.FAIL, f"{what} has no driver, it was {old}")]
    return [(Verdict.INCONCLUSIVE, f"{what} is driven by {new}, it was {old}")]


def _still_starting(after: After) -> bool:
    return after.data("units").get("state") in ("initializing", "starting")


def _unsure(finding: _Finding) -> _Finding:
    verdict, text = finding
    return (
        (Verdict.INCONCLUSIVE, f"{text} (systemd is still starting)") if verdict is Verdict.FAIL else finding
    )


def _grave_first(finding: _Finding) -> bool:
    return finding[0] is not Verdict.FAIL


def _summary(machine: HostFacts) -> str:
    parts = [
        f"{machine.cpus_online} CPUs",
        f"{(machine.mem_total_bytes or 0) // _MIB} MiB of memory",
        f"{sum(device.driver is not None for device in machine.net or ())} network devices",
        f"{len(machine.pci or ())} PCI devices",
    ]
    return f"as before: {', '.join(parts)}"


JUDGE = Judge(name=NAME, collectors=("machine", "units"), judge=judge)
