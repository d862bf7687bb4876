"""What is refused before the kernel is asked: a load that fails inside it leaks CMA until the next boot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import Agent, Host, bzimage, claim, host_in, load_args


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


@pytest.fixture
def agent(host: Host) -> Agent:
    agent = host.agent()
    agent.ask("claim", claim())
    return agent


def refusal(host: Host, agent: Agent, **changed: object) -> dict:
    error = agent.refused("load", claim(), **{**load_args(host), "expect": {}, **changed})
    assert host.names() == []
    assert agent.ask("status")["phase"] == "claimed"
    return error


def test_segments_over_half_of_ram_are_refused_with_the_figures(host: Host, agent: Agent) -> None:
    half = 2048000 * 1024 // 2
    initrd = (host.root / "boot/initrd").stat().st_size
    host.kernel.write_bytes(bzimage(init_size=half - initrd - (1 << 20) + 1))
    error = refusal(host, agent)
    assert error["code"] == "too_big"
    assert error["detail"]["estimate"] == half + 1
    assert error["detail"]["ram"] == 2048000 * 1024
    host.kernel.write_bytes(bzimage(init_size=half - initrd - (1 << 20)))
    host.write("proc/meminfo", "MemTotal: 2048000 kB\nMemAvailable: 2048000 kB\n")
    assert agent.load(host, claim())["state"] == "loaded"


def test_the_size_of_a_kernel_that_does_not_say_it_is_its_file(host: Host, agent: Agent) -> None:
    host.kernel.write_bytes(b"\0" * 100_000)
    answer = agent.load(host, claim())
    assert answer["sizes"]["estimate"] == 100_000 + (128 << 10) + (1 << 20)


def test_too_little_free_memory_is_refused(host: Host, agent: Agent) -> None:
    host.write("proc/meminfo", "MemTotal: 2048000 kB\nMemAvailable: 5000 kB\n")
    error = refusal(host, agent)
    assert (error["code"], error["detail"]["available"]) == ("no_memory", 5000 * 1024)


@pytest.mark.parametrize(("length", "fits"), [(2016, True), (2017, False)])
def test_a_command_line_must_leave_the_kernels_reserve(
    host: Host, agent: Agent, length: int, fits: bool
) -> None:
    cmdline = "x" * length  # with its NUL: 2017 = 2047 - 30 fits, one more does not
    if fits:
        assert agent.load(host, claim(), cmdline=cmdline)["state"] == "loaded"
    else:
        error = refusal(host, agent, cmdline=cmdline)
        assert (error["code"], error["detail"]) == (
            "cmdline_too_long",
            {"length": 2018, "room": 2017, "cmdline_size": 2047},
        )


def test_a_nul_in_the_command_line_is_refused(host: Host, agent: Agent) -> None:
    assert refusal(host, agent, cmdline="a\0b")["code"] == "bad_request"


@pytest.mark.parametrize(("name", "value"), [("kexec_load_disabled", "1"), ("kexec_load_limit_reboot", "0")])
def test_a_host_that_forbids_loading_says_so(host: Host, agent: Agent, name: str, value: str) -> None:
    host.write(f"proc/sys/kernel/{name}", value + "\n")
    assert refusal(host, agent)["code"] == "load_disabled"


def test_an_image_that_could_not_be_unloaded_is_not_loaded(host: Host, agent: Agent) -> None:
    host.write("proc/sys/kernel/kexec_load_limit_reboot", "1\n")
    assert refusal(host, agent)["detail"]["load_limit_reboot"] == 1


def test_files_that_are_not_there_or_not_files(host: Host, agent: Agent) -> None:
    assert refusal(host, agent, kernel="/nowhere/vmlinuz")["errno"] == 2
    assert refusal(host, agent, initrd=str(host.root))["code"] == "no_file"


@pytest.mark.parametrize("flags", [0x1, 0x2, 0x4, 0x8000])
def test_only_flags_that_a_load_may_have_are_passed_on(host: Host, agent: Agent, flags: int) -> None:
    assert refusal(host, agent, flags=flags)["code"] == "bad_request"


def test_without_an_initrd_the_kernel_is_told_so(host: Host, agent: Agent) -> None:
    answer = agent.load(host, claim(), initrd=None, flags=0x10, debug=False)
    assert answer["flags"] == 0x14
    assert answer["cma_before"]["areas"] == {"reserved": {"available_pages": 65536}}


def test_a_failure_takes_the_spacer_away_too(host: Host, agent: Agent) -> None:
    agent.load(host, claim())
    error = agent.refused("load", claim(), **{**load_args(host), "kernel": "/nowhere"})
    assert error["code"] == "no_file"
    assert host.names() == ["load", "unload"]
    assert agent.ask("status")["phase"] == "claimed"
