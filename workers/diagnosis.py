"""What `host doctor` knows of one host when it is done: values only, for printing and for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from orchestrator.domain.audit import LEAK_FROM
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.ladder import Load
from orchestrator.domain.placement import handover_possible
from orchestrator.domain.repair import signed_only
from workers.drive.place import Placed
from workers.drive.target import Target

CALLS_OF_A_LOAD = 2
"""A load and its unload each count against kernel.kexec_load_limit_reboot (kexec_load_permitted,
kernel/kexec_core.c, Linux 6.3)."""


class Health(StrEnum):
    """How the host and this kernel go together."""

    SOUND = "sound"  # the image may be jumped to as it is
    REPAIRED = "repaired"  # it may be jumped to after a repair, which worked
    HAZARDOUS = "hazardous"  # it would corrupt, and no repair helps
    UNKNOWN = "unknown"  # nothing is known to be wrong, and nothing proves the image
    REFUSED = "refused"  # the host or its kernel said no
    SKIPPED = "skipped"  # not loaded, so that nothing of somebody else's is lost
    LEFT_OUT = "left out"  # its facts do not match the selector
    STOPPED = "stopped"  # somebody stopped us
    LOST = "lost"  # the session broke while the host was looked at
    UNREACHABLE = "unreachable"


GOOD = frozenset({Health.SOUND, Health.REPAIRED, Health.LEFT_OUT})


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What a kernel can do about kexec, as far as it says. Sizes are bytes; None: it does not say."""

    release: str | None
    machine: str | None
    may_load: bool  # False: kexec_file_load(2) is known to be refused, `why_not` says why
    why_not: str
    load_limit: int | None  # calls that kernel.kexec_load_limit_reboot leaves; None: no limit
    knows_no_cma: bool | None
    knows_debug: bool | None
    has_area: bool | None
    area_base: int | None
    area_size: int | None
    area_free: int | None
    init_on_alloc: bool | None
    lockdown: str | None
    secure_boot: bool | None
    signed_only: bool
    invariant_counter: bool | None
    handover: bool | None  # Kexec HandOver may be on


def ability(facts: HostFacts) -> Ability:
    """Facts -> what `host doctor` says of the running kernel."""
    area = facts.default_area
    pages = None if area is None else area.available_pages
    limit = facts.load_limit_reboot
    why_not = _why_not_loadable(facts)
    # Neither its config nor its command line tells: then nobody knows, where the placement assumes no.
    known = handover_possible(facts) or "CONFIG_KEXEC_HANDOVER" in (facts.config or {})
    return Ability(
        release=facts.release,
        machine=facts.machine,
        may_load=not why_not,
        why_not=why_not,
        load_limit=limit if limit is not None and limit >= 0 else None,
        knows_no_cma=facts.knows_no_cma,
        knows_debug=facts.knows_debug,
        has_area=facts.has_cma_area,
        area_base=None if area is None else area.base,
        area_size=None if area is None else area.size,
        area_free=None if pages is None or facts.page_size is None else pages * facts.page_size,
        init_on_alloc=facts.init_on_alloc,
        lockdown=facts.lockdown,
        secure_boot=facts.secure_boot,
        signed_only=signed_only(facts),
        invariant_counter=facts.invariant_counter,
        handover=handover_possible(facts) if known else None,
    )


def _why_not_loadable(facts: HostFacts) -> str:
    limit = facts.load_limit_reboot
    if facts.load_disabled:
        return "kernel.kexec_load_disabled is 1, until the next boot through the firmware"
    if limit is not None and 0 <= limit < CALLS_OF_A_LOAD:
        return f"kernel.kexec_load_limit_reboot leaves {limit} calls; a load and its unload need 2"
    if (facts.config or {}).get("CONFIG_KEXEC_FILE") == "n":
        return "this kernel is built without CONFIG_KEXEC_FILE"
    return ""


@dataclass(frozen=True, kw_only=True)
class PowerCheck:
    """Whether power control answers. `works` None: the inventory names none."""

    kind: str = ""
    works: bool | None = None
    text: str = "none in the inventory"
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class WatchdogCheck:
    """The first watchdog device of the host. `present` None: could not be asked."""

    present: bool | None = None
    identity: str = ""
    can_be_stopped: bool | None = None  # False (nowayout): the agent does not open it


@dataclass(frozen=True, kw_only=True)
class Left:
    """The host after us. Pages are free pages of the CMA area, None where the kernel does not count them."""

    kexec_loaded: int | None
    pages_before: int | None
    pages_after: int | None
    page_size: int

    @property
    def leaked(self) -> int:
        """Bytes of CMA that did not come back; drivers take single pages, a leak is LEAK_FROM or more."""
        if self.pages_before is None or self.pages_after is None:
            return 0
        gone = (self.pages_before - self.pages_after) * self.page_size
        return gone if gone >= LEAK_FROM else 0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One host. What was not reached is None or empty.

    `tries`: an AUDITED event's data for each load (workers.drive.place.Placed.as_dict), oldest first.
    `placed`: the last of them. `fallback`: what a rollout would try next, in words.
    """

    host: str
    health: Health = Health.UNREACHABLE
    reason: str = ""
    hint: str = ""
    power: PowerCheck = PowerCheck()
    console: str | None = None
    console_there: bool = False
    ability: Ability | None = None
    watchdog: WatchdogCheck = WatchdogCheck()
    step: Load | None = None
    target: Target | None = None
    placed: Placed | None = None
    tries: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[Mapping[str, Any], ...] = ()
    fallback: str = ""
    advice: tuple[str, ...] = ()
    left: Left | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        last = self.tries[-1] if self.tries else {}
        return {
            "health": self.health,
            "reason": self.reason,
            "hint": self.hint,
            "kernel": None if self.ability is None else asdict(self.ability),
            "target": None if self.target is None else self.target.as_dict(),
            "step": None
            if self.step is None
            else {"path": self.step.path, "flags": self.step.flags, "reason": self.step.reason},
            "placement": last.get("placement"),
            "audit": last.get("audit"),
            "tries": [dict(one) for one in self.tries],
            "notes": [dict(one) for one in self.notes],
            "fallback": self.fallback,
            "power": asdict(self.power),
            "console": {"file": self.console, "there": self.console_there},
            "watchdog": asdict(self.watchdog),
            "advice": list(self.advice),
            "after": None if self.left is None else {**asdict(self.left), "leaked_bytes": self.left.leaked},
        }
