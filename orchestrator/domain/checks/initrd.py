"""Did the initramfs arrive whole: unpacked without complaint, and its bytes where they were kept.

A misaligned kernel in CMA overwrites the initrd's first MiB (Linux 7.2, 7.3), and a damage further on may be
unpacked in part without a panic.
"""

from __future__ import annotations

from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Judge, Verdict
from orchestrator.domain.checks.patterns import INITRAMFS_FAILED
from orchestrator.domain.checks.records import kernel_text
from orchestrator.domain.raw import optional_text, texts_of

NAME = "initrd"

# init/initramfs.c, do_populate_rootfs, with and without CONFIG_BLK_DEV_RAM.
_UNPACKING = ("Trying to unpack rootfs image as initramfs", "Unpacking initramfs")


def judge(_before: Before, after: After, expectation: Expectation) -> CheckResult:
    """Fail for a complaint or other bytes; pass for a whole log that tells of nothing but the unpacking."""
    data = after.data("initrd")
    lines = [text for line in texts_of(data.get("lines")) or () if (text := kernel_text(line)) is not None]
    complaints = [text for text in lines if INITRAMFS_FAILED.expression.search(text)]
    kept, wanted = optional_text(data.get("sha256")), expectation.initrd_sha256
    details = {"complaints": complaints, "sha256": {"expected": wanted, "found": kept}}
    same = None if kept is None or wanted is None else kept == wanted
    if complaints:
        verdict, evidence = Verdict.FAIL, complaints[0]
    elif same is False:
        verdict, evidence = Verdict.FAIL, "the initrd in memory is not the one that was loaded"
    elif same:
        verdict, evidence = Verdict.PASS, "unpacked without complaint; its bytes are those that were loaded"
    elif data.get("complete") is not True:
        verdict, evidence = Verdict.INCONCLUSIVE, "the kernel log does not have the whole boot"
    elif any(text.startswith(_UNPACKING) for text in lines):
        verdict, evidence = Verdict.PASS, "unpacked without complaint"
    elif wanted is not None:
        verdict, evidence = Verdict.FAIL, "an initrd was loaded, and this kernel saw none"
    else:
        verdict, evidence = Verdict.PASS, "not applicable: this kernel was given no initramfs"
    return CheckResult(name=NAME, verdict=verdict, evidence=evidence, details=details)


JUDGE = Judge(name=NAME, collectors=("initrd",), judge=judge)
