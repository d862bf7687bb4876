"""The default fleet and target: chosen by what kernels can do, not by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from orchestrator.domain.errors import LabError
from orchestrator.lab import progress as say
from orchestrator.lab.kernels import AvailableKernel, KernelStore, LabKernel
from orchestrator.lab.spec import HostSpec


@dataclass(frozen=True)
class Found:
    item: AvailableKernel
    kernel: LabKernel


class Candidates:
    """The newest usable kernel of each series, newest series first, fetched only as far as someone looks."""

    def __init__(self, available: Iterable[AvailableKernel], fetch: Callable[[AvailableKernel], LabKernel],
                 progress: say.Progress = say.silent) -> None:  # fmt: skip
        newest: dict[str, AvailableKernel] = {}
        for item in available:
            if item.usable:
                newest.setdefault(item.series, item)
        self._items = list(newest.values())
        self._fetch = fetch
        self._progress = progress
        self._fetched: dict[str, LabKernel | None] = {}

    def __iter__(self) -> Iterator[Found]:
        return self._walk(self._items)

    def __reversed__(self) -> Iterator[Found]:
        return self._walk(self._items[::-1])

    def _walk(self, items: list[AvailableKernel]) -> Iterator[Found]:
        for item in items:
            if item.release not in self._fetched:
                try:
                    self._fetched[item.release] = self._fetch(item)
                except LabError as error:
                    say.notice(self._progress, f"passing over {item.release}: {error.message}")
                    self._fetched[item.release] = None
            kernel = self._fetched[item.release]
            if kernel is not None:
                yield Found(item, kernel)

    def newest(self, wanted: Callable[[Found], bool]) -> Found | None:
        return next((found for found in self if wanted(found)), None)

    def oldest(self, wanted: Callable[[Found], bool]) -> Found | None:
        return next((found for found in reversed(self) if wanted(found)), None)


def default_target(candidates: Candidates) -> Found:
    found = candidates.newest(lambda item: bool(item.kernel.capabilities.cma))
    if found is None:
        raise LabError(
            "no available kernel has CONFIG_CMA", hint="name a target: --target VERSION or /path/vmlinuz"
        )
    return found


def default_fleet(
    candidates: Candidates, target: LabKernel, progress: say.Progress = say.silent
) -> list[HostSpec]:
    """Two hosts that can place in CMA, one that knows the flag only, one that knows neither. None of them
    runs the target's series: a host that is there already would have nowhere to move."""

    def can_place(found: Found) -> bool:
        return bool(found.kernel.capabilities.cma) and not target.release.startswith(found.item.series + ".")

    placing = candidates.newest(can_place)
    # The oldest that knows neither is the distribution's stable kernel, not one that was passing through.
    wanted = {
        "cma1": placing,
        "cma2": placing,
        "flag1": candidates.newest(lambda found: found.kernel.capabilities.role == "flag"),
        "old1": candidates.oldest(lambda found: found.kernel.capabilities.role == "old"),
    }
    specs = []
    for name, found in wanted.items():
        if found is None:
            say.notice(progress, f"no available kernel fits {name}: left out")
        else:
            specs.append(HostSpec(name, found.kernel.release))
    if not specs:
        raise LabError(
            "no available kernel fits the default fleet", hint="name the hosts: --hosts web1=VERSION"
        )
    return specs


def candidates_of(store: KernelStore) -> Candidates:
    return Candidates(store.available(), store.fetch, store.progress)
