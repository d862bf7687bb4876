"""The kernel and initrd files on the controller: read, hashed, and refused before any host is touched."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.domain.bootimage import HEAD_BYTES, Images, InitrdFile, KernelFile, parse_header
from orchestrator.domain.errors import InputError
from orchestrator.domain.initrd import archive_formats
from orchestrator.domain.payload import build_id
from orchestrator.domain.playbook import Playbook
from orchestrator.domain.values import Path as ValuePath

_CHUNK = 1 << 20
# Real kernels have 5 to 60 MB; initrds over 2.1 GB crash Linux 6.0 to 6.12.49 at the load (facts: peers).
_MAX_KERNEL = 512 << 20
_MAX_INITRD = 2 << 30


def inspect_images(playbook: Playbook) -> Images:
    """Hash, size and header of the playbook's files on the controller; empty Images when they lie on hosts.

    Raises InputError at the place in the playbook that names the file: missing, not a file, not readable, not
    an image, not an archive, another hash or release than the playbook's.
    """
    files = playbook.kernel.on_controller
    if files is None:
        return Images()
    place: ValuePath = ("kernel", "on_controller")
    with _explained(playbook, (*place, "image"), files.image), _opened(files.image) as stream:
        kernel = _kernel(stream, files.image)
    _compare(playbook, (*place, "image_sha256"), files.image, kernel.sha256, files.image_sha256)
    _compare_release(playbook, kernel)
    if files.initrd is None:
        return Images(kernel=kernel)
    with _explained(playbook, (*place, "initrd"), files.initrd), _opened(files.initrd) as stream:
        initrd = _initrd(stream, files.initrd)
    _compare(playbook, (*place, "initrd_sha256"), files.initrd, initrd.sha256, files.initrd_sha256)
    return Images(kernel=kernel, initrd=initrd)


def _kernel(stream: io.BufferedReader, path: str) -> KernelFile:
    size = os.fstat(stream.fileno()).st_size
    head = stream.read(HEAD_BYTES)
    header = parse_header(head, size)
    if size > _MAX_KERNEL:
        raise InputError(f"a kernel of {size} bytes", hint=f"more than {_MAX_KERNEL} bytes is no kernel")
    image = head + stream.read()
    return KernelFile(
        path=path,
        sha256=hashlib.sha256(image).hexdigest(),
        size=len(image),
        header=header,
        build_id=build_id(image),
    )


def _initrd(stream: io.BufferedReader, path: str) -> InitrdFile:
    size = os.fstat(stream.fileno()).st_size
    if size > _MAX_INITRD:
        raise InputError(f"an initrd of {size} bytes", hint=f"kernels fail at more than {_MAX_INITRD} bytes")
    if size == 0:
        archive_formats(b"")
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        formats = archive_formats(data)
    digest = hashlib.file_digest(stream, "sha256")
    return InitrdFile(path=path, sha256=digest.hexdigest(), size=size, formats=formats)


def _compare(playbook: Playbook, place: ValuePath, path: str, digest: str, wanted: str | None) -> None:
    """Raises InputError when the playbook wants another hash."""
    if wanted and wanted != digest:
        raise InputError(
            f"{path} has SHA-256 {digest}, not {wanted}",
            hint="the file is not the one that the playbook means: fetch it again, or correct the hash",
            position=playbook.written_at(*place),
        )


def _compare_release(playbook: Playbook, kernel: KernelFile) -> None:
    """Raises InputError when the playbook waits for another release than the image will report."""
    wanted, says = playbook.kernel.release, kernel.header.release
    if wanted and says and wanted != says:
        raise InputError(
            f"`kernel.release` is {wanted}, and {kernel.path} is {says}",
            hint="take `release` away (the image tells it), or name the right image",
            position=playbook.written_at("kernel", "release"),
        )


@contextmanager
def _opened(path: str) -> Iterator[io.BufferedReader]:
    """The regular file `path`. Raises InputError for anything else, OSError when it cannot be read."""
    # A FIFO would block in open(2) until somebody writes to it.
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise InputError("not a regular file", hint="name the file itself")
    with Path(path).open("rb") as stream:
        yield stream


@contextmanager
def _explained(playbook: Playbook, place: ValuePath, path: str) -> Iterator[None]:
    """Errors of a file, with its name and the place in the playbook."""
    position = playbook.written_at(*place)
    try:
        yield
    except OSError as error:
        hint = "check its permissions"
        if isinstance(error, FileNotFoundError):
            hint = "a relative name starts at the playbook's folder" if position else "check the path"
        raise InputError(
            f"cannot read {path}: {error.strerror or error}",
            hint=hint,
            position=position,
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint, position=position) from None
