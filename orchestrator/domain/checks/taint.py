"""The kernel's taint bits by name, and which of them a jump must not add (kernel/panic.c, taint_flags)."""

from __future__ import annotations

from orchestrator.domain.checks.patterns import Severity

NAMES = (
    "proprietary module",  # P
    "forced module load",  # F
    "CPU out of specification",  # S
    "forced module unload",  # R
    "machine check",  # M
    "bad page",  # B
    "set by user space",  # U
    "oops or BUG",  # D
    "ACPI table overridden",  # A
    "warning",  # W
    "staging driver",  # C
    "firmware workaround",  # I
    "out-of-tree module",  # O
    "unsigned module",  # E
    "soft lockup",  # L
    "live patch",  # K
    "auxiliary",  # X
    "randomised structures",  # T
    "test module",  # N
    "firmware control",  # J
)
"""By bit number, 0 first (Documentation/admin-guide/tainted-kernels.rst)."""

# Bit -> how bad it is, and the kinds of log line that go with it. The other bits tell of modules, firmware
# and configuration, which may differ in a new kernel without any harm: they are only reported.
GRAVE = {
    4: (Severity.FAILURE, frozenset({"machine check"})),
    5: (Severity.FAILURE, frozenset({"bad page"})),
    7: (Severity.FAILURE, frozenset({"bug", "oops"})),
    9: (Severity.FAILURE, frozenset({"warning"})),
    14: (Severity.SUSPECT, frozenset({"soft lockup"})),
}


def added(before: int, after: int) -> list[int]:
    """The bits that are set after and were not before."""
    return [bit for bit in range(after.bit_length()) if after >> bit & 1 and not before >> bit & 1]


def name(bit: int) -> str:
    """The bit's meaning, or its number where it is newer than this table."""
    return NAMES[bit] if bit < len(NAMES) else f"bit {bit}"
