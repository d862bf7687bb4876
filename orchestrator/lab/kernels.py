"""Stock kernels for the lab: which there are, fetched once, verified at each use, known by what they can."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.domain.errors import InputError, LabError
from orchestrator.lab import progress as say
from orchestrator.lab.archive import Archive, Package, unpack
from orchestrator.lab.debversion import version_key
from orchestrator.lab.evidence import KernelCapabilities, judge, read_release
from orchestrator.lab.paths import cache_root, locked, sha256_of

IMAGE_PACKAGE = re.compile(r"linux-image-(\d[^-]*-cloud-amd64)")
RECORD = "record.json"
# A kernel package that depends on one of these keeps its image or its modules there; without it there is
# nothing to boot. Whether another missing one (linux-base: the config) matters, what was unpacked decides.
ESSENTIAL = ("linux-binary-", "linux-modules-")


class KernelSource(StrEnum):
    DEBIAN = "debian"
    FILE = "file"


@dataclass(frozen=True)
class LabKernel:
    """A kernel on this machine, ready to boot."""

    release: str  # what uname -r will say
    vmlinuz: Path
    modules_dir: Path | None  # holds kernel/ and modules.builtin; None: all it needs is built in
    config: Path | None
    sha256: str  # of vmlinuz
    capabilities: KernelCapabilities
    source: KernelSource
    version: str = ""  # of the package


@dataclass(frozen=True)
class AvailableKernel:
    """A kernel that the archive or the cache has."""

    release: str
    version: str
    packages: tuple[str, ...]  # what must be unpacked to have vmlinuz, modules and config
    missing: tuple[str, ...]  # packages it needs that the archive has dropped
    cached: bool
    capabilities: KernelCapabilities | None  # known once it was fetched

    @property
    def usable(self) -> bool:
        return self.cached or not self.missing

    @property
    def series(self) -> str:
        """The first two numbers: 7.3 of 7.3.4+deb13-cloud-amd64."""
        return ".".join(re.split(r"[.+-]", self.release)[:2])


def matches(release: str, prefix: str) -> bool:
    """7.3 means 7.3.4 but not 7.30.1."""
    return release == prefix or (release.startswith(prefix) and release[len(prefix)] in ".+-")


def choose(prefix: str, kernels: Iterable[AvailableKernel]) -> AvailableKernel:
    """The newest usable kernel of a prefix; an unknown prefix is told what there is."""
    ordered = sorted(kernels, key=lambda item: version_key(item.release), reverse=True)
    fitting = [item for item in ordered if matches(item.release, prefix)]
    for item in fitting:
        if item.usable:
            return item
    there = ", ".join(item.release for item in ordered if item.usable) or "none"
    if fitting:
        gone = ", ".join(fitting[0].missing)
        raise InputError(f"kernel {fitting[0].release} cannot be had: the archive has dropped {gone}",
                         hint=f"available: {there}")  # fmt: skip
    raise InputError(f"there is no kernel {prefix!r}", hint=f"available: {there}")


def find_available(index: dict[str, Package]) -> list[AvailableKernel]:
    """Kernels by their linux-image package. What else must be unpacked is what that package depends on by
    exact release (linux-binary, linux-modules and linux-base in some, nothing in others)."""
    found = []
    for name, package in index.items():
        match = IMAGE_PACKAGE.fullmatch(name)
        if match is None:
            continue
        release = match.group(1)
        needed = [dep for dep in package.depends if dep.startswith("linux-") and dep.endswith(release)]
        packages = (name, *(dep for dep in needed if dep in index))
        missing = tuple(dep for dep in needed if dep not in index and dep.startswith(ESSENTIAL))
        found.append(AvailableKernel(release, package.version, packages, missing, False, None))
    return found


class KernelStore:
    """The kernels under the cache folder."""

    def __init__(self, cache: Path | None = None, progress: say.Progress = say.silent) -> None:
        self.cache = cache or cache_root()
        self.folder = self.cache / "kernels"
        self.progress = progress
        self.archive = Archive(self.cache / "apt", progress)

    def available(self) -> list[AvailableKernel]:
        """Newest first: what the archive has, and what only the cache still has."""
        cached = {kernel.release: kernel for kernel in self.cached()}
        try:
            listed = {item.release: item for item in find_available(self.archive.kernel_packages())}
        except LabError as error:
            if not cached:
                raise
            say.notice(self.progress, f"only cached kernels can be offered: {error.message}")
            listed = {}
        for release, kernel in cached.items():
            packages, missing = ((), ()) if release not in listed else (
                listed[release].packages, listed[release].missing)  # fmt: skip
            listed[release] = AvailableKernel(
                release, kernel.version, packages, missing, True, kernel.capabilities
            )
        return sorted(listed.values(), key=lambda item: version_key(item.release), reverse=True)

    def cached(self) -> list[LabKernel]:
        kernels = (_read_record(path.parent) for path in self.folder.glob(f"[0-9]*/{RECORD}"))
        return [kernel for kernel in kernels if kernel is not None]

    def resolve(self, prefix: str) -> LabKernel:
        """The newest kernel of a version prefix, or the user's own (`/vmlinuz` or `/vmlinuz+/modules`)."""
        if "/" in prefix:
            return from_file(prefix)
        return self.fetch(choose(prefix, self.available()))

    def fetch(self, item: AvailableKernel) -> LabKernel:
        """From the cache when every file there still has its recorded hash, else from the archive."""
        target = self.folder / item.release
        with locked(self.cache / "kernels.lock"):
            kernel = _read_record(target)
            if kernel is not None:
                damaged = find_damage(target)
                if not damaged:
                    return kernel
                say.notice(
                    self.progress, f"cached kernel {item.release} is damaged ({damaged}); fetching it again"
                )
                shutil.rmtree(target)
            elif target.exists():
                shutil.rmtree(target)
            if not item.packages or item.missing:
                raise LabError(
                    f"kernel {item.release} is no longer in the archive", hint="choose another one"
                )
            return self._download(item, target)

    def _download(self, item: AvailableKernel, target: Path) -> LabKernel:
        say.step(self.progress, f"fetching kernel {item.release}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".unpack-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".unpack-") as scratch:
            tree, ready = Path(scratch) / "tree", Path(scratch) / "ready"
            with self.archive.downloaded(list(item.packages)) as files:
                for file in files:
                    unpack(file, tree)
            _arrange(tree, item, ready)
            ready.rename(target)
        say.done(self.progress, f"kernel {item.release} is in the cache")
        kernel = _read_record(target)
        assert kernel is not None
        return kernel


def _arrange(tree: Path, item: AvailableKernel, ready: Path) -> None:
    """Packages put the image under /boot or among the modules: take it from where it is."""
    modules = tree / "usr/lib/modules" / item.release
    if not modules.is_dir():
        modules = tree / "lib/modules" / item.release
    images = [modules / "vmlinuz", tree / f"boot/vmlinuz-{item.release}"]
    configs = [modules / "config", tree / f"boot/config-{item.release}"]
    image = next((path for path in images if path.is_file()), None)
    if image is None or not (modules / "kernel").is_dir():
        raise LabError(
            f"the packages of {item.release} hold no {'modules' if image else 'vmlinuz'}",
            hint="give the kernel as a file: --hosts NAME=/path/vmlinuz+/path/modules",
        )
    ready.mkdir()
    image.rename(ready / "vmlinuz")
    for config in configs:
        if config.is_file():
            config.rename(ready / "config")
            break
    modules.rename(ready / "modules")
    config_file = ready / "config"
    capabilities = judge(ready / "vmlinuz", config_file if config_file.exists() else None)
    files = sorted(path for path in ready.rglob("*") if path.is_file() and not path.is_symlink())
    record = {
        "release": item.release,
        "version": item.version,
        "capabilities": asdict(capabilities),
        "files": {str(path.relative_to(ready)): sha256_of(path) for path in files},
    }
    (ready / RECORD).write_text(json.dumps(record, indent=1))


def _read_record(folder: Path) -> LabKernel | None:
    try:
        record = json.loads((folder / RECORD).read_text())
        return LabKernel(
            release=record["release"],
            vmlinuz=folder / "vmlinuz",
            modules_dir=folder / "modules",
            config=folder / "config" if "config" in record["files"] else None,
            sha256=record["files"]["vmlinuz"],
            capabilities=KernelCapabilities(**record["capabilities"]),
            source=KernelSource.DEBIAN,
            version=record["version"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_damage(folder: Path) -> str:
    """The first file whose content is not what was recorded when it was fetched; empty when all are sound."""
    record = json.loads((folder / RECORD).read_text())
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            return str(name)
    return ""


def from_file(text: str) -> LabKernel:
    """The user's own kernel. File names may hold a `+` themselves, so the whole text is tried first."""
    image, modules = Path(text).expanduser(), None
    if not image.is_file() and "+/" in text:
        head, _, tail = text.rpartition("+/")
        image, modules = Path(head).expanduser(), Path("/" + tail)
        if not modules.is_dir():
            raise InputError(
                f"there is no modules folder {modules}", hint="give the folder that holds kernel/"
            )
    if not image.is_file():
        raise InputError(
            f"there is no kernel file {image}", hint="give NAME=VERSION or NAME=/path/of/vmlinuz"
        )
    image = image.absolute()
    release = read_release(image.read_bytes(), str(image))
    return LabKernel(
        release=release,
        vmlinuz=image,
        modules_dir=modules.absolute() if modules else None,
        config=None,
        sha256=sha256_of(image),
        capabilities=judge(image, None),
        source=KernelSource.FILE,
    )


def resolve(prefix: str, progress: say.Progress = say.silent) -> LabKernel:
    return KernelStore(progress=progress).resolve(prefix)
