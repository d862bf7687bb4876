"""Bad input through the command line: one clear error each, place and hint, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import output
from orchestrator.cli.app import main
from orchestrator.cli.gather import Gathered
from orchestrator.cli.output import ExitCode, errors_to_exit, exit_code
from orchestrator.domain import errors
from orchestrator.domain.errors import InputError, KexecFleetError, SourcePosition
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.inventory import Host
from tests.support.images import bzimage, cpio

INVENTORY = "hosts: {web1: {address: 192.0.2.1, labels: {kernel: 6.12}}, web2: {address: 192.0.2.2}}\n"
PLAYBOOK = "name: x\nkernel:\n  on_controller: {image: vmlinuz, initrd: initrd}\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in a folder with good files; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("vmlinuz").write_bytes(bzimage())
    Path("initrd").write_bytes(cpio("init"))
    Path("inv.yaml").write_text(INVENTORY)
    Path("pb.yaml").write_text(PLAYBOOK)

    def run_with(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kexec-fleet", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return int(caught.value.code or 0), captured.out, captured.err

    return run_with


def refused(run: Run, *says: str, command: tuple[str, ...] = ("plan", "pb.yaml", "-i", "inv.yaml")) -> str:
    """The error text of a command that must end as bad input, each of `says` in it, and a hint."""
    code, out, err = run(*command)
    assert code == 2
    assert out == ""
    for text in says:
        assert text in err
    assert "\n  hint: " in err
    return err


def test_good_files_pass(run: Run) -> None:
    code, out, err = run("check", "pb.yaml", "-i", "inv.yaml")
    assert (code, err) == (0, "")
    assert "2 hosts" in out and "7.3.4+deb13-cloud-amd64" in out
    code, out, _ = run("check", "-i", "inv.yaml", "--json")
    assert code == 0 and json.loads(out)["hosts"] == 2
    code, out, _ = run("plan", "pb.yaml", "-i", "inv.yaml", "--limit", "kernel<7")
    assert code == 0
    assert "wave 1: 2 hosts" in out and "decided when its facts are there" in out


def test_plan_with_facts_asks_and_shows_the_ladder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = HostFacts(release="6.12", machine="x86_64", knows_no_cma=True, meminfo_read=True)

    def gather(hosts: list[Host], seconds: float) -> Gathered:
        assert [host.name for host in hosts] == ["web1", "web2"] and seconds == 120
        return Gathered({"web1": facts}, {"web2": "the login was refused"})

    monkeypatch.setattr("orchestrator.cli.gather.gather_facts", gather)
    code, out, _ = run("plan", "pb.yaml", "-i", "inv.yaml", "--facts")
    assert code == 0
    assert "jump  1.-3. plain: " in out
    assert "it could not be asked: the login was refused" in out
    assert "no host was asked" not in out


def test_plan_as_json_is_one_document(run: Run) -> None:
    code, out, err = run("plan", "pb.yaml", "-i", "inv.yaml", "--limit", "web2", "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert plan["waves"] == [["web2"]]
    assert [host["action"] for host in plan["hosts"]] == ["leave out", "jump"]


def test_malformed_yaml(run: Run) -> None:
    Path("pb.yaml").write_text("name: [x\nkernel: {}\n")
    refused(run, "pb.yaml:2:7: not valid YAML")


def test_malformed_yaml_in_the_inventory(run: Run) -> None:
    Path("inv.yaml").write_text("hosts:\n\tweb1: {}\n")
    refused(run, "inv.yaml:2:1: not valid YAML", "blanks, not tabs")
    refused(run, "inv.yaml:2:1: ", command=("check", "-i", "inv.yaml"))


def test_unknown_key_with_the_nearest(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + "waves: [100%]\nfailure_budgte: 1\n")
    refused(run, "pb.yaml:5:1: unknown key `failure_budgte`", "did you mean `failure_budget`?")


def test_impossible_waves(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + "waves: [1, 60%, 50%, 100%]\n")
    refused(run, "pb.yaml:4:17: waves must grow: 50% comes after 60%")


def test_missing_playbook_and_inventory(run: Run) -> None:
    refused(run, "cannot read the playbook none.yaml", command=("plan", "none.yaml", "-i", "inv.yaml"))
    refused(run, "cannot read the inventory none.yaml", command=("check", "-i", "none.yaml"))


def test_missing_kernel(run: Run) -> None:
    Path("vmlinuz").unlink()
    refused(run, "pb.yaml:3:26: cannot read", "vmlinuz: No such file")


def test_missing_initrd(run: Run) -> None:
    Path("initrd").unlink()
    refused(run, "pb.yaml:3:43: cannot read", "initrd: No such file")


def test_missing_login_key(run: Run) -> None:
    Path("inv.yaml").write_text("defaults: {key: nokey}\n" + INVENTORY)
    refused(run, "inv.yaml:1:17: host `web1`: the `key` file", "nokey is not there")


def test_kernel_that_is_no_bzimage(run: Run) -> None:
    Path("vmlinuz").write_text("#!/bin/sh\n")
    refused(run, "pb.yaml:3:26: ", "vmlinuz: not a bzImage")


def test_initrd_that_is_no_archive(run: Run) -> None:
    Path("initrd").write_text("#!/bin/sh\n")
    refused(run, "pb.yaml:3:43: ", "initrd: not an initrd archive")


def test_wrong_hash(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK.replace("vmlinuz", f"vmlinuz, image_sha256: {'0' * 64}"))
    refused(run, "pb.yaml:3:49: ", "has SHA-256", f"not {'0' * 64}")


def test_duplicate_hosts(run: Run) -> None:
    Path("inv.yaml").write_text("hosts:\n  a: {address: h}\n  a: {address: i}\n")
    refused(run, "inv.yaml:3:3: `a` is here twice (first in line 2)")
    Path("inv.yaml").write_text("hosts:\n  a: {address: h}\n  b: {address: h}\n")
    refused(run, "inv.yaml:3:3: `b` is the same host as `a`")


def test_selector_that_matches_nothing(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + "hosts: wbe1\n")
    refused(run, "pb.yaml:4:8: selector `wbe1`, column 1: ", "did you mean `web1`?")
    Path("pb.yaml").write_text(PLAYBOOK + "hosts: web1 & web2\n")
    refused(run, "pb.yaml:4:8: the selector `web1 & web2` matches no host")


def test_limit_that_matches_nothing(run: Run) -> None:
    command = ("plan", "pb.yaml", "-i", "inv.yaml", "--limit")
    refused(run, "--limit: selector `wbe1`, column 1", command=(*command, "wbe1"))
    Path("pb.yaml").write_text(PLAYBOOK + "hosts: web1\n")
    refused(run, "--limit `web2` leaves none", command=(*command, "web2"))


def test_command_line_too_long(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + f"cmdline:\n  append: [{'x' * 2000}]\n")
    refused(run, "pb.yaml:5:11: the command line takes", "the image allows 2017")


def test_several_mistakes_come_at_once(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + "cma: prefred\nattempts: many\n")
    err = refused(run, "pb.yaml:4:6: ", "pb.yaml:5:11: ")
    assert err.count("hint: ") == 2


def test_options_that_are_wrong(run: Run) -> None:
    code, _, err = run("plan", "pb.yaml")
    assert code == 2 and "--inventory" in err
    code, _, err = run("plan", "pb.yaml", "-i", "inv.yaml", "--limt", "x")
    assert code == 2 and "--limt" in err


def test_errors_as_json(run: Run) -> None:
    Path("pb.yaml").write_text(PLAYBOOK + "cma: prefred\nattempts: many\n")
    code, out, err = run("plan", "pb.yaml", "-i", "inv.yaml", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 2
    assert "pb.yaml:4:6: " in err
    first = document["errors"][0]
    assert (first["kind"], first["file"], first["line"], first["column"]) == ("InputError", "pb.yaml", 4, 6)
    assert first["hint"] == "did you mean `prefer`?"
    assert len(document["errors"]) == 2


def test_control_characters_of_a_file_do_not_reach_the_terminal(run: Run) -> None:
    Path("pb.yaml").write_text('name: x\nkernel: {on_host: {image: /k}}\n"a\\e[31m": 1\n')
    err = refused(run, "pb.yaml:3:1: unknown key")
    assert "\x1b" not in err


def test_the_installed_command_ends_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "inv.yaml").write_text("hosts: [")
    command = [
        sys.executable,
        "-c",
        "from orchestrator.cli.app import main; main()",
        "check",
        "-i",
        "inv.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("inv.yaml:1:9: not valid YAML")


def test_schema_prints_json(run: Run) -> None:
    for name in ("playbook", "inventory"):
        code, out, _ = run("schema", name)
        assert code == 0 and json.loads(out)["title"].endswith(name)


def test_each_kind_of_error_has_its_exit_code() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KexecFleetError)
    ]
    codes = {}
    for kind in kinds:
        arguments = ("host", "step", "m") if issubclass(kind, errors.HostError) else ("m",)
        codes[kind.__name__] = exit_code(kind(*arguments))
    bad_input = {name for name, code in codes.items() if code is ExitCode.BAD_INPUT}
    assert bad_input == {
        "InputError",
        "BootImageError",
        "CommandLineTooLong",
        "SetupError",
        "JournalNotFound",
        "JournalUnusable",
        "JournalBusy",
    }
    assert {name for name, code in codes.items() if code is ExitCode.INCONCLUSIVE} == {
        "JournalError",
        "StaleFence",
        "BrokerError",
    }


def end(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, errors_to_exit():
        raise error
    return int(caught.value.code or 0)


def test_interrupted_and_internal_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(output.DEBUG, raising=False)
    assert end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert end(ValueError("broken\nin two")) == 3
    assert capsys.readouterr().err.startswith("internal error: ValueError: broken\n  hint: ")
    assert not list(tmp_path.rglob("*.txt")), "nothing is written unless asked for"
    monkeypatch.setenv(output.DEBUG, "1")
    assert end(ValueError("broken")) == 3
    (saved,) = tmp_path.rglob("*.txt")
    assert "ValueError: broken" in saved.read_text()
    assert str(saved) in capsys.readouterr().err


def test_ctrl_c_inside_a_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.plan.load_all", interrupt)
    code, out, _ = run("plan", "pb.yaml", "-i", "inv.yaml")
    assert (code, out) == (130, "")


def test_a_bug_inside_a_command_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.delenv(output.DEBUG, raising=False)
    monkeypatch.setattr("orchestrator.cli.plan.load_all", stumble)
    code, out, err = run("plan", "pb.yaml", "-i", "inv.yaml", "--json")
    assert code == 3
    assert err.startswith("internal error: RuntimeError: unforeseen\n  hint: ")
    assert json.loads(out)["exit_code"] == 3


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    program = "from orchestrator.cli.app import main; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program, "schema"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_position_is_part_of_the_text() -> None:
    error = InputError("wrong", position=SourcePosition("f", 1, 2))
    assert str(error) == "f:1:2: wrong"
