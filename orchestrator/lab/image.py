"""The root file system that all lab guests share: Debian, built once by mmdebstrap, then only read."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from orchestrator.domain.errors import LabError, SetupError
from orchestrator.lab import progress as say
from orchestrator.lab.archive import KEYRING, SUITE, mirror
from orchestrator.lab.initramfs import guest_file
from orchestrator.lab.paths import cache_root, locked
from orchestrator.lab.run import run

RECIPE = 1  # raise it when what is done below changes
SIZE = "4G"  # sparse: costs only what is written
NEEDED_BYTES = 2 << 30
BUILD_SECONDS = 1800.0
PACKAGES = (
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "python3",
    "systemd-sysv",
    "udev",
)
# Timers of packages that would work behind a measurement's back.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
)
GUEST_DIR = "usr/lib/kexec-fleet-lab"
GUEST_FILES = ("mini_init.py", "service_reply.py", "net-up.sh")
POWER_COMMANDS = ("reboot", "poweroff", "halt", "shutdown")
UNITS = {
    "kexec-fleet-lab-net.service": """[Unit]
Description=Static network of the lab
DefaultDependencies=no
Before=network.target ssh.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/lib/kexec-fleet-lab/net-up.sh

[Install]
WantedBy=multi-user.target
""",
    "kexec-fleet-lab-service.service": """[Unit]
Description=The lab's service: answers TCP port 7777
After=network.target

[Service]
ExecStart=/usr/bin/python3 -I /usr/lib/kexec-fleet-lab/service_reply.py
Restart=always

[Install]
WantedBy=multi-user.target
""",
}


def recipe_hash() -> str:
    digest = hashlib.sha256()
    parts = [str(RECIPE), SUITE, SIZE, *PACKAGES, *MASKED, *POWER_COMMANDS, *UNITS, *UNITS.values()]
    for part in parts:
        digest.update(part.encode() + b"\0")
    for name in (*GUEST_FILES, "power.sh"):
        digest.update(guest_file(name))
    return digest.hexdigest()[:16]


class ImageStore:
    """Root images under the cache folder, named by the recipe that made them."""

    def __init__(self, cache: Path | None = None, progress: say.Progress = say.silent) -> None:
        self.folder = (cache or cache_root()) / "images"
        self.progress = progress

    def root_image(self) -> Path:
        """The image's path; built first when this recipe has none yet. Renamed into place when whole."""
        image = self.folder / f"root-{recipe_hash()}.ext4"
        with locked(self.folder.parent / "images.lock", self._say_waiting):
            if not image.exists():
                self._build(image)
        return image

    def _say_waiting(self) -> None:
        say.notice(self.progress, "another command is building the root image; waiting for it")

    def _build(self, image: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < NEEDED_BYTES:
            raise SetupError(
                f"the root image needs {NEEDED_BYTES >> 30} GiB in {self.folder}, {free >> 20} MiB are free",
                hint="free some space or set XDG_CACHE_HOME",
            )
        for stale in self.folder.glob(".build-*"):
            shutil.rmtree(stale, ignore_errors=True)
        say.step(self.progress, f"building the Debian {SUITE} root image (once; about a minute)")
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".build-") as folder:
            scratch = Path(folder)
            scratch.chmod(0o755)  # mmdebstrap's unshare mode reads the files as another user
            tar = scratch / "root.tar"
            _bootstrap(scratch, tar)
            _make_file_system(scratch, tar, scratch / "root.ext4")
            (scratch / "root.ext4").chmod(0o444)
            (scratch / "root.ext4").rename(image)
        say.done(self.progress, "the root image is in the cache")


def _bootstrap(scratch: Path, tar: Path) -> None:
    overlay = scratch / "ours.tar"
    tree = scratch / "ours"
    _write_ours(tree)
    run(
        ["tar", "-C", tree, "--owner=0", "--group=0", "--numeric-owner", "-cf", overlay, "."],
        what="pack the guest's files", timeout=60,
    )  # fmt: skip
    masks = " ".join(f'"$1/etc/systemd/system/{unit}"' for unit in MASKED)
    hooks = [
        f"tar-in {shlex.quote(str(overlay))} /",
        f'for unit in {masks}; do ln -sf /dev/null "$unit"; done',
        'chroot "$1" systemctl enable ' + " ".join((*UNITS, "ssh.service")),
        # Every guest brings its own; a key in the image would be everybody's.
        'rm -f "$1"/etc/ssh/ssh_host_*',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*.log',
    ]
    base = mirror()
    options = f"[signed-by={KEYRING}]"
    sources = [
        f"deb {options} {base}/debian {SUITE} main",
        f"deb {options} {base}/debian-security {SUITE}-security main",
    ]
    excludes = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]
    command = [
        "mmdebstrap", "--quiet", "--variant=minbase", "--architectures=amd64",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in excludes),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE, str(tar), *sources,
    ]  # fmt: skip
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    # What an interrupted mmdebstrap leaves lies in our folder and goes with it.
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "TMPDIR": str(scratch)}
    try:
        run(command, what="build the root image", timeout=BUILD_SECONDS, env=environment)
    except LabError as error:
        raise LabError(error.message, hint=f"mmdebstrap needs root or user namespaces, and {base}") from None


def _write_ours(tree: Path) -> None:
    for name in GUEST_FILES:
        _place(tree / GUEST_DIR / name, guest_file(name), 0o755)
    for name in POWER_COMMANDS:
        _place(tree / "usr/local/sbin" / name, guest_file("power.sh"), 0o755)
    for name, text in UNITS.items():
        _place(tree / "etc/systemd/system" / name, text.encode(), 0o644)
    # /etc/fstab stays empty: the initramfs has mounted the root, read-write.
    _place(tree / "etc/fstab", b"", 0o644)
    # The mini init runs what is executable in here at boot; the host agent's boot guard is put here.
    (tree / "etc/kexec-fleet/boot.d").mkdir(parents=True)
    for folder in tree.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)
    tree.chmod(0o755)


def _place(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _make_file_system(scratch: Path, tar: Path, image: Path) -> None:
    """mke2fs fills the file system from a folder without mounting; who is not root needs fakeroot to keep
    the owners right between unpacking and filling (mke2fs takes a tar itself only from 1.47.1 on)."""
    tree = scratch / "tree"
    tree.mkdir()
    script = (
        f"tar -C {shlex.quote(str(tree))} --numeric-owner --exclude='./dev/*' -xpf {shlex.quote(str(tar))}"
        f" && PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -L lab-root -m 0 -d {shlex.quote(str(tree))}"
        f" {shlex.quote(str(image))} {SIZE}"
    )
    shell = ["sh", "-c", script] if os.geteuid() == 0 else ["fakeroot", "--", "sh", "-c", script]
    run(shell, what="fill the root image", timeout=BUILD_SECONDS)
