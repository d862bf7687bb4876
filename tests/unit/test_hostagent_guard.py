"""The boot guard: what is installed, what the installed program does, and when it goes away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hostagent_harness import BOOT, OTHER_BOOT, Agent, Host, claim, host_in, until

UNIT = "etc/systemd/system/kexec-fleet-guard.service"
WANTS = "etc/systemd/system/sysinit.target.wants/kexec-fleet-guard.service"
PROGRAM = "etc/kexec-fleet/guard"
BOOT_D = "etc/kexec-fleet/boot.d"
NONCE = claim()["nonce"]
REBOOT = "ctypes.CDLL(None).reboot(0x01234567)"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        host.write("proc/cmdline", "root=/dev/vda rw\n")
        yield host


def with_systemd(host: Host) -> None:
    (host.root / "run/systemd/system").mkdir(parents=True)
    host.write("systemctl", "#!/bin/sh\necho running\n").chmod(0o755)


def claimed(host: Host, **changed: Any) -> tuple[Agent, dict[str, Any]]:
    agent, mine = host.agent(), claim(**changed)
    agent.ask("claim", mine)
    return agent, mine


def install(host: Host, seconds: float = 600.0) -> dict[str, Any]:
    agent, mine = claimed(host)
    answer = agent.ask("guard_install", mine, nonce=NONCE, seconds=seconds)
    agent.end()
    return answer


def boots_with_the_nonce(host: Host) -> None:
    host.write("proc/cmdline", f"root=/dev/vda rw kexec_fleet.nonce={NONCE} quiet\n")
    host.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")


def files(host: Host) -> list[str]:
    return [path for path in (UNIT, WANTS, PROGRAM, BOOT_D + "/kexec-fleet-guard") if exists(host, path)]


def exists(host: Host, path: str) -> bool:
    return (host.root / path).is_symlink() or (host.root / path).exists()


def test_on_systemd_a_unit_that_waits_for_nothing_starts_it(host: Host) -> None:
    with_systemd(host)
    answer = install(host)
    assert answer["installed"], answer
    assert files(host) == [UNIT, WANTS, PROGRAM]
    assert (host.root / WANTS).resolve() == (host.root / UNIT).resolve()
    unit = (host.root / UNIT).read_text()
    assert "DefaultDependencies=no" in unit and "IgnoreOnIsolate=yes" in unit
    assert not {"After=", "Requires=", "Wants="} & {line.split("=")[0] + "=" for line in unit.splitlines()}
    [start] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    interpreter, isolated, program = start.removeprefix("ExecStart=").split()
    assert (Path(interpreter).exists(), isolated, program) == (True, "-I", str(host.root / PROGRAM))
    assert (host.root / UNIT).stat().st_mode & 0o777 == 0o644
    assert (host.root / WANTS).parent.stat().st_mode & 0o777 == 0o755


def test_another_init_runs_it_from_boot_d_where_there_is_one(host: Host) -> None:
    answer = install(host)
    assert answer["installed"] is False and "boot.d" in answer["detail"] and "init" in answer["detail"]
    assert files(host) == []
    (host.root / BOOT_D).mkdir(parents=True)
    assert install(host)["installed"]
    assert files(host) == [f"{BOOT_D}/kexec-fleet-guard"]
    assert (host.root / BOOT_D / "kexec-fleet-guard").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_takes_nothing_is_told(host: Host) -> None:
    with_systemd(host)
    host.write("etc/systemd", "a file where a folder should be")
    answer = install(host)
    assert answer["installed"] is False and "systemd" in answer["detail"]
    assert files(host) == []


@pytest.mark.parametrize(("nonce", "seconds"), [(NONCE, 9), (NONCE, 86401), ("a'b", 60), ("", 60)])
def test_bad_arguments_install_nothing(host: Host, nonce: str, seconds: float) -> None:
    with_systemd(host)
    agent, mine = claimed(host)
    assert agent.refused("guard_install", mine, nonce=nonce, seconds=seconds)["code"] == "bad_request"
    assert files(host) == []


class Running:
    """The installed program as the new boot's init runs it, with a mark in place of reboot(2)."""

    def __init__(self, host: Host) -> None:
        self.mark = host.root / "rebooted"
        text = (host.root / PROGRAM).read_text()
        assert text.count(REBOOT) == 1
        text = text.replace(REBOOT, f'open({str(self.mark)!r}, "w").close(); os._exit(0)')
        path = host.write("guard-with-a-mark", text)
        self.process = subprocess.Popen([sys.executable, "-I", str(path)], stderr=subprocess.PIPE)

    def end(self) -> bool:
        """Waits for its end; whether it rebooted the host."""
        _, err = self.process.communicate(timeout=60)
        assert (self.process.returncode, err) == (0, b"")
        return self.mark.exists()


def installed(host: Host, seconds: float) -> None:
    """With an absolute time on this machine's clock, which the guest's would begin anew."""
    with_systemd(host)
    assert install(host)["installed"]
    path = host.root / PROGRAM
    text = path.read_text()
    assert '"seconds": 600.0' in text
    path.write_text(text.replace('"seconds": 600.0', f'"seconds": {seconds}'))


def test_the_program_reboots_a_boot_that_nobody_confirms(host: Host) -> None:
    installed(host, seconds=0.0)
    boots_with_the_nonce(host)
    assert Running(host).end()
    assert "kexec-fleet guard: not confirmed in 0 s: rebooting" in (host.root / "dev/kmsg").read_text()


@pytest.mark.parametrize("cmdline", ["root=/dev/vda", f"kexec_fleet.nonce={NONCE}0", f"x={NONCE}"])
def test_the_program_ends_at_once_on_any_other_boot(host: Host, cmdline: str) -> None:
    installed(host, seconds=0.0)
    host.write("proc/cmdline", cmdline)
    assert not Running(host).end()


def test_a_confirmed_boot_is_left_alone_and_the_guards_files_go(host: Host) -> None:
    installed(host, seconds=1e9)
    boots_with_the_nonce(host)
    running = Running(host)
    agent, mine = claimed(host, boot_id=OTHER_BOOT)
    assert files(host) == [UNIT, WANTS, PROGRAM], "a claim on the new boot leaves the guard running"
    answer = agent.ask("guard_confirm", mine, nonce=NONCE)
    assert answer["removed"] == [str(host.root / path) for path in (WANTS, UNIT, PROGRAM)]
    assert files(host) == []
    assert not running.end()
    assert agent.ask("guard_confirm", mine, nonce=NONCE) == {
        "removed": [],
        "detail": "no guard was installed",
    }


def test_another_attempts_confirmation_is_none(host: Host) -> None:
    installed(host, seconds=0.0)
    boots_with_the_nonce(host)
    host.write("run/kexec-fleet/confirmed", NONCE + "1")
    assert Running(host).end()


def test_only_the_boot_with_the_nonce_can_be_confirmed(host: Host) -> None:
    with_systemd(host)
    install(host)
    agent, mine = claimed(host)
    assert agent.refused("guard_confirm", mine, nonce=NONCE)["code"] == "wrong_boot"
    assert not exists(host, "run/kexec-fleet/confirmed")


def test_a_host_that_fell_back_loses_its_stale_guard_at_the_next_claim(host: Host) -> None:
    with_systemd(host)
    install(host)
    host.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")
    claimed(host, boot_id=OTHER_BOOT)
    assert files(host) == []


def test_a_claim_keeps_its_own_attempts_guard_and_removes_anothers(host: Host) -> None:
    with_systemd(host)
    install(host)
    claimed(host, fence=18, nonce=NONCE)
    assert files(host) == [UNIT, WANTS, PROGRAM]
    claimed(host, fence=19, nonce="another")
    assert files(host) == []


def test_clean_and_release_remove_a_guard_but_not_one_that_waits_for_this_boot(host: Host) -> None:
    with_systemd(host)
    install(host)
    agent, mine = claimed(host, nonce=NONCE)
    removed = agent.ask("clean", mine)["removed"]
    assert str(host.root / PROGRAM) in removed and files(host) == []
    agent, mine = claimed(host, fence=18, nonce=NONCE)
    agent.ask("guard_install", mine, nonce=NONCE, seconds=600.0)
    agent.ask("release", mine)
    assert files(host) == []
    agent.end()
    agent, mine = claimed(host, fence=19, nonce=NONCE)
    agent.ask("guard_install", mine, nonce=NONCE, seconds=600.0)
    agent.end()
    boots_with_the_nonce(host)
    agent, mine = claimed(host, boot_id=OTHER_BOOT)
    agent.ask("release", mine)
    agent, mine = claimed(host, boot_id=OTHER_BOOT, fence=20)
    agent.ask("clean", mine)
    assert files(host) == [UNIT, WANTS, PROGRAM]


def test_a_damaged_guard_is_removed(host: Host) -> None:
    host.write(PROGRAM, "GUARD = {not json}\n")
    claimed(host, boot_id=BOOT)
    assert files(host) == []
    until(lambda: not exists(host, PROGRAM), "the removal")
