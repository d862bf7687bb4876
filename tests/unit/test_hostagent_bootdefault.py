"""The boot loader's default: GRUB with its own tools, systemd-boot, a command, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hostagent_harness import Agent, Host, alive, claim, host_in, until
from workers.hostagent import bootmenu

CONFIG = (Path(__file__).parent / "data/grub/debian12.cfg").read_text()
UUID = "7d5c1f2e-6a0b-4d6e-9f1c-2b3a4c5d6e7f"
ADVANCED = f"gnulinux-advanced-{UUID}>gnulinux-{{}}-{{}}-{UUID}"
NEW, OLD = "7.3.4+deb13-amd64", "6.1.0-13-amd64"
EDITENV = shutil.which("grub-editenv", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


@pytest.fixture
def grub(host: Host) -> Host:
    """A Debian whose administrator chose GRUB_DEFAULT=saved; the environment block is made by GRUB's tool."""
    host.write("etc/default/grub", 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\n# GRUB_DEFAULT=1\nGRUB_DEFAULT="saved"\n')
    host.write("boot/grub/grub.cfg", CONFIG)
    assert EDITENV, "grub-common is not installed: deploy/test does it"
    subprocess.run([EDITENV, environment(host), "create"], check=True, timeout=30)
    return host


def environment(host: Host) -> str:
    return str(host.root / "boot/grub/grubenv")


def saved(host: Host) -> str:
    assert EDITENV
    done = subprocess.run([EDITENV, environment(host), "list"], capture_output=True, text=True, check=True)
    return done.stdout


def claimed(host: Host) -> tuple[Agent, dict[str, Any]]:
    agent, mine = host.agent(), claim()
    agent.ask("claim", mine)
    return agent, mine


def arguments(method: str, release: str = NEW, **more: Any) -> dict[str, Any]:
    kernel = f"/boot/vmlinuz-{release}"
    return {"method": method, "release": release, "kernel": kernel, "entry": None, "command": None, **more}


def set_default(host: Host, method: str, **more: Any) -> dict[str, Any]:
    agent, mine = claimed(host)
    answer = agent.ask("boot_default_set", mine, **arguments(method, **more))
    agent.end()
    return answer


def refused(host: Host, method: str, deadline: float = 20.0, **more: Any) -> dict[str, Any]:
    agent, mine = claimed(host)
    error = agent.refused("boot_default_set", mine, deadline, **arguments(method, **more))
    agent.end()
    return error


# -- GRUB's menu ------------------------------------------------------------------------------------------


def test_debians_menu_is_read_with_its_submenu() -> None:
    entries = {entry.identifier: entry for entry in bootmenu.parse_grub(CONFIG)}
    assert list(entries) == [
        f"gnulinux-simple-{UUID}",
        ADVANCED.format(NEW, "advanced"),
        ADVANCED.format(NEW, "recovery"),
        ADVANCED.format(OLD, "advanced"),
        ADVANCED.format(OLD, "recovery"),
        "osprober-chain-A1B2-C3D4",
        "uefi-firmware",
        "Own kernel",
    ]
    assert [entry.recovery for entry in entries.values()] == [False, False, True, False, True] + [False] * 3
    assert entries[ADVANCED.format(OLD, "advanced")].kernel == f"/boot/vmlinuz-{OLD}"
    assert entries[ADVANCED.format(OLD, "advanced")].version == OLD
    assert entries["osprober-chain-A1B2-C3D4"].title == "It's another system {really}"
    assert entries["uefi-firmware"].kernel == ""


@pytest.mark.parametrize(
    ("release", "kernel", "named", "found"),
    [
        (NEW, f"/boot/vmlinuz-{NEW}", None, ADVANCED.format(NEW, "advanced")),
        (OLD, "/var/lib/kexec-fleet/artifacts/00ff", None, ADVANCED.format(OLD, "advanced")),
        ("unknown", "/boot/vmlinuz-own", None, "Own kernel"),
        ("6.1.0-1", "/boot/vmlinuz-6.1.0-1", None, None),
        (NEW, "", f"gnulinux-{OLD}-recovery-{UUID}", ADVANCED.format(OLD, "recovery")),
        (NEW, "", f"Debian GNU/Linux, with Linux {OLD}", ADVANCED.format(OLD, "advanced")),
        (NEW, "", "nothing", None),
    ],
)
def test_the_entry_is_the_one_that_stays_this_kernels(
    release: str, kernel: str, named: str | None, found: str | None
) -> None:
    entry = bootmenu.choose(bootmenu.parse_grub(CONFIG), release, kernel, named)
    assert (entry and entry.identifier) == found


@pytest.mark.parametrize("cut", range(0, len(CONFIG), 97))
def test_a_menu_that_breaks_off_is_no_crash(cut: int) -> None:
    whole = [entry.identifier for entry in bootmenu.parse_grub(CONFIG)]
    found = [entry.identifier for entry in bootmenu.parse_grub(CONFIG[:cut])]
    assert found[:-1] == whole[: len(found)][:-1], "all but the one it broke off in"


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ('set default="${saved_entry}"', True),
        ("  set default=$saved_entry", True),
        ('set default="0"', False),
        ('# set default="${saved_entry}"', False),
        ('set default="${next_entry}"', False),
    ],
)
def test_whether_the_menu_reads_the_saved_entry(line: str, reads: bool) -> None:
    assert bootmenu.reads_saved(f"if true; then\n{line}\nfi\n") is reads


# -- GRUB's tools -----------------------------------------------------------------------------------------


def test_grubs_own_tools_set_and_show_the_default(grub: Host) -> None:
    first = set_default(grub, "grub", release=OLD)
    wanted = ADVANCED.format(OLD, "advanced")
    assert (first["method"], first["before"], first["after"]) == ("grub", None, wanted)
    assert f"saved_entry={wanted}\n" in saved(grub)
    second = set_default(grub, "grub", release=NEW)
    assert (second["before"], second["after"]) == (wanted, ADVANCED.format(NEW, "advanced"))
    shown = grub.agent().ask("boot_default_show")
    assert shown == {"method": "grub", "default": ADVANCED.format(NEW, "advanced"), "detail": ""}


@pytest.mark.parametrize("where", ["configuration", "drop-in", "menu"])
def test_a_grub_that_does_not_read_the_saved_entry_is_refused(grub: Host, where: str) -> None:
    if where == "configuration":
        grub.write("etc/default/grub", "GRUB_DEFAULT=0\n")
    elif where == "drop-in":
        grub.write("etc/default/grub.d/50-cloud.cfg", "GRUB_DEFAULT=0\n")
    else:
        grub.write("boot/grub/grub.cfg", CONFIG.replace('default="${saved_entry}"', 'default="0"'))
    error = refused(grub, "grub")
    assert error["code"] == "grub_not_saved" and "GRUB_DEFAULT=saved" in error["hint"]
    assert "saved_entry=" not in saved(grub)


def test_a_kernel_that_is_not_in_the_menu_is_refused(grub: Host) -> None:
    error = refused(grub, "grub", release="9.9.9")
    assert error["code"] == "no_entry" and "9.9.9" in error["message"]
    assert ADVANCED.format(OLD, "advanced") in error["detail"]["entries"]
    assert "saved_entry=" not in saved(grub)


def test_fedoras_menu_takes_its_entries_from_their_files(grub: Host) -> None:
    grub.write("boot/grub/grub.cfg", 'set default="${saved_entry}"\ninsmod blscfg\nblscfg\n')
    text = "title Fedora\nversion 7.3.4-200.fc44.x86_64\nlinux /vmlinuz-7.3.4-200.fc44.x86_64\n"
    grub.write("boot/loader/entries/0123-7.3.4-200.fc44.x86_64.conf", text)
    answer = set_default(grub, "grub", release="7.3.4-200.fc44.x86_64")
    assert answer["after"] == "0123-7.3.4-200.fc44.x86_64"


def test_an_environment_block_that_cannot_be_written_is_told(grub: Host) -> None:
    Path(environment(grub)).unlink()
    Path(environment(grub)).mkdir()
    assert refused(grub, "grub")["code"] == "tool_failed"


# -- systemd-boot -----------------------------------------------------------------------------------------

VARIABLE = "sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def bootctl(host: Host, listed: str, works: bool = True) -> None:
    """Stands in for a tool that needs UEFI: writes the variable as the firmware would keep it."""
    (host.root / VARIABLE).parent.mkdir(parents=True, exist_ok=True)
    store = f"printf '\\007\\000\\000\\000' > {host.root / VARIABLE}; "
    store += f'printf %s "$2" | iconv -t UTF-16LE >> {host.root / VARIABLE}'
    script = f"#!/bin/sh\ncase $1 in\nlist) {listed} ;;\nset-default) {store if works else ':'} ;;\nesac\n"
    host.write("bootctl", script).chmod(0o755)


@pytest.mark.parametrize("speaks_json", [True, False])
def test_systemd_boots_default_is_set_and_read_back(host: Host, speaks_json: bool) -> None:
    entries = [
        {"id": "old.conf", "version": OLD, "linux": f"/id/{OLD}/linux"},
        {"id": "new.conf", "version": NEW, "linux": f"/id/{NEW}/linux"},
    ]
    bootctl(host, f"echo '{json.dumps(entries)}'" if speaks_json else "exit 1")
    if not speaks_json:
        for entry in entries:
            text = f"title Linux\nversion {entry['version']}\nlinux   {entry['linux']}\n"
            host.write(f"boot/loader/entries/{entry['id']}", text)
    first = set_default(host, "bootctl", release=OLD)
    assert (first["before"], first["after"]) == (None, "old.conf")
    second = set_default(host, "bootctl", release=NEW)
    assert (second["method"], second["before"], second["after"]) == ("bootctl", "old.conf", "new.conf")
    assert refused(host, "bootctl", release="9.9")["code"] == "no_entry"
    assert host.agent().ask("boot_default_show")["method"] == "bootctl"


def test_a_default_that_did_not_take_is_told(host: Host) -> None:
    bootctl(host, f"""echo '[{{"id": "new.conf", "version": "{NEW}", "linux": "/x"}}]'""", works=False)
    error = refused(host, "bootctl")
    assert error["code"] == "tool_failed" and "None, not 'new.conf'" in error["message"]


def test_a_host_without_the_tool_says_which(host: Host) -> None:
    error = refused(host, "bootctl")
    assert error["code"] == "tool_missing" and "bootctl" in error["message"]


# -- a command --------------------------------------------------------------------------------------------


def test_a_command_gets_release_and_kernel(host: Host) -> None:
    script = 'echo "$KEXEC_FLEET_RELEASE $KEXEC_FLEET_KERNEL $1" >&2'
    answer = set_default(host, "command", command=["sh", "-c", script, "name", "word one"])
    assert answer["detail"] == f"{NEW} /boot/vmlinuz-{NEW} word one"
    assert (answer["before"], answer["after"]) == (None, NEW)


def test_a_command_that_fails_is_told_with_its_last_words(host: Host) -> None:
    script = "seq 100 >&2; echo not for you >&2; exit 3"
    error = refused(host, "command", command=["sh", "-c", script])
    assert error["code"] == "tool_failed" and "exit status 3" in error["message"]
    assert error["detail"]["status"] == 3
    assert error["detail"]["stderr"].splitlines()[0] == "82"
    assert error["detail"]["stderr"].endswith("not for you")


def test_a_command_that_hangs_is_ended_with_what_it_started(host: Host) -> None:
    script = f"sleep 1000 & echo $! > {host.root}/pid; wait"
    error = refused(host, "command", deadline=1.0, command=["sh", "-c", script])
    assert error["code"] == "tool_failed" and "no end within" in error["message"]
    until(lambda: not alive(int((host.root / "pid").read_text())), "the end of what it started")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (None, "bad_request"),
        ([], "bad_request"),
        (["x", 1], "bad_request"),
        (["/no/such/tool"], "tool_missing"),
        ("sh", "bad_request"),
    ],
)
def test_a_command_that_is_none_is_refused(host: Host, command: object, code: str) -> None:
    assert refused(host, "command", command=command)["code"] == code


def test_an_unknown_method_is_refused_and_no_loader_is_none(host: Host) -> None:
    assert refused(host, "lilo")["code"] == "bad_request"
    assert refused(host, "grub")["code"] == "no_entry"
    assert host.agent().ask("boot_default_show")["method"] == "none"
