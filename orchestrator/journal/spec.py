"""All that a rollout was started from: stored once with it, and never changed."""

from __future__ import annotations

from orchestrator.domain.bootimage import Images
from orchestrator.domain.inventory import Inventory, Value
from orchestrator.domain.playbook import Playbook


class RolloutSpec(Value):
    """Playbook and inventory after validation, and the controller's files as they were then."""

    playbook: Playbook
    inventory: Inventory
    images: Images = Images()
    limit: str | None = None  # a selector that narrows the playbook's down

    @property
    def release(self) -> str | None:
        """What uname -r must say on the target, as far as the controller knows."""
        kernel = self.images.kernel
        return self.playbook.kernel.release or (kernel.header.release if kernel else None)

    @property
    def build_id(self) -> str | None:
        """The target's GNU build-id, as far as the controller knows."""
        return self.images.kernel.build_id if self.images.kernel else None
