"""The log check: which lines of real kernels count, which do not, and what a log with gaps proves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.checks import log, taint
from orchestrator.domain.checks.base import After, Before, CheckResult, Expectation, Verdict
from orchestrator.domain.checks.patterns import PATTERNS, Severity
from orchestrator.domain.checks.records import kernel_text, shape
from orchestrator.domain.facts import HostFacts

BOOT = Path(__file__).parent / "data" / "logs" / "7.3.4-boot.txt"  # recorded in QEMU: a sound boot


def kind(text: str) -> str | None:
    return next((pattern.name for pattern in PATTERNS if pattern.expression.search(text)), None)


BAD = [
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", "bug"),
    ("BUG: unable to handle page fault for address: ffffa2b4c0a80000", "bug"),
    ("kernel BUG at mm/slub.c:563!", "bug"),
    ("BUG: scheduling while atomic: swapper/0/1/0x00000002", "bug"),
    ("BUG: KFENCE: use-after-free read in test_use_after_free_read+0x5c/0xd0", "bug"),
    ("BUG kmalloc-64 (Not tainted): Poison overwritten", "bug"),
    ("BUG: Bad page state in process kworker/0:1  pfn:60c4d", "bad page"),
    ("BUG: Bad page map in process sh  pte:ffff", "bad page"),
    ("BUG: Bad rss-counter state mm:00000000 type:MM_ANONPAGES val:1 Comm:a Pid:1", "bad page"),
    ("WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:4732 __alloc_pages+0x1f7/0x250", "warning"),
    ("WARNING: mm/page_alloc.c:4732 at __alloc_pages+0x1f7/0x250, CPU#0: swapper/0/1", "warning"),
    ("WARNING: at __alloc_pages+0x1f7/0x250, CPU#0: swapper/0/1", "warning"),
    ("WARNING: possible circular locking dependency detected", "warning"),
    ("WARNING: suspicious RCU usage", "warning"),
    ("Oops: general protection fault, probably for non-canonical address 0x5d: 0000 [#1] SMP NOPTI", "oops"),
    ("general protection fault, probably for non-canonical address 0x5d: 0000 [#1] SMP", "oops"),
    ("Oops: 0002 [#1] SMP PTI", "oops"),
    ("Unable to handle kernel paging request at virtual address dead000000000108", "oops"),
    ("Internal error: Oops: 0000000096000004 [#1] SMP", "oops"),
    ("list_add corruption. prev->next should be next (ffff), but was 0. (prev=ffff).", "list corruption"),
    ("list_del corruption, ffff88800100->next is LIST_POISON1 (dead000000000100)", "list corruption"),
    ("UBSAN: array-index-out-of-bounds in drivers/net/x.c:10:3", "UBSAN"),
    ("usercopy: Kernel memory exposure attempt detected from SLUB object 'x'", "user copy"),
    ("mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 0: b200000000000005", "machine check"),
    ("{1}[Hardware Error]: event severity: fatal", "machine check"),
    ("[Hardware Error]: Uncorrected, software restartable error.", "machine check"),
    ("mce: [Hardware Error]: Machine check events logged", "corrected machine check"),
    ("{1}[Hardware Error]: event severity: corrected", "corrected machine check"),
    ("[Hardware Error]: Corrected error, no action required.", "corrected machine check"),
    ("Memory failure: 0x60c4d: recovery action for dirty LRU page: Recovered", "memory failure"),
    ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0 (channel:0 slot:0 page:0x1)", "corrected EDAC"),
    ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0 (channel:0 slot:0 page:0x1)", "EDAC"),
    ("pcieport 0000:00:1c.0: PCIe Bus Error: severity=Correctable, type=Physical Layer", "corrected AER"),
    ("pcieport 0000:00:1c.0: PCIe Bus Error: severity=Corrected, type=Physical Layer", "corrected AER"),
    ("nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer", "AER"),
    (
        "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x60c4d000 [fault reason 0x05] PTE",
        "IOMMU fault",
    ),
    ("nvme 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000b]", "IOMMU fault"),
    ("arm-smmu 5000000.iommu: Unhandled context fault: fsr=0x402, iova=0x0", "IOMMU fault"),
    ('irq 16: nobody cared (try booting with the "irqpoll" option)', "interrupt"),
    (
        "e1000e 0000:00:19.0 eth0: NETDEV WATCHDOG: CPU: 1: transmit queue 0 timed out 5000 ms",
        "network transmit",
    ),
    ("Initramfs unpacking failed: invalid magic at start of compressed archive", "initramfs"),
    ("rootfs image is not initramfs (junk within compressed archive); looks like an initrd", "initramfs"),
    ("I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x80700", "I/O error"),
    ("Buffer I/O error on dev vda1, logical block 1, async page read", "I/O error"),
    ("EXT4-fs error (device vda1): ext4_lookup:1855: inode #2: comm sh: deleted inode", "file system"),
    ("EXT4-fs (vda1): Remounting filesystem read-only", "file system"),
    ("XFS (vda1): Metadata corruption detected at xfs_agf_verify+0x1/0x2", "file system"),
    ("XFS (vda1): Internal error XFS_WANT_CORRUPTED_GOTO at line 1 of file x.c", "file system"),
    ("BTRFS error (device vda1): parent transid verify failed", "file system"),
    ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]", "soft lockup"),
    ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!", "soft lockup"),
    ("watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0", "hard lockup"),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", "RCU stall"),
    ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "RCU stall"),
    ("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: {", "RCU stall"),
    ("INFO: rcu_tasks detected stalls on tasks:", "RCU stall"),
    ("INFO: task kworker/0:1:12 blocked for more than 120 seconds.", "hung task"),
    ("INFO: task dd:12 blocked in I/O wait for more than 120 seconds.", "hung task"),
    ("Out of memory: Killed process 99 (python3) total-vm:1kB", "out of memory"),
    ("nvme: disagrees about version of symbol module_layout", "module version"),
]

# Texts of Linux 7.2.12's vmlinux and of real boots that read like damage and are none.
HARMLESS = [
    'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
    "acpi PNP0A03:00: fail to add MMCONFIG information, can't access extended configuration space",
    "iommu: Default domain type: Translated",
    "RAS: Correctable Errors collector initialized.",
    "tsc: Fast TSC calibration failed",
    "process: WARNING: polling idle and HT enabled, performance may degrade",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible",
    "RETBleed: WARNING: CPU does not support IBPB.",
    "WARNING: BIOS bug: CPU MTRRs don't cover all of memory, losing 512MB of RAM.",
    "WARNING: Flushing system-wide workqueues will be prohibited in near future.",
    "[Firmware Bug]: TSC_DEADLINE disabled due to Errata",
    "RCU CPU stall warnings suppressed (rcu_cpu_stall_suppress).",
    "tpm_tis MSFT0101:00: [Hardware Error]: Adjusting reported timeouts: A 1->750000us B 1->1us",
    "BERT: [Hardware Error]: Skipped 1 error records",
    "clocksource: Marking clocksource tsc unstable due to frequency skew",
    "traps: python3[99] general protection fault ip:55 sp:7f error:0 in python3",
    "EDAC MC: Ver: 3.0.0",
    "MCE: In-kernel MCE decoding enabled.",
    "Trying to unpack rootfs image as initramfs...",
    "systemd[1]: Bugs and I/O errors are reported elsewhere",
    "EXT4-fs (vda): mounted filesystem 12 r/w with ordered data mode. Quota mode: none.",
    "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
]


@pytest.mark.parametrize(("text", "name"), BAD)
def test_bad_lines(text: str, name: str) -> None:
    assert kind(text) == name


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_lines(text: str) -> None:
    assert kind(text) is None


def test_every_pattern_has_an_example() -> None:
    assert {pattern.name for pattern in PATTERNS} == {name for _, name in BAD}


def test_a_sound_boot_has_no_bad_line() -> None:
    lines = BOOT.read_text().splitlines()
    assert len(lines) > 300
    assert [line for line in lines if kind(line)] == []


def record(text: str, prio: int = 6) -> str:
    return f"{prio},100,2000,-;{text}"


def data(*texts: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "lines": [record(text) for text in texts],
        "wrapped": False,
        "complete": True,
        "truncated": False,
    }
    return {**whole, "taint": 0, **changes}


def judged(after: dict[str, Any] | None, before: dict[str, Any] | None = None, *ignore: str) -> CheckResult:
    return log.judge(
        Before(facts=HostFacts(), collected={} if before is None else {"log": before}),
        After(facts=HostFacts(), collected={} if after is None else {"log": after}),
        Expectation(nonce="n", old_boot_id="b", log_ignore=ignore),
    )


OOPS = "Oops: 0002 [#1] SMP PTI"
STALL = "rcu: INFO: rcu_preempt self-detected stall on CPU"
WARN = "WARNING: mm/page_alloc.c:4732 at __alloc_pages+0x1f7/0x250, CPU#0: swapper/0/1"
SOUND = data("Linux version 7.3.4", "Trying to unpack rootfs image as initramfs...")


@pytest.mark.parametrize(
    ("after", "verdict", "says"),
    [
        (SOUND, Verdict.PASS, "no bad line"),
        (data(OOPS), Verdict.FAIL, "oops: Oops"),
        (data(STALL), Verdict.INCONCLUSIVE, "RCU stall"),
        (data(STALL, OOPS), Verdict.FAIL, "oops: Oops"),  # the grave one is shown
        (data(wrapped=True), Verdict.INCONCLUSIVE, "lost its beginning"),
        (data(complete=False), Verdict.INCONCLUSIVE, "records were lost"),
        (data(truncated=True), Verdict.INCONCLUSIVE, "cut off"),
        (data(OOPS, wrapped=True, complete=False), Verdict.FAIL, "oops"),
        (None, Verdict.INCONCLUSIVE, "could not be read"),
        ({}, Verdict.INCONCLUSIVE, "could not be read"),
        ({"lines": []}, Verdict.INCONCLUSIVE, "lost its beginning"),
        (data(taint=None), Verdict.INCONCLUSIVE, "taint is not known"),
        (data(taint=1 << 9), Verdict.FAIL, "tainted by warning"),
        (data(taint=1 << 5 | 1 << 12), Verdict.FAIL, "tainted by bad page"),
        (data(taint=1 << 14), Verdict.INCONCLUSIVE, "soft lockup"),
        (data(taint=1 << 12 | 1 << 13 | 1 << 25), Verdict.PASS, "no bad line"),
    ],
)
def test_verdicts(after: dict[str, Any] | None, verdict: Verdict, says: str) -> None:
    result = judged(after)
    assert result.verdict is verdict
    assert says in result.evidence


def test_what_the_old_kernel_said_as_well_is_no_news() -> None:
    old = data("I/O error, dev sr0, sector 16 op 0x0:(READ)")
    assert judged(data("I/O error, dev sr0, sector 2052 op 0x0:(READ)"), old).verdict is Verdict.PASS
    assert judged(data("I/O error, dev vda, sector 16 op 0x0:(READ)"), old).verdict is Verdict.FAIL
    result = judged(data("I/O error, dev sr0, sector 2052 op 0x0:(READ)"), old)
    assert result.details["as_before"] == 1 and result.details["count"] == 0


def test_a_taint_that_was_there_before_is_no_news() -> None:
    assert judged(data(taint=1 << 9 | 1), data(taint=1 << 9)).verdict is Verdict.PASS
    assert judged(data(taint=1 << 9 | 1 << 7), data(taint=1 << 9)).verdict is Verdict.FAIL


def test_ignored_lines_excuse_their_taint_and_nothing_else() -> None:
    assert judged(data(WARN, taint=1 << 9), None, "__alloc_pages").verdict is Verdict.PASS
    # A second warning, which nobody ignores, keeps both.
    other = WARN.replace("__alloc_pages", "free_pages")
    kept = judged(data(WARN, other, taint=1 << 9), None, "__alloc_pages")
    assert kept.verdict is Verdict.FAIL and "tainted by warning" in kept.evidence
    assert judged(data(WARN, taint=1 << 9 | 1 << 7), None, "__alloc_pages").verdict is Verdict.FAIL
    assert judged(data(WARN, taint=1 << 9), None, "elsewhere").verdict is Verdict.FAIL


def test_an_expression_that_is_none_is_reported() -> None:
    result = judged(SOUND, None, "(")
    assert result.verdict is Verdict.INCONCLUSIVE and "log_ignore" in result.evidence


def test_user_space_cannot_write_a_kernel_line() -> None:
    # /dev/kmsg forces a facility other than the kernel's on what user space writes (devkmsg_write).
    spoofed = {**SOUND, "lines": [record(OOPS, prio=8 + 3), record(OOPS, prio=30)]}
    assert judged(spoofed).verdict is Verdict.PASS
    assert kernel_text("6,1,2,-;text; more") == "text; more"
    assert kernel_text("6,1,2,-,caller=T1;text") == "text"
    assert kernel_text("bare text") == "bare text"
    assert kernel_text("14,1,2,-;text") is None


def test_a_flood_does_not_fill_the_journal() -> None:
    result = judged(data(*[f"I/O error, dev vd{chr(97 + n % 26)}{n}" for n in range(500)]))
    assert result.details["count"] == 500
    assert len(result.details["lines"]) == 20
    assert "499 more" in result.evidence


def test_shape() -> None:
    assert shape("BUG at 0xffff1234, CPU 3 ffffa2b4c0a80000") == shape("BUG at 0x1, CPU 12 ffffffff81000000")
    assert shape("dev sda") != shape("dev sdb")


def test_taint_names() -> None:
    assert taint.added(0b0001, 0b1001) == [3]
    assert taint.name(9) == "warning" and taint.name(19) == "firmware control" and taint.name(31) == "bit 31"
    kinds = {pattern.name for pattern in PATTERNS}
    assert all(names <= kinds for _, names in taint.GRAVE.values())
    severities = {pattern.name: pattern.severity for pattern in PATTERNS}
    assert severities["soft lockup"] is Severity.SUSPECT


junk = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text("01,;-ab", max_size=12)
    | st.lists(st.none(), max_size=2)
)
shaped = st.dictionaries(st.sampled_from(sorted(data())), junk | st.lists(st.text("0,;-BUG: ", max_size=20)))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(shaped, shaped)
def test_odd_data_never_raises_and_never_passes_by_itself(
    after: dict[str, Any], before: dict[str, Any]
) -> None:
    result = judged(after, before)
    if result.verdict is Verdict.PASS:
        assert after["complete"] is True and after["wrapped"] is False
