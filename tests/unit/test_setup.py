"""The set-up scripts where no new machine is needed to see it; deploy/chroot-test shows the rest for real."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import repo

LIB = repo.ROOT / "deploy" / "lib.sh"


def in_shell(tree: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of shell after lib.sh, as deploy/test of the project at `tree` would."""
    program = f'set -euo pipefail\nROOT={tree}\n. {LIB}\nmkdir -p "$(dirname "$LOG")"\n: >"$LOG"\n{script}'
    return subprocess.run(
        ["bash", "-c", program, "deploy/test"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_apt_is_not_called_when_nothing_is_missing(tmp_path: Path) -> None:
    done = in_shell(tmp_path, "need() { :; }; apt_install() { echo CALLED; }; install_packages test")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "nothing is missing" in done.stderr


def test_what_is_missing_is_named_with_its_reason_and_installed_once(tmp_path: Path) -> None:
    script = """
    check_packages() { MISSING=(); need "for the test" "one two" test -e "$ROOT/there"; }
    become_root() { :; }; services_stay_off() { :; }; services_stay_off_done() { :; }
    apt_install() { echo "install $*"; touch "$ROOT/there"; }
    install_packages test"""
    done = in_shell(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "install one two\n"
    assert "missing: one two (for the test)" in done.stderr


def test_a_package_that_does_not_help_is_said(tmp_path: Path) -> None:
    script = """
    check_packages() { MISSING=(); need "for the test" nowhere false; }
    become_root() { :; }; services_stay_off() { :; }; services_stay_off_done() { :; }; apt_install() { :; }
    install_packages test"""
    done = in_shell(tmp_path, script)
    assert done.returncode == 2
    assert "still missing after the installation: nowhere" in done.stderr


@pytest.mark.parametrize(
    ("sudo", "says"),
    [
        ("have() { return 1; }", "root or sudo is needed"),
        ("sudo() { return 1; }", "sudo asks for a password"),
    ],
)
def test_without_root_one_line_says_what_to_run(tmp_path: Path, sudo: str, says: str) -> None:
    done = in_shell(tmp_path, f"id() {{ echo 1000; }}; {sudo}; MISSING=(qemu-utils); become_root")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert done.stderr.endswith("run this as root, then start again: apt-get install qemu-utils\n")


def test_services_are_kept_from_starting_only_meanwhile(tmp_path: Path) -> None:
    script = """
    POLICY=$ROOT/policy-rc.d; have() { return 1; }
    services_stay_off; "$POLICY" || echo "policy says $?"; services_stay_off_done
    [ ! -e "$POLICY" ] && echo gone"""
    done = in_shell(tmp_path, script)
    assert done.stdout == "policy says 101\ngone\n", done.stderr


def test_a_policy_of_the_users_own_is_not_touched(tmp_path: Path) -> None:
    executable(tmp_path / "policy-rc.d", "#!/bin/sh\nexit 0\n")
    script = "POLICY=$ROOT/policy-rc.d; have() { return 1; }; services_stay_off; services_stay_off_done"
    assert in_shell(tmp_path, script).returncode == 0
    assert (tmp_path / "policy-rc.d").read_text() == "#!/bin/sh\nexit 0\n"


def test_an_ssh_server_of_the_users_own_stays_enabled(tmp_path: Path) -> None:
    script = """
    POLICY=$ROOT/policy-rc.d; have() { return 0; }; disable_ssh_service() { echo DISABLED; }
    services_stay_off; services_stay_off_done"""
    done = in_shell(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_failed_step_shows_the_end_of_its_output(tmp_path: Path) -> None:
    done = in_shell(tmp_path, "logged 'doing a thing' bash -c 'seq 100; exit 7'")
    assert done.returncode == 7
    assert "FAILED with exit code 7: doing a thing" in done.stderr
    shown = [line.strip() for line in done.stderr.splitlines()]
    assert shown[-1] == "100"
    assert "75" not in shown


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("sound", ":"),
        ("interrupted", 'touch "$VENV/.unfinished"'),
        ("moved", 'sed -i "s|$VENV|/elsewhere/.venv|" "$VENV/bin/activate"'),
        ("python gone", 'ln -sf /nowhere/python3 "$VENV/bin/python"'),
    ],
)
def test_only_a_sound_venv_is_used_again(tmp_path: Path, name: str, spoil: str) -> None:
    executable(tmp_path / ".venv/bin/python", "#!/bin/sh\nexit 0\n")
    (tmp_path / ".venv/bin/activate").write_text(f'VIRTUAL_ENV="{tmp_path}/.venv"\n')
    done = in_shell(tmp_path, f"{spoil}; venv_works && echo works || echo broken")
    assert done.stdout.strip() == ("works" if name == "sound" else "broken"), done.stderr


def test_pip_is_tried_again_and_at_last_without_its_cache(tmp_path: Path) -> None:
    executable(tmp_path / ".venv/bin/python", f'#!/bin/sh\necho "$*" >>{tmp_path}/tries\nexit 1\n')
    done = in_shell(tmp_path, "sleep() { :; }; pip_install '[dev]' || echo gave up")
    assert done.stdout == "gave up\n", done.stderr
    tries = (tmp_path / "tries").read_text().splitlines()
    assert ["--no-cache-dir" in line for line in tries] == [False, False, True]
    assert (tmp_path / ".venv/.unfinished").exists()


# --- deploy/demo around a kexec-fleet that only takes notes ---------------------------------------------

STUB_LIB = """
VENV=$ROOT/.venv
say() { printf '%s\\n' "$*" >&2; }
die() { say "$*"; exit 2; }
set_up() { PATH=$VENV/bin:$PATH; }
"""
STUB_CLI = """#!/bin/sh
echo "$*" >>"$NOTES"
case "$1 $2" in
"lab up") echo "up"; exit "$UP" ;;
"rollout run") echo '{"hosts": []}'; exit "$ROLLOUT" ;;
*) echo "words of $1 $2" ;;
esac
"""


class Demo:
    """A copy of deploy/demo with stubs around it."""

    def __init__(self, tree: Path) -> None:
        self.notes = tree / "notes"
        self.script = tree / "deploy" / "demo"
        executable(tree / ".venv/bin/kexec-fleet", STUB_CLI)
        executable(self.script, "")
        shutil.copy(repo.ROOT / "deploy" / "demo", self.script)
        (tree / "deploy" / "lib.sh").write_text(STUB_LIB)
        self.home = str(tree)

    def run(self, *options: str, up: int = 0, rollout: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": self.home, "NOTES": str(self.notes)}
        environment |= {"UP": str(up), "ROLLOUT": str(rollout)}
        return subprocess.run(
            [str(self.script), *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def steps(self) -> list[str]:
        return [" ".join(line.split()[:2]) for line in self.notes.read_text().splitlines()]


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_demo_ends_with_the_rollouts_exit_code_and_no_lab(demo: Demo, code: int) -> None:
    done = demo.run(rollout=code)
    assert done.returncode == code, done.stderr
    assert [step.split()[0] for step in demo.steps] == ["lab", "lab", "plan", "rollout", "lab"]
    assert demo.steps[-1] == "lab down"


def test_the_demos_json_stands_alone_on_standard_output(demo: Demo) -> None:
    done = demo.run("--json", rollout=1)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"hosts": []}
    assert "rollout show" in demo.steps


def test_a_lab_that_did_not_come_up_is_taken_down_all_the_same(demo: Demo) -> None:
    done = demo.run(up=1)
    assert done.returncode == 1
    assert demo.steps[-1] == "lab down"
    assert "rollout run" not in demo.steps


def test_the_demo_keeps_the_lab_when_asked(demo: Demo) -> None:
    done = demo.run("--keep", "--fleet", "web1=7.2")
    assert done.returncode == 0, done.stderr
    assert demo.steps[-1] == "rollout run"
    assert "--hosts web1=7.2" in demo.notes.read_text()
    assert "lab down --name demo" in done.stderr


@pytest.mark.parametrize("options", [("--bogus",), ("--fleet",)])
def test_the_demo_refuses_what_it_does_not_know(demo: Demo, options: tuple[str, ...]) -> None:
    assert demo.run(*options).returncode == 2
    assert not demo.notes.exists()
