"""What the user asked for: hosts, kernels, sizes; parsed, checked, nothing done yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.domain.errors import InputError
from orchestrator.lab.paths import check_name

SIZE = re.compile(r"(\d+)([KMG]?)i?B?", re.IGNORECASE)
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LEAST_MEMORY = 512 << 20
INIT_WORD = "kexec_fleet_lab.init="  # of the guests' command line


class InitKind(StrEnum):
    MINI = "mini"
    SYSTEMD = "systemd"


class AccelChoice(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class HostSpec:
    name: str
    kernel: str  # a version prefix, or /path/vmlinuz, or /path/vmlinuz+/path/modules


@dataclass(frozen=True, kw_only=True)
class LabOptions:
    memory: int = 2 << 30  # bytes
    cma: str = "384M"  # the kernel's cma= parameter; empty: none
    cpus: int = 1
    init: InitKind = InitKind.MINI
    accel: AccelChoice = AccelChoice.AUTO
    target: str = ""  # empty: the newest kernel with CMA
    initrd_pad: int = 0  # bytes that do not compress, added to every initramfs
    watchdog: bool = False
    shared_memory: bool = False  # the guest's RAM can be read and written from here
    append: str = ""  # more words for the kernel command line
    inventory: Path | None = None  # None: beside the lab's state
    boot_seconds: float = 900.0  # for the slowest host, on a busy machine without KVM
    # Those of memory, cma, cpus, init and shared_memory that the user gave: a host that is there must agree.
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.cma and parse_size(self.cma, "cma") >= self.memory:
            raise InputError(
                f"cma {self.cma} does not fit into the memory of {self.memory >> 20}M",
                hint="give --cma at most about half of --memory",
            )
        if not self.boot_seconds > 0:  # NaN is not, either
            raise InputError(
                f"boot timeout {self.boot_seconds:g} is not usable",
                hint="give --boot-timeout seconds above 0",
            )


def parse_size(text: str, what: str) -> int:
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} {text!r} is not a size", hint="write for example 512M or 2G")
    return int(match[1]) * FACTORS[match[2].upper()]


def parse_memory(text: str) -> int:
    size = parse_size(text, "memory")
    if size < LEAST_MEMORY or size % (1 << 20):
        raise InputError(f"memory {text!r} is not usable", hint="give whole MiB, at least 512M")
    return size


def parse_cma(text: str) -> str:
    """The value goes onto the kernel command line as it is, so it must be one word of the right form."""
    if text in ("", "none", "0"):
        return ""
    parse_size(text, "cma")
    return text


def parse_hosts(text: str) -> list[HostSpec]:
    """`web1=7.3,web2=/boot/vmlinuz`."""
    if not text.strip():
        raise InputError(
            "--hosts is empty",
            hint="write for example web1=7.3; without --hosts it is the default fleet, or what the lab has",
        )
    specs: list[HostSpec] = []
    for item in (part.strip() for part in text.split(",")):
        name, equals, kernel = item.partition("=")
        if not equals or not kernel:
            raise InputError(
                f"host {item!r} names no kernel", hint="write NAME=VERSION, for example web1=7.3"
            )
        if any(spec.name == name for spec in specs):
            raise InputError(f"host {name!r} is named twice")
        specs.append(HostSpec(check_name(name, "host name"), kernel))
    return specs
