"""All that a rollout was started from: stored once with it, and never changed."""

from __future__ import annotations

from orchestrator.domain.inventory import Inventory, Value
from orchestrator.domain.playbook import Playbook


class ImageFile(Value):
    """A file on the controller that is to be staged, as it was when the rollout was made."""

    path: str
    sha256: str
    size: int


class RolloutSpec(Value):
    """All that a rollout was started from; stored once and never changed."""

    playbook: Playbook
    inventory: Inventory
    kernel: ImageFile | None = None  # None: on the host
    initrd: ImageFile | None = None
    release: str | None = None  # what uname -r must say
    build_id: str | None = None
    init_size: int | None = None  # bytes the kernel needs at its place (boot protocol 0x260)
    kernel_alignment: int | None = None  # bytes (boot protocol 0x230)
    cmdline_size: int | None = None  # bytes (boot protocol 0x238)
