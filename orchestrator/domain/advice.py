"""Advice for `host doctor`: what would make the next jump safer or shorter on this host. Pure."""

from __future__ import annotations

from orchestrator.domain.bootimage import BootHeader
from orchestrator.domain.cmamodel import MIB
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.placement import Placement
from orchestrator.domain.spacers import needed_area
from orchestrator.domain.words import parameter, split_init, split_words

LARGE_INITRD = 64 * MIB
"""A choice: initrds made for one host (MODULES=dep) are 10 to 40 MB, generic ones 60 to 170."""

HELD_UNLOADED = 16 * MIB
"""CMA that is taken with nothing loaded; drivers' pools take 128 KiB a GiB of RAM (kernel/dma/pool.c)."""


def advice(
    facts: HostFacts,
    placement: Placement | None,
    header: BootHeader,
    kernel_size: int,
    initrd_size: int,
    *,
    signed_only: bool = False,
    power_control: bool | None = None,
    watchdog: bool | None = None,
) -> tuple[str, ...]:
    """One sentence each. Sizes are bytes of the files, no initrd: 0. `facts`: with nothing of ours loaded.

    `placement`: None where nothing was loaded. `power_control`, `watchdog`: whether there is one; None:
    nobody asked.
    """
    found = [
        *_cma(facts, placement, header, initrd_size, signed_only),
        *_leak(facts),
        *_initrd(placement, kernel_size, initrd_size),
        *_recovery(facts, power_control, watchdog),
    ]
    return tuple(found)


def _cma(
    facts: HostFacts, placement: Placement | None, header: BootHeader, initrd_size: int, signed_only: bool
) -> list[str]:
    if not facts.knows_no_cma:
        return []  # this kernel places nothing in CMA, or does not say
    config = facts.config or {}
    if "n" in (config.get("CONFIG_CMA"), config.get("CONFIG_DMA_CMA")):
        return ["this kernel is built without CMA: every byte of the image is copied and hashed at the jump"]
    needed = needed_area(facts, header, initrd_size, signed_only=signed_only)
    word = f"cma={needed // MIB}M"
    if facts.has_cma_area is False:
        return [f"there is no CMA area: {word} on the kernel command line would hold the image and a spacer"]
    area = facts.default_area
    small = area is not None and area.size is not None and area.size < needed
    if small and area is not None and area.size is not None:
        return [f"the CMA area has {area.size // MIB} MiB: {word} would hold the image and a spacer"]
    if placement is not None and placement.known and placement.wholly_in_cma is False:
        return ["the image lies partly outside CMA, though the area has room: look for pages pinned in it"]
    return []


def _leak(facts: HostFacts) -> list[str]:
    area = facts.default_area
    if area is None or area.total_pages is None or area.available_pages is None or facts.kexec_loaded:
        return []
    held = (area.total_pages - area.available_pages) * (facts.page_size or 4096)
    if held < HELD_UNLOADED:
        return []
    return [
        f"{held // MIB} MiB of CMA are taken though nothing is loaded: a load that failed leaks its pages, "
        "and only a boot through the firmware gives them back"
    ]


def _initrd(placement: Placement | None, kernel_size: int, initrd_size: int) -> list[str]:
    if initrd_size <= LARGE_INITRD:
        return []
    paid = "copied and hashed while the host is down"
    if placement is not None and placement.wholly_in_cma:
        paid = "hashed while the host is down" if placement.bytes_to_hash else "read and placed at the load"
    return [
        f"the initrd has {initrd_size // MIB} MiB, the kernel {kernel_size // MIB}: each of its bytes is "
        f"{paid}; an initrd with this host's modules only is smaller"
    ]


def _recovery(facts: HostFacts, power_control: bool | None, watchdog: bool | None) -> list[str]:
    found = []
    words = {parameter(word) for word in split_init(split_words(facts.cmdline or ""))[0]}
    timeout = (facts.config or {}).get("CONFIG_PANIC_TIMEOUT", "0")
    if facts.cmdline is not None and "panic" not in words and timeout == "0":
        found.append(
            "no panic= on the kernel command line: a kernel that panics hangs; panic=10 makes it reboot"
        )
    if power_control is False and watchdog is False:
        found.append("neither power control nor a watchdog: a host that hangs in the jump stays down")
    elif power_control is False:
        found.append("no power control: only the watchdog brings a host back that hangs in the jump")
    elif watchdog is False:
        found.append("no watchdog: only power control brings a host back that hangs in the jump")
    return found
