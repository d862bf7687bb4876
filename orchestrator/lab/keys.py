"""Key pairs and the files that make a guest who it is: host name, host key, who may log in."""

from __future__ import annotations

import io
import tarfile
import uuid
from pathlib import Path

from orchestrator.lab.run import run


def make_key(path: Path, comment: str) -> str:
    """An ed25519 key pair without a passphrase, kept when it is there; returns the public key."""
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        path.unlink(missing_ok=True)
        run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
            what="make a key",
            timeout=60,
        )
    return read_public(path)


def read_public(path: Path) -> str:
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def identity_archive(host: str, host_key: Path, client_public: str) -> bytes:
    """A tar for the guest's identity disk; the initramfs unpacks it over the root at each boot."""
    machine_id = uuid.uuid5(uuid.NAMESPACE_URL, read_public(host_key)).hex
    files = [
        ("etc/hostname", f"{host}\n".encode(), 0o644),
        ("etc/hosts", f"127.0.0.1 localhost {host}\n".encode(), 0o644),
        ("etc/machine-id", f"{machine_id}\n".encode(), 0o444),
        ("etc/ssh/ssh_host_ed25519_key", host_key.read_bytes(), 0o600),
        ("etc/ssh/ssh_host_ed25519_key.pub", f"{read_public(host_key)}\n".encode(), 0o644),
        ("root/.ssh/authorized_keys", f"{client_public}\n".encode(), 0o600),
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        folder = tarfile.TarInfo("root/.ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
        for name, content, mode in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
