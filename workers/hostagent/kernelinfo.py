"""What the running kernel and its init say of themselves, one small reader each."""

import gzip
import struct
from typing import Any, Dict, List, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.files import names, read_line, read_text
from workers.hostagent.processes import run

_CONFIG_PREFIXES = (
    "CONFIG_KEXEC",
    "CONFIG_CMA",
    "CONFIG_DMA_CMA",
    "CONFIG_CRASH_DUMP",
    "CONFIG_INIT_ON_ALLOC",
    "CONFIG_PANIC_TIMEOUT",
    "CONFIG_PSTORE",
    "CONFIG_RANDOMIZE_BASE",
    "CONFIG_PHYSICAL_ALIGN",
    "CONFIG_SECURITY_LOCKDOWN",
    "CONFIG_BLK_DEV_INITRD",
    "CONFIG_RD_",
    "CONFIG_IKCONFIG",
    "CONFIG_PROC_KCORE",
    "CONFIG_HZ=",
)
_NT_GNU_BUILD_ID = 3  # elf.h
_EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # UEFI specification, EFI_GLOBAL_VARIABLE


def build_id(env: Environment) -> Optional[str]:
    """The running kernel's GNU build-id (hex) from the ELF notes in /sys/kernel/notes, or None."""
    try:
        with open(env.sys + "/kernel/notes", "rb") as handle:
            data = handle.read(1 << 20)
    except OSError:
        return None
    offset = 0
    while offset + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("=III", data, offset)
        start = offset + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and data[offset + 12 : offset + 12 + name_size] == b"GNU\0":
            return data[start : start + size].hex()
        offset = start + (size + 3 & ~3)
    return None


def uptime(env: Environment) -> Optional[float]:
    """Seconds since boot (CLOCK_BOOTTIME, 0.01 s resolution), or None."""
    words = (read_line(env.proc + "/uptime") or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None


def config(env: Environment, release: str) -> Optional[List[str]]:
    """The CONFIG_ lines that matter here, from /boot/config-<release> or /proc/config.gz, else None."""
    text = read_text("{}/config-{}".format(env.boot, release), 4 << 20)
    if text is None:
        try:
            with gzip.open(env.proc + "/config.gz", "rb") as handle:
                text = handle.read(4 << 20).decode("utf-8", "replace")
        except OSError:
            return None
    # What is off stands there too, as "# CONFIG_X is not set".
    return [line for line in text.splitlines() if line.replace("# ", "", 1).startswith(_CONFIG_PREFIXES)]


def lockdown(env: Environment) -> Optional[str]:
    """The text of /sys/kernel/security/lockdown, e.g. "[none] integrity confidentiality", or None."""
    return read_line(env.sys + "/kernel/security/lockdown")


def secure_boot(env: Environment) -> Optional[bool]:
    """Whether UEFI Secure Boot is on; None without UEFI or where the variable cannot be read."""
    path = "{}/firmware/efi/efivars/SecureBoot-{}".format(env.sys, _EFI_GLOBAL)
    try:
        with open(path, "rb") as handle:
            data = handle.read(16)
    except OSError:
        return None
    return (
        data[4:5] == b"\x01"
    )  # 4 bytes of attributes, then the value (Documentation/filesystems/efivarfs.rst)


def virt(env: Environment, flags: Dict[str, bool]) -> Optional[str]:
    """What a virtual machine's firmware says, e.g. "QEMU Standard PC (Q35 + ICH9, 2009)"; None on metal."""
    vendor = read_line(env.sys + "/class/dmi/id/sys_vendor") or ""
    product = read_line(env.sys + "/class/dmi/id/product_name") or ""
    if "hypervisor" not in flags and vendor != "QEMU":
        return None
    return (vendor + " " + product).strip() or "unknown"


def failed_units(env: Environment) -> Optional[List[str]]:
    """Names of failed units, sorted; None without systemd or where it does not answer."""
    if not env.has_systemd():
        return None
    status, text = run(
        [env.systemctl, "list-units", "--state=failed", "--all", "--plain", "--no-legend", "--full"], 10.0
    )
    if status != 0:
        return None
    return sorted(line.split()[0] for line in text.splitlines() if line.strip())


def jobs(env: Environment) -> Optional[int]:
    """How many jobs systemd still has queued; None without systemd."""
    if not env.has_systemd():
        return None
    status, text = run([env.systemctl, "list-jobs", "--no-legend", "--plain"], 10.0)
    if status != 0:
        return None
    return sum(1 for line in text.splitlines() if line.split() and line.split()[0].isdigit())


def clocksource(env: Environment) -> Dict[str, Any]:
    base = env.sys + "/devices/system/clocksource/clocksource0/"
    return {
        "current": read_line(base + "current_clocksource"),
        "available": (read_line(base + "available_clocksource") or "").split(),
    }


def pstore(env: Environment) -> List[str]:
    """Names of the records that a crash left in pstore."""
    return names(env.sys + "/fs/pstore")
