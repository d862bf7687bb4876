"""Debian's archive through apt with a state directory of our own: the machine's own apt is not touched."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import LabError, SetupError
from orchestrator.lab import progress as say
from orchestrator.lab.debversion import version_key
from orchestrator.lab.paths import write_atomically
from orchestrator.lab.run import run

DEFAULT_MIRROR = "http://deb.debian.org"
SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FRESH_SECONDS = 6 * 3600
UPDATE_SECONDS = 300.0
DOWNLOAD_SECONDS = 900.0
DOWNLOAD_TRIES = 3


def mirror() -> str:
    """Where `debian/` and `debian-security/` lie; KEXEC_FLEET_MIRROR overrides it."""
    return os.environ.get("KEXEC_FLEET_MIRROR", DEFAULT_MIRROR).rstrip("/")


@dataclass(frozen=True)
class Package:
    """One version of a package in the index."""

    name: str
    version: str
    depends: tuple[str, ...]  # names only, the first of each group of alternatives


def parse_packages(text: str) -> list[Package]:
    """The stanzas that `apt-cache show` prints."""
    found = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" in fields and "Version" in fields:
            groups = [group.strip() for group in fields.get("Depends", "").split(",") if group.strip()]
            names = tuple(re.split(r"[\s(|:]", group, maxsplit=1)[0] for group in groups)
            found.append(Package(fields["Package"], fields["Version"], names))
    return found


class Archive:
    """trixie with its backports and security suites. Give `folder` to nobody else."""

    def __init__(self, folder: Path, progress: say.Progress = say.silent) -> None:
        self.folder = folder.absolute()
        self.progress = progress
        self._index: dict[str, Package] | None = None

    def sources(self) -> str:
        options = f"[arch=amd64 signed-by={KEYRING}]"
        base = mirror()
        return (
            f"deb {options} {base}/debian {SUITE} main\n"
            f"deb {options} {base}/debian {SUITE}-backports main\n"
            f"deb {options} {base}/debian-security {SUITE}-security main\n"
        )

    def _prepare(self) -> None:
        if not KEYRING.exists():
            raise SetupError(
                f"{KEYRING} is missing: packages could not be verified",
                hint="install it: apt install debian-archive-keyring",
            )
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "state/status").touch()
        write_atomically(self.folder / "sources.list", self.sources().encode())
        # apt reads APT_CONFIG before anything else, so the machine's own files are never opened.
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::sourcelist": str(self.folder / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": str(self.folder / "state"),
            "Dir::State::status": str(self.folder / "state/status"),
            "Dir::Cache": str(self.folder / "cache"),
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Update::Error-Mode": "any",
            # As root apt would drop to _apt, who may not read our folder.
            "APT::Sandbox::User": "root",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        write_atomically(self.folder / "apt.conf", text.encode())

    def _apt(self, *words: str, what: str, timeout: float, cwd: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return run(words, what=what, timeout=timeout, cwd=cwd, env=environment)

    def refresh(self, *, force: bool = False) -> None:
        """Fetches the index when it is missing or old. Without a network an old index still serves."""
        self._prepare()
        stamp = self.folder / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
            return
        say.step(self.progress, "reading the package index")
        try:
            self._apt("apt-get", "-q", "update", what="read the package index", timeout=UPDATE_SECONDS)
        except LabError as error:
            if not stamp.exists():
                raise LabError(
                    error.message, hint=f"the lab needs {mirror()} once, or set KEXEC_FLEET_MIRROR"
                ) from None
            say.notice(self.progress, "the package index could not be refreshed; the older one serves")
            return
        self._index = None
        stamp.touch()

    def kernel_packages(self) -> dict[str, Package]:
        """The newest version of every package whose name begins with `linux-`."""
        if self._index is None:
            self.refresh()
            names = self._apt("apt-cache", "pkgnames", "linux-", what="list packages", timeout=60).split()
            wanted = [name for name in names if re.search(r"-\d.*-cloud-amd64$", name)]
            text = ""
            if wanted:
                text = self._apt("apt-cache", "show", *wanted, what="read the package index", timeout=60)
            index: dict[str, Package] = {}
            for package in sorted(parse_packages(text), key=lambda item: version_key(item.version)):
                index[package.name] = package
            self._index = index
        return self._index

    @contextmanager
    def downloaded(self, names: list[str]) -> Iterator[list[Path]]:
        """The packages as files that apt has verified, gone again at the end."""
        self.refresh()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="download-") as folder:
            for attempt in range(1, DOWNLOAD_TRIES + 1):
                try:
                    self._apt(
                        "apt-get", "-q", "download", *names,
                        what="download " + " ".join(names), timeout=DOWNLOAD_SECONDS, cwd=Path(folder),
                    )  # fmt: skip
                    break
                except LabError:
                    if attempt == DOWNLOAD_TRIES:
                        raise
                    # A part left behind would be resumed; an index that moved on names files that are gone.
                    shutil.rmtree(self.folder / "cache/archives/partial", ignore_errors=True)
                    for left in Path(folder).iterdir():
                        left.unlink()
                    say.notice(
                        self.progress, f"download failed (try {attempt} of {DOWNLOAD_TRIES}); once more"
                    )
                    self.refresh(force=True)
            yield sorted(Path(folder).glob("*.deb"))


def unpack(package: Path, into: Path) -> None:
    run(["dpkg-deb", "-x", package, into], what=f"unpack {package.name}", timeout=300)
