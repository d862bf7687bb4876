"""Nonce, boot_id, kernel, logins, and the registry over all checks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.checks import boot_id, kernel, nonce, ssh
from orchestrator.domain.checks.base import (
    After,
    Before,
    CheckResult,
    Expectation,
    SshSession,
    Verdict,
    worst,
)
from orchestrator.domain.checks.registry import CHECK_NAMES, JUDGES, collectors_needed, judge_all, overall
from orchestrator.domain.facts import HostFacts, parse_facts

OLD, NEW, THIRD = "aaaa-old", "bbbb-new", "cccc-third"
NONCE = "0123456789abcdef"
EXPECTED = Expectation(nonce=NONCE, old_boot_id=OLD, release="7.3.4+deb13-cloud-amd64", build_id="5F2A")
BEFORE = Before(facts=HostFacts(boot_id=OLD))


def after(identity: dict[str, Any] | None = None, **facts: Any) -> After:
    return After(facts=HostFacts(**facts), collected={} if identity is None else {"identity": identity})


@pytest.mark.parametrize(
    ("cmdline", "verdict"),
    [
        (f"root=/dev/vda panic=10 kexec_fleet.nonce={NONCE}", Verdict.PASS),
        (f"kexec_fleet.nonce={NONCE} -- single", Verdict.PASS),
        ("root=/dev/vda panic=10", Verdict.FAIL),
        ("kexec_fleet.nonce=another", Verdict.FAIL),
        (f"kexec_fleet.nonce={NONCE}0", Verdict.FAIL),
        (f"xkexec_fleet.nonce={NONCE}", Verdict.FAIL),
        (f'init="/bin/sh kexec_fleet.nonce={NONCE}"', Verdict.FAIL),  # inside another parameter's quotes
        (f"root=/dev/vda -- kexec_fleet.nonce={NONCE}", Verdict.FAIL),  # init's word, not the kernel's
        (f"kexec_fleet.nonce=old kexec_fleet.nonce={NONCE}", Verdict.FAIL),  # two: we write only one
        (None, Verdict.INCONCLUSIVE),
    ],
)
def test_nonce(cmdline: str | None, verdict: Verdict) -> None:
    assert nonce.judge(BEFORE, after({"cmdline": cmdline}), EXPECTED).verdict is verdict
    assert nonce.judge(BEFORE, after(cmdline=cmdline), EXPECTED).verdict is verdict


@pytest.mark.parametrize(
    ("facts", "identity", "verdict"),
    [
        (NEW, NEW, Verdict.PASS),
        (NEW, None, Verdict.PASS),
        (None, NEW, Verdict.PASS),
        (OLD, OLD, Verdict.FAIL),
        (NEW, OLD, Verdict.FAIL),
        (NEW, THIRD, Verdict.FAIL),  # rebooted between the two readings
        (None, None, Verdict.INCONCLUSIVE),
    ],
)
def test_boot_id(facts: str | None, identity: str | None, verdict: Verdict) -> None:
    result = boot_id.judge(BEFORE, after({"boot_id": identity}, boot_id=facts), EXPECTED)
    assert result.verdict is verdict
    assert result.evidence


@pytest.mark.parametrize(
    ("release", "build_id", "expected", "verdict"),
    [
        ("7.3.4+deb13-cloud-amd64", "5f2a", EXPECTED, Verdict.PASS),
        ("7.3.4+deb13-cloud-amd64", "5f2b", EXPECTED, Verdict.FAIL),  # another build of one release
        ("7.2.12+deb13-cloud-amd64", "5f2a", EXPECTED, Verdict.FAIL),
        ("7.2.12+deb13-cloud-amd64", None, EXPECTED, Verdict.FAIL),
        ("7.3.4+deb13-cloud-amd64", None, EXPECTED, Verdict.INCONCLUSIVE),
        (None, "5f2a", EXPECTED, Verdict.INCONCLUSIVE),
        ("7.3.4", "5f2a", Expectation(nonce=NONCE, old_boot_id=OLD, release="7.3.4"), Verdict.INCONCLUSIVE),
        ("7.3.4", "5f2a", Expectation(nonce=NONCE, old_boot_id=OLD, build_id="5f2a"), Verdict.INCONCLUSIVE),
        ("7.3.4", "5f2b", Expectation(nonce=NONCE, old_boot_id=OLD, build_id="5f2a"), Verdict.FAIL),
    ],
)
def test_kernel(release: str | None, build_id: str | None, expected: Expectation, verdict: Verdict) -> None:
    read: dict[str, Any] = {"release": release, "build_id": build_id}
    assert kernel.judge(BEFORE, after(read), expected).verdict is verdict
    assert kernel.judge(BEFORE, after(**read), expected).verdict is verdict


@pytest.mark.parametrize(
    ("sessions", "boot", "verdict"),
    [
        ([(NEW, None), (NEW, None)], NEW, Verdict.PASS),
        ([(NEW, None)], None, Verdict.PASS),
        ([(NEW, None), (None, "login refused")], NEW, Verdict.FAIL),
        ([(NEW, None), (THIRD, None)], NEW, Verdict.FAIL),
        ([(THIRD, None), (THIRD, None)], NEW, Verdict.FAIL),
        ([(NEW, None), (None, None)], NEW, Verdict.INCONCLUSIVE),
        ([], NEW, Verdict.INCONCLUSIVE),
    ],
)
def test_ssh(sessions: list[tuple[str | None, str | None]], boot: str | None, verdict: Verdict) -> None:
    tried = tuple(SshSession(boot_id=found, error=error) for found, error in sessions)
    result = ssh.judge(BEFORE, After(facts=HostFacts(boot_id=boot), sessions=tried), EXPECTED)
    assert result.verdict is verdict


def result(verdict: Verdict) -> CheckResult:
    return CheckResult(name="x", verdict=verdict, evidence="e")


def test_the_worst_verdict_counts() -> None:
    ok, unsure, bad = result(Verdict.PASS), result(Verdict.INCONCLUSIVE), result(Verdict.FAIL)
    assert overall([ok, ok]) is Verdict.PASS
    assert overall([ok, unsure]) is Verdict.INCONCLUSIVE
    assert overall([unsure, bad, ok]) is Verdict.FAIL
    assert overall([]) is Verdict.INCONCLUSIVE  # nothing was looked at
    assert worst(Verdict.PASS) is Verdict.PASS


def test_registry() -> None:
    assert (
        CHECK_NAMES
        == set(JUDGES)
        >= {"nonce", "boot_id", "kernel", "log", "machine", "initrd", "units", "ssh"}
    )
    assert set(collectors_needed()) == {"identity", "log", "machine", "initrd", "units"}
    assert "log" not in collectors_needed(("log",))
    assert "identity" in collectors_needed(("nonce", "kernel"))  # boot_id reads it as well
    named = [found.name for found in judge_all(BEFORE, after(), EXPECTED)]
    assert named == list(JUDGES)
    left = [found.name for found in judge_all(BEFORE, after(), EXPECTED, skip=("ssh", "log"))]
    assert left == [name for name in JUDGES if name not in ("ssh", "log")]


def test_nothing_known_is_nothing_passed() -> None:
    results = judge_all(BEFORE, after(), EXPECTED)
    assert {found.verdict for found in results} == {Verdict.INCONCLUSIVE}
    json.dumps([found.as_dict() for found in results])


ASCII = "01:ab/-. "
leaves = st.none() | st.booleans() | st.integers(-2, 99) | st.text(ASCII, max_size=6)
values = (
    leaves | st.lists(leaves, max_size=2) | st.dictionaries(st.text(ASCII, max_size=3), leaves, max_size=2)
)
KEYS = [
    "cmdline",
    "boot_id",
    "release",
    "lines",
    "complete",
    "sha256",
    "cpus",
    "memory",
    "nodes",
    "net",
    "pci",
]
KEYS += ["default_routes", "failed", "state", "init", "jobs", "taint", "wrapped", "truncated"]
collected = st.dictionaries(
    st.sampled_from(collectors_needed()), leaves | st.dictionaries(st.sampled_from(KEYS), values), max_size=5
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(collected, collected)
def test_odd_data_never_raises(old: dict[str, Any], new: dict[str, Any]) -> None:
    results = judge_all(
        Before(facts=parse_facts({}), collected=old), After(facts=parse_facts({}), collected=new), EXPECTED
    )
    json.dumps([found.as_dict() for found in results])
