"""The agent client, the real agent and a real sshd together; the host's files and kernel are make-believe."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import HostError, HostLost, HostRefused, TransportError
from tests.support.agents import BOOT_ID, bundle_for
from tests.support.sshd import Sshd
from tests.unit.hostagent_harness import Host as Machine
from tests.unit.hostagent_harness import until
from workers.agent import AgentClient, Claim
from workers.connection.ssh import SshConnection, SshConnector
from workers.deadline import Deadline


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd").start()
    yield server
    server.stop()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "root")
    yield made
    made.close()


@pytest.fixture
def connection(sshd: Sshd) -> Iterator[SshConnection]:
    connected = SshConnector().connect(sshd.host(), soon())
    yield connected
    connected.close()


@pytest.fixture
def client(connection: SshConnection, machine: Machine) -> Iterator[AgentClient]:
    started = AgentClient.start(connection, connection.host, bundle_for(machine), soon())
    yield started
    started.close()


def claim(fence: int = 17, **changed: object) -> Claim:
    given = {
        "journal": "j",
        "rollout": "r",
        "host": "web1",
        "attempt": 1,
        "nonce": f"n{fence}",
        "fence": fence,
        "boot_id": BOOT_ID,
    }
    return Claim(**(given | changed))  # type: ignore[arg-type]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_questions(client: AgentClient, machine: Machine, tmp_path: Path) -> None:
    assert client.hello.boot_id == BOOT_ID
    status = client.status(soon())
    assert (status.phase, status.claim, status.kexec_loaded, status.fences) == ("idle", None, 0, {})
    assert client.facts(soon())["boot_id"] == BOOT_ID
    clock = client.clock(soon(), samples=3, span=0.1)
    assert len(clock["pairs"]) == 3
    matches = client.resolve(f"{machine.root}/boot/*", soon())
    assert [match.path for match in matches] == [str(machine.initrd), str(machine.kernel)]
    assert client.digest(str(machine.kernel), soon()).sha256 == digest(machine.kernel)
    assert isinstance(client.check("log", soon()), dict)
    with pytest.raises(HostRefused) as caught:
        client.digest(str(tmp_path / "none"), soon())
    assert (caught.value.code, caught.value.step, caught.value.errno) == ("no_file", "digest", 2)


def test_staging_over_the_channel(client: AgentClient, machine: Machine, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(20_000_000))
    client.claim(claim(), soon())
    seen: list[tuple[int, int]] = []
    first = client.stage(
        claim(), blob, digest(blob), 20_000_000, "kernel", soon(), lambda *done: seen.append(done)
    )
    assert (first.skipped, first.resumed_from, first.bytes_sent) == (False, 0, 20_000_000)
    assert digest(Path(first.path)) == digest(blob)
    assert seen[-1] == (20_000_000, 20_000_000)
    again = client.stage(claim(), blob, digest(blob), 20_000_000, "kernel", soon())
    assert (again.skipped, again.bytes_sent, again.path) == (True, 0, first.path)
    # An earlier session broke in the middle.
    whole = Path(first.path)
    whole.with_name(whole.name + ".partial").write_bytes(blob.read_bytes()[:9_000_000])
    whole.unlink()
    resumed = client.stage(claim(), blob, digest(blob), 20_000_000, "kernel", soon())
    assert (resumed.resumed_from, resumed.bytes_sent) == (9_000_000, 11_000_000)
    assert digest(whole) == digest(blob)
    # A partial file that is not the beginning of ours.
    whole.with_name(whole.name + ".partial").write_bytes(os.urandom(9_000_000))
    whole.unlink()
    mended = client.stage(claim(), blob, digest(blob), 20_000_000, "kernel", soon())
    assert (mended.resumed_from, mended.bytes_sent) == (0, 20_000_000)
    assert any("kexec-fleet" in path for path in client.clean(claim(), soon()))
    assert not whole.exists()


def test_a_refused_chunk_leaves_the_channel_in_step(client: AgentClient, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(1_000_000))
    client.claim(claim(17), soon())
    client.claim(claim(18), soon())
    with pytest.raises(HostRefused) as caught:
        client.stage(claim(17), blob, digest(blob), 1_000_000, "kernel", soon())
    assert caught.value.code == "stale_fence"
    assert client.stage(claim(18), blob, digest(blob), 1_000_000, "kernel", soon()).bytes_sent == 1_000_000


def test_load_arm_go_to_a_jump_that_the_kernel_refuses(client: AgentClient, machine: Machine) -> None:
    machine.behave(reboot_errno=22)
    assert client.claim(claim(), soon()).jump == "none"
    loaded = client.load(
        claim(),
        kernel=str(machine.kernel),
        initrd=str(machine.initrd),
        cmdline="console=ttyS0",
        flags=0,
        debug=True,
        hold=60.0,
        expect={"kernel": digest(machine.kernel), "initrd": digest(machine.initrd)},
        deadline=soon(),
    )
    assert (loaded.state, loaded.errno, loaded.kexec_loaded) == ("loaded", None, 1)
    assert any("kexec_file" in line for line in loaded.log)
    armed = client.arm(claim(), "direct", 2.0, soon())
    assert armed.method == "direct"
    assert client.status(soon()).phase == "armed"
    with pytest.raises(HostRefused) as wrong:
        client.go(claim(), armed.appointment + 1, soon())
    assert wrong.value.code == "not_armed"
    assert client.go(claim(), armed.appointment, soon())["going"] is True
    status = until(lambda: (s := client.status(soon())).jump_errno and s, "the refused jump in the status")
    assert status.jump_errno == 22
    assert client.claim(claim(18), soon()).jump == "dead"
    assert machine.names() == ["load", "reboot", "unload"]


def test_a_load_that_takes_longer_than_its_deadline(client: AgentClient, machine: Machine) -> None:
    machine.behave(load_seconds=2.0)
    client.claim(claim(), soon())
    answer = client.load(
        claim(),
        kernel=str(machine.kernel),
        initrd=None,
        cmdline="x",
        flags=0,
        hold=60.0,
        expect={"kernel": digest(machine.kernel)},
        deadline=Deadline.after(1.0),
    )
    assert answer.state == "loading"
    assert client.load_wait(claim(), soon()).state == "loaded"
    assert client.unload(claim(), soon())["kexec_loaded"] == 0
    client.release(claim(), soon())


def test_a_claim_of_another_boot(client: AgentClient) -> None:
    with pytest.raises(HostRefused) as caught:
        client.claim(claim(boot_id="another"), soon())
    assert caught.value.code == "wrong_boot"


def test_a_session_that_is_killed_in_a_change_is_lost(
    client: AgentClient, machine: Machine, sshd: Sshd
) -> None:
    machine.behave(load_seconds=3.0)
    client.claim(claim(), soon())
    killer = threading.Thread(target=lambda: (until(lambda: machine.calls("load"), "the load"), sshd.stop()))
    killer.start()
    with pytest.raises(HostError) as caught:
        client.load(
            claim(),
            kernel=str(machine.kernel),
            initrd=None,
            cmdline="x",
            flags=0,
            hold=60.0,
            expect={"kernel": digest(machine.kernel)},
            deadline=soon(),
        )
    killer.join()
    assert type(caught.value) is HostLost
    assert caught.value.step == "load"
    with pytest.raises(TransportError) as over:
        client.status(soon())
    assert not isinstance(over.value, HostLost)
    # Nothing stays loaded after a lost session.
    until(lambda: machine.names()[-1:] == ["unload"], "the keeper unloads")


def test_a_frozen_agent_is_noticed_and_answers_late(client: AgentClient) -> None:
    pid = client.hello.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TransportError) as caught:
        client.status(Deadline.after(1.0))
    assert caught.value.code == "deadline"
    os.kill(pid, signal.SIGCONT)
    # The answer to `status` comes now, under the id of a request that was given up.
    assert client.resolve("/etc/host*", soon())


def test_close_from_another_thread_aborts_a_request(client: AgentClient, machine: Machine) -> None:
    closer = threading.Timer(0.3, client.close)
    closer.start()
    with pytest.raises(TransportError) as caught:
        client.clock(Deadline.after(500), samples=2, span=50.0)
    closer.join()
    assert caught.value.code == "closed"


def test_no_python_on_the_host(tmp_path: Path, machine: Machine) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    server = Sshd(tmp_path / "bare", env={"PATH": str(programs)}).start()
    try:
        bare = SshConnector().connect(server.host(), soon())
        with pytest.raises(HostRefused) as caught:
            AgentClient.start(bare, bare.host, bundle_for(machine), soon())
        assert caught.value.code == "no_python"
        bare.close()
    finally:
        server.stop()
