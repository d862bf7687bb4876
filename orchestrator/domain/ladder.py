"""What to try next on a host: facts, the playbook's CMA policy and the attempts so far -> the next step.

Decides by what the kernel answered (flag probe, area), never by its version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.facts import HostFacts
from orchestrator.domain.playbook import AfterFailure
from orchestrator.domain.policy import CmaPolicy
from orchestrator.domain.rollout import Outcome

# include/uapi/linux/kexec.h; DEBUG since 6.7, NO_CMA since 6.17. Asked of the kernel by the flag probe.
KEXEC_FILE_DEBUG = 0x8
KEXEC_FILE_NO_CMA = 0x10

BLAMELESS = frozenset({Outcome.NEVER_LEFT, Outcome.INTERRUPTED, Outcome.CANCELLED})
"""Outcomes that say nothing against the kernel or its placement: they force nothing."""

UNCOUNTED = frozenset({Outcome.INTERRUPTED, Outcome.CANCELLED, Outcome.AUDIT_REFUSED})
"""Outcomes that do not use up one of the playbook's attempts: the host was never told to jump."""

MAX_UNCOUNTED = 5
"""How often in one rollout an uncounted attempt may be repeated. A host that somebody else reboots again and
again, or a rollout that is cancelled again and again, must not be loaded for ever; the number is a choice."""


class LoadPath(StrEnum):
    """Which way the image is loaded."""

    CMA = "cma"  # the flag is not set, and the image may lie in CMA
    NO_CMA = "no_cma"  # KEXEC_FILE_NO_CMA is set
    PLAIN = "plain"  # the flag is not set: this kernel, or this host, has no CMA to place in


class CheckLevel(StrEnum):
    """How hard the boot is checked."""

    NORMAL = "normal"
    RAISED = "raised"  # the initrd is kept in memory (retain_initrd), so that its bytes can be compared


RISKS = {
    LoadPath.CMA: "where all segments lie in CMA a kernel may store no digest: then the rehearsal before the "
    "jump and the checks after it are the only witnesses",
    LoadPath.NO_CMA: "outside CMA the image lies where stray DMA of the old kernel can reach it, until it "
    "runs",
    LoadPath.PLAIN: "",
}
"""What each path exposes the image to (kernel_kexec and kexec_calculate_store_digests, Linux 7.3)."""


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An attempt that has ended. `resolved`: a lost one whose host was looked at since."""

    path: LoadPath
    outcome: Outcome
    resolved: bool = False


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load with exactly these kexec_file_load(2) flags (NO_INITRAMFS is added by whoever knows the files)."""

    path: LoadPath
    flags: int
    reason: str

    @property
    def risk(self) -> str:
        """What this path exposes the image to; empty for the way that every kernel has always gone."""
        return RISKS[self.path]

    @property
    def level(self) -> CheckLevel:
        """How hard a boot of this load is to be checked."""
        return CheckLevel.RAISED if self.risk else CheckLevel.NORMAL


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Nothing more is to be tried on this host in this rollout."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The host's state is not known: look at it before anything else."""

    reason: str


Step = Load | GiveUp | Look


def next_step(
    facts: HostFacts,
    policy: CmaPolicy,
    attempts: Sequence[PastAttempt],
    limit: int,
    after_failure: AfterFailure,
) -> Step:
    """The next step after these attempts, oldest first; `limit` is the playbook's `attempts`."""
    return _stop(attempts, limit, after_failure) or _load(facts, policy, attempts)


def _stop(attempts: Sequence[PastAttempt], limit: int, after_failure: AfterFailure) -> GiveUp | Look | None:
    """The reason not to try again, from the attempts alone."""
    if any(attempt.outcome is Outcome.LOST and not attempt.resolved for attempt in attempts):
        return Look(reason="an attempt is lost: whether the host jumped is not known")
    if any(attempt.outcome is Outcome.BOOTED for attempt in attempts):
        return GiveUp(reason="the host has booted the target already")
    if attempts and attempts[-1].outcome is Outcome.AUDIT_REFUSED and attempts[-1].path is not LoadPath.CMA:
        return GiveUp(
            reason="the image is hazardous also outside CMA",
            hint="`host doctor` shows where it would lie; it takes another kernel, initrd or memory map",
        )
    counted = [attempt for attempt in attempts if attempt.outcome not in UNCOUNTED]
    if counted and after_failure is AfterFailure.STOP:
        return GiveUp(reason=f"the attempt ended {counted[-1].outcome}, and the playbook says stop")
    if len(counted) >= limit:
        last = f", the last one {counted[-1].outcome}" if counted else ""
        return GiveUp(reason=f"all {limit} attempts are used up{last}")
    if len(attempts) - len(counted) >= MAX_UNCOUNTED:
        return GiveUp(
            reason=f"interrupted or cancelled {MAX_UNCOUNTED} times before a jump",
            hint="Find out what else reboots this host or stops this rollout, then start a new one.",
        )
    return None


def _load(facts: HostFacts, policy: CmaPolicy, attempts: Sequence[PastAttempt]) -> Load | GiveUp:
    """The path of the next load."""
    failed = next((attempt.outcome for attempt in reversed(attempts) if _blames_cma(attempt)), None)
    if policy is CmaPolicy.REQUIRE:
        return _required(facts, failed)
    if policy is CmaPolicy.NEVER and facts.knows_no_cma is not False:
        # Also where the probe gave no answer: a kernel that does not know the flag refuses the load (EINVAL,
        # kernel/kexec_file.c), which breaks the policy less than a silent use of CMA.
        return _with(facts, LoadPath.NO_CMA, "the playbook says: never CMA")
    if facts.knows_no_cma is False:
        return _with(
            facts, LoadPath.PLAIN, "this kernel does not know KEXEC_FILE_NO_CMA, so it has no CMA path"
        )
    if failed is not None:
        return _with(facts, LoadPath.NO_CMA, f"an attempt with CMA ended {failed}: NO_CMA is forced")
    if facts.has_cma_area is False:
        return _with(facts, LoadPath.PLAIN, "this host has no CMA area")
    if facts.knows_no_cma is None:
        # Not PLAIN: this load may lie in CMA, and a failure of it must force NO_CMA.
        return _with(facts, LoadPath.CMA, "the flag probe gave no answer: the image may be placed in CMA")
    return _with(facts, LoadPath.CMA, "this kernel can place the image in CMA")


def _required(facts: HostFacts, failed: Outcome | None) -> Load | GiveUp:
    """`cma: require`: CMA or nothing."""
    if facts.knows_no_cma is None:
        return GiveUp(
            reason="the playbook requires CMA, and whether this kernel can load into CMA could not be asked",
            hint="The probe needs kexec_file_load(2) and no limit in kernel.kexec_load_limit_reboot.",
        )
    if not facts.knows_no_cma:
        return GiveUp(
            reason="the playbook requires CMA, and this kernel cannot load into CMA",
            hint="Use `cma: prefer` for the way onto a kernel that can, and require it from then on.",
        )
    if facts.has_cma_area is False:
        return GiveUp(
            reason="the playbook requires CMA, and this host has no CMA area",
            hint="Boot it with cma=SIZE (such as cma=256M) on its kernel command line.",
        )
    if failed is not None:
        return GiveUp(
            reason=f"the playbook requires CMA, and an attempt with CMA ended {failed}",
            hint="Use `cma: prefer` to let the retry load without CMA.",
        )
    return _with(facts, LoadPath.CMA, "the playbook requires CMA")


def _blames_cma(attempt: PastAttempt) -> bool:
    """Whether this attempt is a reason never to use CMA again here (architecture: any failure with CMA)."""
    return (
        attempt.path is LoadPath.CMA
        and attempt.outcome not in BLAMELESS
        and attempt.outcome is not Outcome.BOOTED
    )


def _with(facts: HostFacts, path: LoadPath, reason: str) -> Load:
    """A load on that path; DEBUG where known, so that the kernel log tells where the segments lie."""
    flags = KEXEC_FILE_NO_CMA if path is LoadPath.NO_CMA else 0
    return Load(path=path, flags=flags | (KEXEC_FILE_DEBUG if facts.knows_debug else 0), reason=reason)
