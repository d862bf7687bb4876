"""One load: open, hash, check, call, and everything that can be seen of it."""

import os
import time
from typing import Any, Dict, Optional

from workers.hostagent import cma, image, kexec
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError, errname
from workers.hostagent.files import open_regular, sha256_of
from workers.hostagent.kmsg import KernelLog

# A load with DEBUG writes some hundred lines; more than this is somebody else's noise. Bytes.
_MOST_LOG = 512 << 10


class Load(object):
    """`args`: {"kernel", "initrd", "cmdline", "flags", "debug", "expect", "hold"}, types checked by the
    session.

    `check` raises AgentError and has changed nothing; `run` makes the one call. The files that are hashed
    and the files that the kernel reads are the same descriptors.
    """

    def __init__(self, env: Environment, args: Dict[str, Any]) -> None:
        self._env = env
        self._args = args
        self._cmdline = os.fsencode(args["cmdline"])
        self._kernel_fd = -1
        self._initrd_fd = -1
        self._sizes: Optional[image.Sizes] = None

    def close(self) -> None:
        for descriptor in (self._kernel_fd, self._initrd_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._kernel_fd = self._initrd_fd = -1

    def check(self) -> None:
        """Raises load_disabled, no_kexec, no_file, cmdline_too_long, too_big, no_memory, hash_mismatch."""
        image.check_allowed(self._env)
        expect = self._args["expect"]
        self._kernel_fd = open_regular(self._args["kernel"])
        header = image.parse_header(os.pread(self._kernel_fd, 4096, 0))
        image.check_cmdline(header, self._cmdline)
        if self._args["initrd"] is not None:
            self._initrd_fd = open_regular(self._args["initrd"])
        has_initrd = self._initrd_fd >= 0
        self._sizes = image.measure(header, self._kernel_fd, self._initrd_fd if has_initrd else None)
        image.check_memory(self._env, self._sizes)
        self._verify(self._kernel_fd, self._args["kernel"], expect.get("kernel"))
        if has_initrd:
            self._verify(self._initrd_fd, self._args["initrd"], expect.get("initrd"))

    def _verify(self, descriptor: int, path: str, expected: Optional[str]) -> None:
        if expected is None:
            return
        actual = sha256_of(descriptor)
        if actual == expected:
            return
        if os.path.dirname(path) == self._env.lib_dir + "/artifacts" and os.path.basename(path) != actual:
            os.unlink(path)  # ours, and no longer what its name says: the next staging sends it again
        raise AgentError(
            "hash_mismatch",
            "{} has SHA-256 {}, expected {}".format(path, actual, expected),
            "stage the file again; if it happens twice look at the host's disk and memory",
            detail={"path": path, "sha256": actual, "expected": expected},
        )

    def run(self) -> Dict[str, Any]:
        """The protocol's answer to `load`, state "loaded" or "refused"."""
        assert self._sizes is not None
        flags = self._args["flags"]
        if self._args["debug"]:
            flags |= kexec.DEBUG
        if self._initrd_fd < 0:
            flags |= kexec.NO_INITRAMFS
        before = cma.counters(self._env)
        number: Optional[int] = None
        with KernelLog(self._env.dev_kmsg, from_now=True) as log:
            start = time.monotonic()
            try:
                self._env.kernel.kexec_file_load(self._kernel_fd, self._initrd_fd, self._cmdline, flags)
            except OSError as error:
                number = error.errno
            seconds = time.monotonic() - start
            lines = log.read(_MOST_LOG)
        return {
            "state": "loaded" if number is None else "refused",
            "errno": number,
            "errname": errname(number),
            "seconds": round(seconds, 6),
            "flags": flags,
            "log": lines.lines,
            "log_complete": lines.complete,
            "cma_before": before,
            "cma_after": cma.counters(self._env),
            "kexec_loaded": self._env.kexec_loaded(),
            "sizes": dict(self._sizes._asdict()),
        }
