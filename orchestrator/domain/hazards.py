"""The audit's vocabulary: what can be wrong with a loaded image, how much it weighs, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class HazardKind(StrEnum):
    """What is wrong with a loaded image."""

    MISALIGNED_KERNEL = "misaligned_kernel"
    STALE_TAIL = "stale_tail"
    BODY_DIFFERS = "body_differs"
    NO_DIGEST = "no_digest"
    LEAKED_CMA = "leaked_cma"
    RESERVED_OVERLAP = "reserved_overlap"
    ERRATUM = "erratum"
    STRAY_DMA = "stray_dma"
    UNREADABLE = "unreadable"


class Weight(StrEnum):
    """What follows from a hazard."""

    CORRUPTS = "corrupts"  # never jump
    RISK = "risk"  # recorded, raises the check level


class AuditVerdict(StrEnum):
    """What the audit says of the image."""

    SOUND = "sound"
    HAZARDOUS = "hazardous"
    UNKNOWN = "unknown"


class Strength(StrEnum):
    """What the verdict rests on, strongest first."""

    READ_BACK = "read_back"  # all of the image that lies in CMA was read and compared
    BOOT_LOG = "boot_log"  # the tails are taken for clean because the kernel said that it clears pages
    ARITHMETIC = "arithmetic"  # addresses and sizes alone


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One finding. `first` and `last`: the physical bytes that are stale, differ or will be overwritten."""

    kind: HazardKind
    weight: Weight
    text: str
    cause: str
    kernels: str  # which kernels have it
    reference: str  # source file, function, kernel version
    first: int | None = None
    last: int | None = None
    segments: tuple[int, ...] = ()  # indexes
    evidence: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "segments": list(self.segments)}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The judgement of one loaded image."""

    verdict: AuditVerdict
    hazards: tuple[Hazard, ...] = ()
    strength: Strength = Strength.ARITHMETIC
    reason: str = ""

    def of(self, kind: HazardKind, weight: Weight | None = None) -> tuple[Hazard, ...]:
        """The hazards of that kind, of that weight where one is given."""
        return tuple(one for one in self.hazards if one.kind is kind and weight in (None, one.weight))

    @property
    def corrupting(self) -> tuple[Hazard, ...]:
        """Those for which nobody may jump."""
        return tuple(one for one in self.hazards if one.weight is Weight.CORRUPTS)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "strength": self.strength,
            "reason": self.reason,
            "hazards": [hazard.as_dict() for hazard in self.hazards],
        }
