"""What brings a host back without power control: the watchdog left running over the jump, and the boot guard.

A VM with an i6300esb, whose timer runs on emulated hardware; at the end one with systemd. The tests follow
one another: each ends on the firmware's boot of the old kernel, or on a new kernel that the next one jumps
from.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.lab import console
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.spec import InitKind, LabOptions, parse_hosts
from tests.unit.hostagent_harness import Agent
from workers.agentbundle import LOADER, bundle

HOST = "dog1"
PATIENCE = 900.0
DEADLINE = 180.0
TIMEOUT = 120  # seconds of the watchdog: an emulated guest on a busy machine must reach its driver in it
DEVICE = "/sys/class/watchdog/watchdog0"
WDIOF_CARDRESET = 0x20  # include/uapi/linux/watchdog.h: the last reset was the watchdog's
UNIT = "systemctl show --property=ActiveState,SubState --value kexec-fleet-guard.service"
GUARDS = "/etc/kexec-fleet/boot.d"


pytestmark = pytest.mark.timeout(2400)  # boots of an emulated guest, some of them after a wait of minutes
MINI = pytest.mark.parametrize("fleet", [InitKind.MINI], indirect=True, scope="module")
SYSTEMD = pytest.mark.parametrize("fleet", [InitKind.SYSTEMD], indirect=True, scope="module")


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabFleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        lab = LabFleet.open("test-watchdog")
        try:
            options = LabOptions(
                target="7.3", cma="", memory=1536 << 20, init=request.param, watchdog=True,
                append="watchdog.stop_on_reboot=0",
            )  # fmt: skip
            lab.up(parse_hosts(f"{HOST}=7.2"), options, lambda event: print(event.text))
            yield lab
        finally:
            lab.down()


def hanging(image: bytes) -> bytes:
    """The image with `jmp .` at the entry that kexec jumps to (Documentation/arch/x86/boot.rst, 64-bit boot
    protocol: 0x200 behind the real-mode part)."""
    entry = (image[0x1F1] + 1) * 512 + 0x200
    return image[:entry] + b"\xeb\xfe" + image[entry + 2 :]


class Guest:
    """The VM and its sessions; every jump is an attempt of its own."""

    def __init__(self, fleet: LabFleet) -> None:
        self.fleet = fleet
        self.attempt = 0
        self.sessions: list[Agent] = []

    def session(self) -> Agent:
        argv = self.fleet.ssh_command(HOST, ["python3 -I -c " + shlex.quote(LOADER)])
        agent = Agent(argv, bundle(), PATIENCE)
        self.sessions.append(agent)
        return agent

    def claimed(self, nonce: str = "") -> tuple[Agent, dict[str, Any]]:
        agent = self.session()
        self.attempt += 1
        claim = {
            "journal": "lab", "rollout": "r1", "host": HOST, "attempt": self.attempt,
            "nonce": nonce or f"dog-{self.attempt}", "fence": self.attempt, "boot_id": agent.hello["boot_id"],
        }  # fmt: skip
        agent.ask("claim", claim, DEADLINE)
        return agent, claim

    def load(self, agent: Agent, claim: dict[str, Any], kernel: bytes) -> None:
        files = {"kernel": kernel, "initrd": Path(self.fleet.target.initrd).read_bytes()}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        paths = {}
        for name, data in files.items():
            asked = {"sha256": digests[name], "size": len(data)}
            offset = agent.ask("stage_begin", claim, DEADLINE, **asked, name=name)["offset"]
            for start in range(offset, len(data), 4 << 20):
                assert agent.chunk(claim, digests[name], start, data[start : start + (4 << 20)])["ok"]
            paths[name] = agent.ask("stage_end", claim, DEADLINE, **asked)["path"]
        words = agent.ask("check", collector="identity")["data"]["cmdline"].split()
        words = [word for word in words if not word.startswith("kexec_fleet.nonce=")]
        words.append("kexec_fleet.nonce=" + claim["nonce"])
        answer = agent.ask(
            "load", claim, DEADLINE, **paths, cmdline=" ".join(words), flags=0, debug=False, hold=900.0,
            expect=digests,
        )  # fmt: skip
        assert answer["state"] == "loaded", answer

    def jump(self, agent: Agent, claim: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Arms and goes; -> the answer to arm."""
        armed = agent.ask("arm", claim, DEADLINE, lead=3.0, span=0.5, **more)
        agent.ask("go", claim, DEADLINE, appointment=armed["appointment"])
        agent.kill()
        return armed

    def another_boot(self, than: str) -> str:
        """Waits for an answer of another boot; -> its command line."""
        vm = self.fleet.vm(HOST)
        self.until(lambda: (vm.ask_service() or than) != than, f"another boot than {than}")
        # The service may answer before sshd does.
        return self.until(lambda: self.try_call("cat /proc/cmdline").stdout.strip(), "sshd of that boot")

    def try_call(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.fleet.ssh_command(HOST, [command]),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def call(self, command: str) -> str:
        done = self.try_call(command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def console(self) -> str:
        return console.read_all(self.fleet.vm(HOST).console_path)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (answer := condition()):
            if time.monotonic() > end:
                tail = "\n".join(console.tail(self.fleet.vm(HOST).console_path, 40))
                pytest.fail(f"never: {what}\n{tail}")
            time.sleep(0.5)
        return answer

    def stays_until(self, uptime: float, boot_id: str) -> None:
        """The same boot lives on until this many seconds after its start."""
        read = "cat /proc/uptime /proc/sys/kernel/random/boot_id"

        def old_enough() -> bool:
            words = self.call(read).split()
            assert words[2] == boot_id, f"the host rebooted by itself\n{self.console()[-3000:]}"
            return float(words[0]) > uptime

        self.until(old_enough, f"{uptime} s of uptime")


@pytest.fixture(scope="module")
def guest(fleet: LabFleet) -> Iterator[Guest]:
    made = Guest(fleet)
    try:
        yield made
    finally:
        for session in made.sessions:
            session.kill()


@pytest.fixture(scope="module")
def good(fleet: LabFleet) -> bytes:
    return Path(fleet.target.image).read_bytes()


@MINI
def test_an_armed_watchdog_waits_for_go_and_ends_with_its_keeper(guest: Guest, good: bytes) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, good)
    armed = agent.ask("arm", claim, DEADLINE, lead=3.0, span=0.5, watchdog=20)["watchdog"]
    assert (armed["armed"], armed["identity"], armed["timeout_s"]) == (True, "i6300ESB timer", 20)
    assert (armed["survives"], armed["why"]) == (True, "watchdog.stop_on_reboot=0")
    assert guest.call(f"cat {DEVICE}/state {DEVICE}/timeout") == "active\n20"
    start = float(guest.call("cut -d' ' -f1 /proc/uptime"))
    guest.stays_until(start + 45, claim["boot_id"])
    agent.ask("disarm", claim, DEADLINE)
    assert guest.call(f"cat {DEVICE}/state") == "inactive"
    agent.ask("arm", claim, DEADLINE, lead=3.0, span=0.5, watchdog=20)
    assert guest.call(f"cat {DEVICE}/state") == "active"
    guest.call(f"kill -9 {agent.ask('status')['keeper']['pid']}")
    guest.until(lambda: guest.call(f"cat {DEVICE}/state") == "inactive", "the timer's end with its keeper")
    guest.stays_until(start + 75, claim["boot_id"])


@MINI
def test_a_kernel_that_hangs_at_its_entry_is_reset_by_the_watchdog_alone(guest: Guest, good: bytes) -> None:
    agent, claim = guest.claimed()
    guest.call("echo 'kexec-fleet lab: last words' > /dev/kmsg")
    guest.load(agent, claim, hanging(good))
    armed = guest.jump(agent, claim, watchdog=TIMEOUT)
    assert armed["watchdog"]["armed"] and armed["evidence"]["path"], armed
    cmdline = guest.another_boot(claim["boot_id"])
    assert claim["nonce"] not in cmdline
    assert guest.call("uname -r").startswith("7.2.")
    assert int(guest.call(f"cat {DEVICE}/bootstatus")) & WDIOF_CARDRESET
    # What the old kernel saw is on its disk.
    found = guest.session().ask(
        "check", None, DEADLINE, collector="evidence", args={"nonce": claim["nonce"]}
    )["data"]
    assert claim["boot_id"] in found["log"][0]
    assert any(line.endswith(";kexec-fleet lab: last words") for line in found["log"])


@MINI
def test_a_new_kernel_stops_the_watchdog_and_a_confirmed_boot_stays(guest: Guest, good: bytes) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, good)
    installed = agent.ask("guard_install", claim, DEADLINE, nonce=claim["nonce"], seconds=3600.0)
    assert installed["installed"], installed
    assert guest.jump(agent, claim, watchdog=TIMEOUT)["watchdog"]["armed"]
    cmdline = guest.another_boot(claim["boot_id"])
    assert f"kexec_fleet.nonce={claim['nonce']}" in cmdline.split()
    assert guest.call(f"cat {DEVICE}/state") == "inactive"
    back, new = guest.claimed(claim["nonce"])
    assert guest.call(f"ls {GUARDS}") == "kexec-fleet-guard"
    assert guest.call("pgrep -f '[b]oot.d/kexec-fleet-guard'")
    confirmed = back.ask("guard_confirm", new, DEADLINE, nonce=claim["nonce"])
    assert confirmed["removed"] == [f"{GUARDS}/kexec-fleet-guard"]
    guest.until(lambda: guest.call("pgrep -f '[b]oot.d/kexec-fleet-guard' || echo none") == "none", "its end")
    guest.stays_until(TIMEOUT + 30.0, new["boot_id"])


@MINI
def test_a_boot_that_nobody_confirms_goes_back_through_the_firmware(guest: Guest, good: bytes) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, good)
    agent.ask("guard_install", claim, DEADLINE, nonce=claim["nonce"], seconds=200.0)
    guest.jump(agent, claim)
    cmdline = guest.another_boot(claim["boot_id"])
    assert f"kexec_fleet.nonce={claim['nonce']}" in cmdline.split()
    unconfirmed = guest.call("cat /proc/sys/kernel/random/boot_id")
    # The controller dies here.
    assert "nonce" not in guest.another_boot(unconfirmed)
    assert "kexec-fleet guard: not confirmed in 200 s: rebooting" in guest.console()
    assert guest.call(f"ls {GUARDS}") == "kexec-fleet-guard"
    guest.claimed()
    assert guest.call(f"ls {GUARDS}") == ""


@SYSTEMD
def test_systemd_starts_the_guard_and_its_confirmation_ends_it(guest: Guest, good: bytes) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, good)
    assert agent.ask("guard_install", claim, DEADLINE, nonce=claim["nonce"], seconds=3600.0)["installed"]
    guest.jump(agent, claim)
    assert f"kexec_fleet.nonce={claim['nonce']}" in guest.another_boot(claim["boot_id"]).split()
    assert guest.call(UNIT).split() == ["active", "running"]
    back, new = guest.claimed(claim["nonce"])
    removed = back.ask("guard_confirm", new, DEADLINE, nonce=claim["nonce"])["removed"]
    assert len(removed) == 3, removed
    guest.until(lambda: guest.call(UNIT).split()[0] == "inactive", "the guard's end")
    back.kill()


@SYSTEMD
def test_the_guard_outlives_a_rescue_shell_and_reboots_through_the_firmware(
    guest: Guest, good: bytes
) -> None:
    agent, claim = guest.claimed()
    guest.load(agent, claim, good)
    agent.ask("guard_install", claim, DEADLINE, nonce=claim["nonce"], seconds=300.0)
    guest.jump(agent, claim)
    assert f"kexec_fleet.nonce={claim['nonce']}" in guest.another_boot(claim["boot_id"]).split()
    # It stops nearly every unit.
    unconfirmed = guest.call(
        "cat /proc/sys/kernel/random/boot_id; systemctl --no-block isolate rescue.target"
    )
    assert "nonce" not in guest.another_boot(unconfirmed)
    assert "kexec-fleet guard: not confirmed in 300 s: rebooting" in guest.console()
    assert guest.call("uname -r").startswith("7.2.")
    assert guest.call(UNIT).split()[0] == "inactive"
