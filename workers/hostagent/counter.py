"""The processor's counter that keeps counting across a kexec: TSC on x86_64, CNTVCT_EL0 on aarch64.

Imports only the standard library, not even this package: jump.py copies this text into its shutdown hook.
"""

import ctypes
import mmap
import platform
import time
from typing import Any, Dict, List, NamedTuple, Optional

_CODE = {
    # rdtsc; shl rdx, 32; or rax, rdx; ret
    "x86_64": ("tsc", b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"),
    # mrs x0, cntvct_el0; ret
    "aarch64": ("cntvct", b"\x40\xe0\x3b\xd5\xc0\x03\x5f\xd6"),
}
_TRIES = 9


class Pair(NamedTuple):
    """Counter and CLOCK_MONOTONIC_RAW of one moment; `width_ns`: the clock's step around that read."""

    counter: int
    raw_ns: int
    width_ns: int


class Rate(NamedTuple):
    """Ticks a second, and the bound of its relative error that the pairs' widths leave."""

    hz: float
    relative_error: float


def monotonic_raw_ns() -> int:
    return int(round(time.clock_gettime(time.CLOCK_MONOTONIC_RAW) * 1e9))


class Counter(object):
    """`name` is "tsc", "cntvct" or None; where it is None, `read` gives CLOCK_MONOTONIC_RAW in ns instead."""

    def __init__(self, machine: Optional[str] = None) -> None:
        self.name: Optional[str] = None
        self.read = monotonic_raw_ns
        name, code = _CODE.get(machine or platform.machine(), (None, b""))
        if name is not None:
            function = self._executable(code)
            if function is not None:
                self.name = name
                self.read = function

    @staticmethod
    def _executable(code: bytes) -> Any:
        """A function that runs `code`, or None where this host forbids executable memory (SELinux execmem).

        Written first, made executable after: arm64 brings its instruction cache up to date in mprotect
        (arch/arm64/mm/ flush.c, __sync_icache_dcache), and no page is ever both writable and executable.
        """
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        libc = ctypes.CDLL(None, use_errno=True)
        mprotect = libc["mprotect"]
        mprotect.restype = ctypes.c_int
        mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            return None
        # PYFUNCTYPE keeps the interpreter lock: no other thread may come between two reads of a pair.
        function: Any = ctypes.PYFUNCTYPE(ctypes.c_uint64)(address)
        function.page = page  # unmapped with its last reference: the function outlives this Counter
        return function

    def pair(self) -> Pair:
        """The tightest of several reads of the clock, the counter and the clock again."""
        best: Optional[Pair] = None
        for _ in range(_TRIES):
            before = monotonic_raw_ns()
            value = self.read()
            after = monotonic_raw_ns()
            if best is None or after - before < best.width_ns:
                best = Pair(value, (before + after) // 2, after - before)
        assert best is not None
        return best

    def pairs(self, samples: int, span: float) -> List[Pair]:
        """`samples` pairs (at least 2) spread evenly over `span` seconds."""
        found = [self.pair()]
        start = time.monotonic()
        count = max(samples, 2)
        for number in range(1, count):
            time.sleep(max(0.0, start + span * number / (count - 1) - time.monotonic()))
            found.append(self.pair())
        return found


def rate(pairs: List[Pair]) -> Rate:
    """From the first and the last pair: over a second their distance beats any fit through the noise."""
    first, last = pairs[0], pairs[-1]
    elapsed = max(last.raw_ns - first.raw_ns, 1)
    return Rate(
        (last.counter - first.counter) * 1e9 / elapsed, (first.width_ns + last.width_ns) / 2.0 / elapsed
    )


def invariant(name: Optional[str], cpuinfo: str) -> bool:
    """Whether the counter is even in all power states: the TSC where the kernel says so, CNTVCT always."""
    if name != "tsc":
        return name == "cntvct"
    flags = cpu_flags(cpuinfo)
    return flags.get("constant_tsc", False) and flags.get("nonstop_tsc", False)


def cpu_flags(cpuinfo: str) -> Dict[str, bool]:
    """The first processor's "flags" (x86) or "Features" (arm64) of /proc/cpuinfo, each -> True."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return {flag: True for flag in value.split()}
    return {}
