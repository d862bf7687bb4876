"""The kernel log records of one load, as text -> figures, with no judgement but "this cannot be whole".

The kernel prints them when KEXEC_FILE_DEBUG is set (since 6.7): the segments in kernel/kexec_file.c, what
each holds in arch/x86/kernel/kexec-bzimage64.c and arch/arm64/kernel/{machine_kexec_file,kexec_image}.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_HEX = "0x([0-9a-f]+)"
_SEGMENT = re.compile(
    rf"\bkexec_file: segment\[(\d+)\]: buf=\S+ bufsz={_HEX} mem={_HEX} memsz={_HEX}$", re.ASCII
)
_SEGMENT_COUNT = re.compile(r"\bkexec_file: nr_segments = (\d+)$", re.ASCII)
_LOADED = re.compile(rf"\bkexec_file: kexec_file_load: type:\d+, start:{_HEX} head:{_HEX} flags:{_HEX}$")
# The prefix is kexec-bzImage64 on x86, kexec_file(Image) and kexec_file on arm64 (arch/*/kernel, pr_fmt).
_NAMED = re.compile(
    rf"\bkexec[-\w()]*: Loaded "
    rf"(purgatory|boot_param, command line and misc|64bit kernel|kernel|initrd|dtb) at {_HEX}"
    rf"(?: bufsz={_HEX} memsz={_HEX})?$"
)
_RECORD_PREFIX = re.compile(r"^\d+,\d+,\d+,[^;]*;")
_PRINTK_TIME = re.compile(r"^\[\s*\d+\.\d+\]\s*")


class Role(StrEnum):
    """What a segment holds."""

    PURGATORY = "purgatory"
    BOOT_PARAMETERS = "boot parameters"
    KERNEL = "kernel"
    INITRD = "initrd"
    DTB = "device tree"
    OTHER = "other"


_NAMES = {
    "purgatory": Role.PURGATORY,
    "boot_param, command line and misc": Role.BOOT_PARAMETERS,
    "64bit kernel": Role.KERNEL,
    "kernel": Role.KERNEL,
    "initrd": Role.INITRD,
    "dtb": Role.DTB,
}

X86_ORDER = (Role.PURGATORY, Role.BOOT_PARAMETERS, Role.KERNEL, Role.INITRD)
"""How bzImage64_load adds them (arch/x86/kernel/kexec-bzimage64.c): for where a naming record is missing."""


@dataclass(frozen=True)
class Sizes:
    """One `segment[]` record, bytes."""

    bufsz: int
    address: int
    memsz: int


@dataclass(frozen=True)
class Named:
    """One `Loaded ... at` record; `bufsz` None where it tells none (purgatory)."""

    role: Role
    bufsz: int | None


@dataclass
class Records:
    """What the records of the last load in the log say."""

    segments: dict[int, Sizes] = field(default_factory=dict)  # by index
    named: dict[int, Named] = field(default_factory=dict)  # by address
    count: int | None = None
    head: int | None = None
    flags: int | None = None
    ended: bool = False


def read_records(lines: Iterable[str]) -> Records:
    """Raw /dev/kmsg records or bare text -> those of the last load. Never raises.

    A load begins anew where purgatory is named, where `nr_segments` follows segments, where an index comes a
    second time, and after the record that ends a load.
    """
    records = Records()
    for line in lines:
        text = _PRINTK_TIME.sub("", _RECORD_PREFIX.sub("", line)).rstrip()
        if match := _NAMED.search(text):
            role = _NAMES[match[1]]
            if records.ended or role is Role.PURGATORY:  # the naming records come before those that place
                records = Records()
            bufsz = None if match[3] is None else int(match[3], 16)
            records.named[int(match[2], 16)] = Named(role, bufsz)
        elif match := _SEGMENT_COUNT.search(text):
            records = Records(named=records.named, count=int(match[1]))
        elif match := _SEGMENT.search(text):
            index = int(match[1])
            if index in records.segments or records.ended:
                records = Records(named=records.named)
            records.segments[index] = Sizes(int(match[2], 16), int(match[3], 16), int(match[4], 16))
        elif match := _LOADED.search(text):
            records.head, records.flags, records.ended = int(match[2], 16), int(match[3], 16), True
    return records


def roles_of(records: Records, machine: str | None) -> Mapping[int, Role]:
    """Index -> role: as named, on x86_64 also by the order where a naming record is missing."""
    indexes = sorted(records.segments)
    named = {
        index: records.named[sizes.address].role
        for index, sizes in records.segments.items()
        if sizes.address in records.named
    }
    roles = {index: named.get(index, Role.OTHER) for index in indexes}
    usual = machine == "x86_64" and indexes in ([0, 1, 2], [0, 1, 2, 3])
    if usual and all(X86_ORDER[index] is role for index, role in named.items()):
        roles = {index: X86_ORDER[index] for index in indexes}
    return roles


def incomplete(records: Records, machine: str | None, page_size: int, log_complete: bool) -> str:
    """Why the records do not place the whole image; empty when they do."""
    found = sorted(records.segments)
    if not found:
        return "the kernel log has no segment of this load"
    if records.count is not None and found != list(range(records.count)):
        return f"the kernel log has {len(found)} of {records.count} segments"
    if found != list(range(len(found))):
        return "segments are missing from the kernel log"
    if records.count is None and (records.head is None or not log_complete):
        return "the kernel log does not have the whole load"
    return _damaged(records, page_size) or _misnamed(records, machine)


def _damaged(records: Records, page_size: int) -> str:
    """kexec_add_buffer (kernel/kexec_file.c) rounds memsz up to a page and never lets segments overlap."""
    end = 0
    for index, sizes in sorted(records.segments.items(), key=lambda item: item[1].address):
        misfit = sizes.memsz % page_size or sizes.address % page_size or sizes.bufsz > sizes.memsz
        if misfit or not sizes.memsz:
            return f"the record of segment {index} is damaged"
        if sizes.address < end:
            return f"the record of segment {index} is damaged: it overlaps another segment"
        end = sizes.address + sizes.memsz
    return ""


def _misnamed(records: Records, machine: str | None) -> str:
    """Whether the naming records contradict the others. arm64 names anew what it places again after a
    failed try (image_load, arch/arm64/kernel/kexec_image.c), so there a name may be nobody's."""
    by_address = {sizes.address: sizes for sizes in records.segments.values()}
    if machine != "x86_64":
        return ""
    for address, named in records.named.items():
        sizes = by_address.get(address)
        if sizes is None:
            return f"the kernel log names the {named.role} at 0x{address:x}, where no segment lies"
        if named.bufsz is not None and named.bufsz != sizes.bufsz:
            return f"the kernel log tells two sizes of the {named.role}"
    present = [named.role for named in records.named.values()]
    if len(set(present)) != len(present):
        return "the kernel log names one role twice"
    roles = set(roles_of(records, machine).values())
    if not {Role.PURGATORY, Role.BOOT_PARAMETERS, Role.KERNEL} <= roles:
        return "the kernel log does not tell which segment holds what"
    return ""
