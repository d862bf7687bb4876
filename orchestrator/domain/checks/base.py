"""What a check after the boot takes and gives: facts and collectors' data of before and after, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from orchestrator.domain.facts import HostFacts
from orchestrator.domain.raw import mapping_of


class Verdict(StrEnum):
    """What a check says. Inconclusive is an answer of its own: a human decides."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def worst(*verdicts: Verdict) -> Verdict:
    """One fail is a fail, else one inconclusive is inconclusive; without any verdict nothing is proven."""
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), Verdict.INCONCLUSIVE)


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check's answer: `evidence` is a sentence for people, `details` JSON values for machines."""

    name: str
    verdict: Verdict
    evidence: str
    details: Mapping[str, Any] = field(default_factory=_nothing)

    def as_dict(self) -> dict[str, Any]:
        """As the journal stores it."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "evidence": self.evidence,
            "details": dict(self.details),
        }


@dataclass(frozen=True, kw_only=True)
class SshSession:
    """One fresh login after the boot: the boot that answered, or why there is none."""

    boot_id: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Before:
    """The host before the first attempt of the rollout; `collected`: collector -> its data."""

    facts: HostFacts
    collected: Mapping[str, Any] = field(default_factory=_nothing)

    def data(self, collector: str) -> Mapping[str, Any]:
        """That collector's data, empty where it is missing."""
        return mapping_of(self.collected.get(collector))


@dataclass(frozen=True, kw_only=True)
class After(Before):
    """The host after its return, and the logins that followed."""

    sessions: tuple[SshSession, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the attempt was to achieve."""

    nonce: str
    old_boot_id: str
    release: str | None = None  # None: the playbook names none, and the image's header told none
    build_id: str | None = None  # hex; None: the image could not be read
    version: str | None = None  # the header's whole text, "RELEASE (who@where) #1 SMP ... (date)"
    initrd_sha256: str | None = None  # of the initrd as it was loaded
    initrd_size: int | None = None  # bytes of the initrd as it was staged; None: not known, 0: there is none
    log_ignore: tuple[str, ...] = ()  # the playbook's regular expressions


JudgeFunction = Callable[[Before, After, Expectation], CheckResult]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """One check: its name, the collectors whose data it reads, and its rule."""

    name: str
    collectors: tuple[str, ...]
    judge: JudgeFunction
