"""An orderly jump on a stock kernel: systemd stops the services, then kexecs; the host comes back verified.

The hot phase is counted from the stamp of the last shutdown hook, which pstore keeps in RAM across the kexec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from orchestrator.domain.ladder import LoadPath
from orchestrator.domain.rollout import Outcome
from orchestrator.lab import console
from orchestrator.lab.fleet import LabFleet
from orchestrator.lab.spec import HostSpec, InitKind, LabOptions
from tests.support.rollouts import Rollouts, outcomes

HOST = "orderly1"
WITNESS = "/var/lib/orderly-stop"

# Ordered behind ssh, so it is stopped before it: its last words prove that systemd took its time.
SERVICE = f"""\
mkdir -p /run/systemd/system
cat > /run/systemd/system/orderly.service <<'EOF'
[Unit]
Description=Witness of an orderly stop
After=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/cp /proc/sys/kernel/random/boot_id {WITNESS}
ExecStop=/bin/sh -c 'echo orderly witness: stopped > /dev/console'
EOF
systemctl daemon-reload && systemctl start orderly.service && cat /proc/sys/kernel/random/boot_id
"""


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXEC_FLEET_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        fleet = LabFleet.open("test-systemd")
        made = Rollouts(fleet, tmp_path_factory.mktemp("rollouts"))
        try:
            options = LabOptions(init=InitKind.SYSTEMD)
            fleet.up([HostSpec(HOST, "6.12")], options, lambda event: print(event.text))
            yield made
        finally:
            made.kill_all()
            fleet.down()


def test_systemd_stops_the_services_and_then_jumps(rollouts: Rollouts) -> None:
    old_boot = rollouts.on_host(HOST, SERVICE).strip()
    assert old_boot
    playbook = rollouts.playbook("orderly")
    playbook.write_text(playbook.read_text() + "jump: systemd\n")
    result = rollouts.finish(rollouts.start(*rollouts.run_words(playbook)))
    host = result["hosts"][0]
    rollouts.assert_exit(result)
    assert outcomes(result, HOST) == [(LoadPath.PLAIN, Outcome.BOOTED)]
    attempt = host["attempts"][0]
    verdicts = {check["name"]: check["verdict"] for check in attempt["checks"]}
    assert verdicts["units"] == "pass"
    assert set(verdicts.values()) == {"pass"}, verdicts

    lines = console.read_all(rollouts.fleet.vm(HOST).console_path)
    order = (
        r"orderly witness: stopped",
        r"Stopped .*ssh\.service",
        r"Reached target .*kexec\.target",
        rf"^\S+ kexec-fleet stamp {attempt['nonce']} \d+",
        r"kexec_core: Starting new kernel",
        rf"Kernel command line: .*nonce={attempt['nonce']}",
    )
    where = [[found.start() for found in re.finditer(text, lines, re.MULTILINE)] for text in order]
    assert all(where) and [places[-1] for places in where] == sorted(places[-1] for places in where), where
    assert rollouts.on_host(HOST, f"cat {WITNESS}").strip() == old_boot

    hot = host["hot_phase"]
    assert hot["value"] is not None and hot["value"] > 0, hot
    assert "stamp of the last shutdown hook" in hot["source"] and hot["uncertainty"] > 0
    assert hot["value"] < host["outage"]["value"]
    rollouts.assert_no_nonce_booted_twice()
