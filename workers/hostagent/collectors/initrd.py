"""Did the initramfs arrive whole: what the kernel said while unpacking it, its bytes where they were kept."""

import os
from typing import Any, Dict

from workers.hostagent.environment import Environment
from workers.hostagent.files import sha256_of
from workers.hostagent.kmsg import KernelLog, sequence, text

_WORDS = ("nitramfs", "initrd", "rootfs image", "Freeing initrd")


def collect(env: Environment, _args: Dict[str, Any]) -> Dict[str, Any]:
    """-> {"lines": kernel log records about the initramfs, "complete", "sha256", "size"}.

    `complete`: the log was read without a gap from its first record on. The last two are those of
    /sys/firmware/initrd, which the kernel parameter retain_initrd keeps, else None.
    """
    with KernelLog(env.dev_kmsg, from_now=False) as log:
        everything = log.read(64 << 20)
    lines = [line for line in everything.lines if any(word in text(line) for word in _WORDS)]
    whole = everything.complete and bool(everything.lines) and sequence(everything.lines[0]) == 0
    answer: Dict[str, Any] = {"lines": lines, "complete": whole, "sha256": None, "size": None}
    try:
        descriptor = os.open(env.sys + "/firmware/initrd", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return answer
    try:
        answer["sha256"] = sha256_of(descriptor)
        answer["size"] = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return answer
