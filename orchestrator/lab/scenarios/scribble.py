"""Stray DMA: a device that nobody has stopped goes on writing into a page across the jump."""

from __future__ import annotations

import mmap
import os
import time

from orchestrator.domain.errors import LabError
from orchestrator.domain.events import HostRecord
from orchestrator.domain.rollout import Phase
from orchestrator.lab.scenarios import ram
from orchestrator.lab.scenarios.context import FaultContext, Interrupted
from orchestrator.lab.scenarios.faultbase import Fault
from orchestrator.lab.scenarios.faultspec import ScribbleFault

BYTES = 16
REMEMBERED = "scribbled_page"
LOADED = (Phase.LOADED, Phase.ARMED, Phase.JUMPING)
GONE = (Phase.DARK, Phase.RETURNED, Phase.VERIFIED)
LOOK_SECONDS = 0.2


class Scribble(Fault):
    """See ScribbleFault. The page is remembered for the scenario's next run."""

    def __init__(self, wanted: ScribbleFault) -> None:
        self.wanted = wanted

    def before(self, context: FaultContext) -> None:
        if self.wanted.at == "same" and REMEMBERED not in context.remembered:
            raise LabError(
                "no run before this one has found a page to scribble on",
                hint="`at: same` belongs into a later run than `at: destination`",
            )

    def during(self, context: FaultContext) -> None:
        record = context.journal.wait_phase(*LOADED)
        with ram.opened(context.vm) as memory:
            page = self._choose(context, record, memory)
            number = record.attempts[-1].number
            context.log.write(
                f"scribbling on the page at {page:#x}, attempt {number}: {_found(memory, page)}"
            )
            writes = self._write(context, memory, page)
        context.done(f"{writes} writes to {page:#x}", page=page, writes=writes)

    def _choose(self, context: FaultContext, record: HostRecord, memory: mmap.mmap) -> int:
        if self.wanted.at == "same":
            return int(context.remembered[REMEMBERED])
        placement = (record.attempts[-1].loaded or {}).get("placement") or {}
        initrd = ram.segment_of(placement.get("segments") or (), "initrd")
        if initrd is None:
            raise LabError("the journal does not tell where the initrd is to be copied")
        first = int(initrd["address"])
        page = ram.free_page_near(memory, first, first + int(initrd["memsz"]))
        if page is None:
            raise LabError(
                "every page of the initrd's destination is in use by the old kernel",
                hint="a larger initrd reaches further down from the top of RAM: vm: {initrd_pad: 72M}",
            )
        context.remembered[REMEMBERED] = page
        return page

    def _write(self, context: FaultContext, memory: mmap.mmap, page: int) -> int:
        """From now until so long after the jump was told; the number of writes."""
        writes, until, look_at = 0, None, 0.0
        while until is None or time.monotonic() < until:
            memory[page : page + BYTES] = os.urandom(BYTES)
            writes += 1
            time.sleep(self.wanted.every)
            if context.stop.is_set():
                break
            if until is None and time.monotonic() > look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                record = context.journal.record()
                if record is not None and record.phase in GONE:
                    until = time.monotonic() + self.wanted.seconds
                    context.log.write(f"the jump was told; {self.wanted.seconds:g} s more")
        if until is None:
            raise Interrupted
        return writes


def _found(memory: mmap.mmap, page: int) -> str:
    used = ram.PAGE - memory[page : page + ram.PAGE].count(0)
    return f"{used} of its bytes are in use" if used else "it held zeros"
