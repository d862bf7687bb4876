"""The faults a scenario can ask for: their names and parameters. What they do is in the fault modules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.domain.rollout import Phase
from orchestrator.domain.values import Seconds, Value


class NoFault(Value):
    """Nothing is done to the host."""

    kind: Literal["none"] = "none"


class DirtyAreaFault(Value):
    """User pages with a pattern fill the CMA area and are freed again, before the rollout."""

    kind: Literal["dirty_area"]
    rounds: int = Field(default=3, ge=1, le=20, description="tries until the area was really used up")


class ScribbleFault(Value):
    """A device that still writes: 16 bytes again and again into one physical page across the jump.

    `at: destination` takes the page from the run's own placement: the middle of where the initrd is to be
    copied. `at: same` takes the page of the scenario's run before.
    """

    kind: Literal["scribble"]
    at: Literal["destination", "same"] = "destination"
    seconds: Seconds = Field(default=20, description="how long after the jump was told")
    every: Seconds = Field(default=0.0005, description="between two writes")


class PinCmaFault(Value):
    """A process holds pages of the CMA area in pipes (vmsplice(2)), so that they cannot be moved away."""

    kind: Literal["pin_cma"]
    every: str = Field(default="1M", pattern=r"^[0-9]+[KM]$", description="one pinned page in each so much")


class KillLoadFault(Value):
    """The process that is inside kexec_file_load(2) is killed."""

    kind: Literal["kill_load"]
    after: float = Field(default=0.05, ge=0, description="seconds inside the call")


class RebootFault(Value):
    """Somebody else reboots the host between load and jump."""

    kind: Literal["reboot_between"]
    how: Literal["orderly", "at_once"] = "orderly"


class KillKeeperFault(Value):
    """The process that is to jump is killed between go and the appointment."""

    kind: Literal["kill_keeper_after_go"]


class CorruptStagedFault(Value):
    """A byte of a staged file changes on the host's disk before it is loaded."""

    kind: Literal["corrupt_staged"]
    file: Literal["kernel", "initrd"] = "kernel"


class SysctlFault(Value):
    """kernel.kexec_load_disabled is set; it cannot be taken back on a running kernel."""

    kind: Literal["sysctl_disabled"]


class FillMemoryFault(Value):
    """A process takes all memory but a rest."""

    kind: Literal["fill_memory"]
    leave: str = Field(default="96M", pattern=r"^[0-9]+[KMG]$", description="of MemAvailable")


class HangImageFault(Value):
    """The target image's 64-bit entry jumps to itself: the new kernel hangs at its first instruction."""

    kind: Literal["hang_image"]


class PanicFault(Value):
    """The new kernel panics when its initramfs starts."""

    kind: Literal["panic"]


class HangInitramfsFault(Value):
    """The new kernel's initramfs stops and waits for ever."""

    kind: Literal["hang_initramfs"]


class NoNetworkFault(Value):
    """The new kernel comes up without a network."""

    kind: Literal["no_network"]


class KillVmFault(Value):
    """The VM loses its power in a phase of the rollout, and gets it back."""

    kind: Literal["power_failure"]
    phase: Phase = Phase.LOADED


FaultSpec = (
    NoFault
    | DirtyAreaFault
    | ScribbleFault
    | PinCmaFault
    | KillLoadFault
    | RebootFault
    | KillKeeperFault
    | CorruptStagedFault
    | SysctlFault
    | FillMemoryFault
    | HangImageFault
    | PanicFault
    | HangInitramfsFault
    | NoNetworkFault
    | KillVmFault
)
