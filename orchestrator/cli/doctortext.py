"""Diagnoses of `host doctor` as text that fits 100 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli.output import stdout_console
from orchestrator.domain.hazards import AuditVerdict, Strength, Weight
from orchestrator.domain.placement import Placement, Segment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from workers.diagnosis import Ability, Diagnosis, Left

WIDTH = 100
_MIB = 1 << 20
_STRENGTHS = {
    Strength.READ_BACK: "what lies in CMA was read back and compared",
    Strength.BOOT_LOG: "not all could be read back: the boot log says that pages are cleared",
    Strength.ARITHMETIC: "by addresses and sizes alone",
}

Row = tuple[str, "RenderableType"]


def print_diagnoses(found: Sequence[Diagnosis]) -> None:
    """Each host, and how many came to what."""
    from rich.table import Table

    console = stdout_console()
    for one in found:
        with console.capture() as captured:
            console.print(f"{one.host}: {one.health}{': ' + one.reason if one.reason else ''}", width=WIDTH)
            grid = Table.grid(padding=(0, 2))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for name, value in _rows(one):
                grid.add_row(f"  {name}", value)
            console.print(grid, width=WIDTH)
        # A table fills its lines with blanks.
        for line in [*captured.get().splitlines(), ""]:
            console.print(line.rstrip(), soft_wrap=True)
    counted = Counter(str(one.health) for one in found)
    hosts = "1 host" if len(found) == 1 else f"{len(found)} hosts"
    console.print(f"{hosts}: " + ", ".join(f"{count} {name}" for name, count in counted.items()))


def _rows(one: Diagnosis) -> Iterator[Row]:
    if one.hint:
        yield "do", one.hint
    if one.ability is not None:
        yield "kernel", "\n".join(_kernel(one.ability))
        yield "CMA", _area(one.ability)
    if one.target is not None:
        target = one.target
        yield (
            "image",
            f"{target.release or 'release unknown'}: {_files(target.kernel_size, target.initrd_size)}",
        )
    if one.step is not None:
        yield "first try", f"{one.step.path}: {one.step.reason}"
    for data in one.tries:
        yield f"load {data['number']}", "\n".join(_try(data))
    yield from _notes(one)
    if one.placed is not None:
        yield from _placement(one.placed.placement, one.placed.audit.strength)
        for hazard in one.placed.audit.as_dict()["hazards"]:
            if hazard["weight"] == Weight.RISK:
                yield "risk", "\n".join(_hazard(hazard))
    if one.fallback:
        yield "otherwise", one.fallback
    yield "power", _power(one)
    yield "console", _console(one)
    if one.ability is not None:
        yield "watchdog", _watchdog(one)
    if one.left is not None:
        yield "after us", _left(one.left)
    if one.advice:
        yield "advice", "\n".join(one.advice)


def _kernel(can: Ability) -> Iterator[str]:
    load = "kexec_file_load allowed" if can.may_load else f"kexec_file_load refused: {can.why_not}"
    yield f"{can.release} ({can.machine}), {load}"
    yield (
        f"flag NO_CMA {_known(can.knows_no_cma)}, DEBUG {_known(can.knows_debug)}; "
        f"KHO {_may(can.handover)}; init_on_alloc {_switch(can.init_on_alloc)}"
    )
    images = "signed images only" if can.signed_only else "unsigned images load"
    secure = "" if can.secure_boot is None else f", Secure Boot {_switch(can.secure_boot)}"
    yield (
        f"lockdown {can.lockdown or 'unknown'}{secure}, {images}; counter "
        f"{ {True: 'invariant', False: 'not invariant', None: 'unknown'}[can.invariant_counter] }"
    )


def _area(can: Ability) -> str:
    if can.has_area is False:
        return "no area"
    if can.area_size is None:
        return "unknown"
    where = "" if can.area_base is None else f" at 0x{can.area_base:x}"
    free = "unknown" if can.area_free is None else f"{can.area_free / _MIB:.1f} MiB"
    return f"{can.area_size // _MIB} MiB{where}, {free} free"


def _try(data: Mapping[str, Any]) -> Iterator[str]:
    """The verdict on one load, and what of it forbade the jump."""
    found, how = data["audit"], data["repair"]
    proof = " by read-back" if found["strength"] == Strength.READ_BACK else ""
    yield f"{found['verdict']}{proof}" + (f", after a repair: {how['reason']}" if how else "")
    if found["verdict"] == AuditVerdict.UNKNOWN:
        yield found["reason"]
    for hazard in found["hazards"]:
        if hazard["weight"] == Weight.CORRUPTS:
            yield from _hazard(hazard)


def _notes(one: Diagnosis) -> Iterator[Row]:
    if texts := [note["text"] for note in one.notes if "bytes_sent" not in note]:
        yield "seen", "\n".join(texts)


def _placement(placement: Placement, strength: Strength) -> Iterator[Row]:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("segment", "address", "bytes", "lies in"):
        table.add_column(name, justify="right" if name == "bytes" else "left", no_wrap=True)
    for segment in placement.segments:
        table.add_row(str(segment.role), f"0x{segment.address:x}", f"{segment.memsz:,}", _lies(segment))
    yield "placement", table if placement.segments else "no segment is known"
    if not placement.known:
        yield "", f"unknown: {placement.why_unknown}"
    yield (
        "bytes",
        f"{_figure(placement.bytes_total)} in all, {_figure(placement.bytes_in_cma)} in CMA, "
        f"{_figure(placement.bytes_to_copy)} to copy, {_figure(placement.bytes_to_hash)} to hash at the jump",
    )
    yield "proof", f"{strength.replace('_', '-')}: {_STRENGTHS[strength]}"


def _lies(segment: Segment) -> str:
    if segment.in_cma is None:
        return "not known"
    outside = "outside CMA" if not segment.inside_area else "outside CMA (its destination is in the area)"
    return "CMA" if segment.in_cma else outside


def _hazard(hazard: Mapping[str, Any]) -> Iterator[str]:
    yield f"{hazard['kind']}: {hazard['text']}"
    yield f"cause: {hazard['cause']}"
    yield f"kernels: {hazard['kernels']}; see {hazard['reference']}"


def _power(one: Diagnosis) -> str:
    power = one.power
    if power.works is None:
        return power.text
    return (
        f"{power.kind} works: {power.text}"
        if power.works
        else f"{power.kind} FAILS: {power.text}" + (f" ({power.hint})" if power.hint else "")
    )


def _console(one: Diagnosis) -> str:
    if one.console is None:
        return "none in the inventory: the stage of a death would be guessed from less"
    return one.console if one.console_there else f"{one.console} is not there"


def _watchdog(one: Diagnosis) -> str:
    dog = one.watchdog
    if dog.present is None:
        return "unknown"
    if not dog.present:
        return "none"
    stop = "; nowayout is set, so it is never armed" if dog.can_be_stopped is False else ""
    return f"{dog.identity or 'a device that tells no name'}{stop}"


def _left(left: Left) -> str:
    loaded = "nothing is loaded" if left.kexec_loaded == 0 else f"kexec_loaded is {left.kexec_loaded}"
    if left.pages_before is None or left.pages_after is None:
        return loaded
    pages = f"{left.pages_after} pages of CMA free, {left.pages_before} before"
    leak = f": {left.leaked} bytes leaked until the next boot" if left.leaked else ""
    return f"{loaded}; {pages}{leak}"


def _files(kernel: int, initrd: int) -> str:
    return f"kernel {kernel:,} bytes, " + (f"initrd {initrd:,} bytes" if initrd else "no initrd")


def _figure(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _known(value: bool | None) -> str:
    return {True: "known", False: "unknown to it", None: "not asked"}[value]


def _may(value: bool | None) -> str:
    return {True: "may be on", False: "off", None: "unknown"}[value]


def _switch(value: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[value]
