"""The states of a host in a rollout, the outcomes of an attempt, and the one table of legal transitions."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.domain.errors import IllegalTransition


class Phase(StrEnum):
    """Where one host stands in one rollout."""

    PENDING = "pending"  # not started, or between attempts
    PREFLIGHT = "preflight"  # an attempt is bound to this boot; facts are being weighed
    STAGED = "staged"  # image and initrd lie on the host, verified
    LOADED = "loaded"  # the next kernel is loaded and live
    ARMED = "armed"  # the keeper has an appointment and waits for go
    JUMPING = "jumping"  # committed: go may have been told
    DARK = "dark"  # told to go; no answer yet
    RETURNED = "returned"  # answers again with the nonce on its command line
    VERIFIED = "verified"  # every check passed
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"  # we do not know; looked at again before anything else
    SKIPPED = "skipped"


class Outcome(StrEnum):
    """How one attempt ended."""

    BOOTED = "booted"
    LOAD_REFUSED = "load_refused"  # the host did not load the image
    AUDIT_REFUSED = "audit_refused"  # we did not like where it lay
    JUMP_REFUSED = "jump_refused"  # reboot(2) came back with an errno
    NEVER_LEFT = "never_left"  # same boot_id, and the agent says that the jump is dead
    FELL_BACK = "fell_back"  # told to go; a new boot without our nonce: the firmware's boot
    SILENT = "silent"  # told to go; no return before the deadline
    CORRUPTED = "corrupted"  # returned, a check failed
    INTERRUPTED = "interrupted"  # a new boot though no jump was told: someone else rebooted it
    CANCELLED = "cancelled"  # we stopped before the jump
    LOST = "lost"  # we do not know


class RolloutStatus(StrEnum):
    """Where a whole rollout stands."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"  # the controller was told to stop; resumable
    PAUSED = "paused"  # a verdict was inconclusive: a human decides
    ABORTED = "aborted"
    FAILED = "failed"  # the failure budget is spent, or hosts failed
    DONE = "done"


TERMINAL = frozenset({Phase.DONE, Phase.FAILED, Phase.SKIPPED})
"""Phases in which a host needs nothing more of this rollout. LOST is not one: it is looked at again."""

SPENT = frozenset({Phase.FAILED, Phase.LOST})
"""Phases that count against the failure budget: failed, unreachable, lost, came back wrong."""

MAY_HAVE_JUMPED = frozenset({Phase.JUMPING, Phase.DARK, Phase.RETURNED, Phase.VERIFIED, Phase.LOST})
"""Phases in which the host may run another kernel because of us."""

_ENDS = frozenset({Phase.FAILED, Phase.LOST})

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset({Phase.PREFLIGHT, Phase.SKIPPED}) | _ENDS,
    # RETURNED from everywhere: a host that is back with the nonce is back, whatever we believed.
    Phase.PREFLIGHT: frozenset({Phase.STAGED, Phase.PENDING, Phase.RETURNED}) | _ENDS,
    Phase.STAGED: frozenset({Phase.LOADED, Phase.PENDING, Phase.RETURNED}) | _ENDS,
    Phase.LOADED: frozenset({Phase.ARMED, Phase.PENDING, Phase.RETURNED}) | _ENDS,
    Phase.ARMED: frozenset({Phase.JUMPING, Phase.PENDING, Phase.RETURNED}) | _ENDS,
    # Back to ARMED only when the agent itself answers that go came too late and nothing was started.
    Phase.JUMPING: frozenset({Phase.DARK, Phase.ARMED, Phase.PENDING, Phase.RETURNED}) | _ENDS,
    Phase.DARK: frozenset({Phase.RETURNED, Phase.PENDING}) | _ENDS,
    Phase.RETURNED: frozenset({Phase.VERIFIED, Phase.PENDING}) | _ENDS,
    # Back where a process died before it had set the boot loader's default: the host is looked at again.
    Phase.VERIFIED: frozenset({Phase.DONE, Phase.RETURNED, Phase.PENDING}) | _ENDS,
    # To itself: looked at again after a fault of ours, and still not known.
    Phase.LOST: frozenset({Phase.RETURNED, Phase.PENDING}) | _ENDS,
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.SKIPPED: frozenset(),
}


def require_transition(host: str, old: Phase, new: Phase) -> None:
    """Raise IllegalTransition where the table has no way from `old` to `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{host}: no transition from {old} to {new}")


def draw() -> str:
    """The table as a Mermaid state diagram; the README's picture is this text, held equal by a test."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for old in Phase:
        lines += [f"    {old} --> {new}" for new in Phase if new in TRANSITIONS[old]]
        if old in TERMINAL:
            lines.append(f"    {old} --> [*]")
    return "\n".join(lines)
