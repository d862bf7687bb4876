"""Known faults of kernels, as data: the only thing that is decided by version, each entry with its reference.

An entry stands here only while nothing on the host tells of the fault before it strikes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.versions import compare_versions


@dataclass(frozen=True, kw_only=True)
class VersionRange:
    """Releases from `first` on and before `before`; None: no bound on that side."""

    first: str | None = None
    before: str | None = None

    def holds(self, release: str) -> bool:
        """Whether that release is inside; one without a number is in no bounded range."""
        for bound, sides in ((self.first, (0, 1)), (self.before, (-1,))):
            if bound is not None and compare_versions(release, bound) not in sides:
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """One fault. Empty `running` or `target`: any kernel. `fatal`: never jump; else it is only recorded."""

    name: str
    hazard: str  # what happens
    action: str  # what to do instead
    reference: str
    fatal: bool
    running: tuple[VersionRange, ...] = ()  # the kernel that loads
    target: tuple[VersionRange, ...] = ()  # the kernel that is loaded
    machine: str | None = None  # uname -m
    initrd_over: int | None = None  # only with an initrd of more bytes


ERRATA: tuple[Erratum, ...] = (
    Erratum(
        name="sha256-2g",
        running=(
            # Which 6.1.y has the fix was not found out: all count, so a 2 GiB initrd is refused there.
            VersionRange(first="6.0", before="6.6.109"),
            VersionRange(first="6.7", before="6.12.50"),
            VersionRange(first="6.13", before="6.16"),
        ),
        initrd_over=(1 << 31) - 1,
        hazard="the load itself crashes this kernel: its SHA-256 counts a segment's bytes in an int",
        action="make the initrd smaller than 2 GiB, or boot a later kernel through the firmware first",
        reference=(
            "include/crypto/sha256_base.h: `crypto: sha256 - fix crash at kexec` (Linux 6.12.50, 6.6.109), "
            "`crypto: lib/sha256 - Move partial block handling out` (6.16)"
        ),
        fatal=True,
    ),
)


def match_errata(
    errata: Sequence[Erratum],
    *,
    running: str | None,
    target: str | None,
    machine: str | None,
    initrd_size: int | None,
) -> tuple[Erratum, ...]:
    """The entries that hold for loading `target` on `running` (releases as uname -r has them).

    An unknown release, machine or size matches no entry that asks for one.
    """
    return tuple(
        erratum
        for erratum in errata
        if _any_holds(erratum.running, running)
        and _any_holds(erratum.target, target)
        and erratum.machine in (None, machine)
        and (erratum.initrd_over is None or (initrd_size or 0) > erratum.initrd_over)
    )


def _any_holds(ranges: tuple[VersionRange, ...], release: str | None) -> bool:
    return not ranges or (release is not None and any(one.holds(release) for one in ranges))
