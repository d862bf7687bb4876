"""Which kernels a test run uses: the one under test, the target, others by what they can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.domain.errors import LabError
from orchestrator.lab import progress as say
from orchestrator.lab.kernels import KernelStore, LabKernel
from orchestrator.lab.plan import candidates_of, default_fleet, default_target
from orchestrator.lab.scenarios.spec import KernelChoice


class NoSuchKernel(LabError):
    """The archive has no kernel of that ability: what asks for one cannot be shown here."""


@dataclass
class Kernels:
    """`source` and `target` as resolved; others are looked up when a scenario wants them."""

    source: LabKernel
    source_spec: str
    target: LabKernel
    target_spec: str
    store: KernelStore
    _known: dict[str, tuple[str, LabKernel]] = field(default_factory=dict)

    def of(self, wanted: str) -> tuple[str, LabKernel]:
        """What a scenario's `vm.kernel` means: (as the lab takes it, the kernel).

        Raises NoSuchKernel for an ability that none has, InputError for a version or file that is not there.
        """
        if wanted == KernelChoice.SOURCE:
            return self.source_spec, self.source
        if wanted not in self._known:
            self._known[wanted] = self._find(wanted)
        return self._known[wanted]

    def _find(self, wanted: str) -> tuple[str, LabKernel]:
        if wanted not in (KernelChoice.FLAG, KernelChoice.OLD):
            return wanted, self.store.resolve(wanted)
        candidates = candidates_of(self.store)
        pick = candidates.newest if wanted == KernelChoice.FLAG else candidates.oldest
        found = pick(lambda item: item.kernel.capabilities.role == wanted)
        if found is None:
            raise NoSuchKernel(
                f"no available kernel has the role {wanted!r}", hint="see `kexec-fleet lab kernels`"
            )
        return found.kernel.release, found.kernel


def resolve_kernels(source: str, target: str, progress: say.Progress = say.silent) -> Kernels:
    """Version prefixes or files; empty: the default fleet's first host and the lab's default target."""
    store = KernelStore(progress=progress)
    aim = store.resolve(target) if target else default_target(candidates_of(store)).kernel
    if source:
        kernel = store.resolve(source)
    else:
        specs = default_fleet(candidates_of(store), aim, progress)
        placing = next((spec.kernel for spec in specs if spec.name == "cma1"), None)
        if placing is None:
            raise LabError("no available kernel can place in CMA", hint="name one: --kernel VERSION")
        kernel = store.resolve(placing)
        source = placing
    return Kernels(kernel, source, aim, target or aim.release, store)
