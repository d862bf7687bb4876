"""The agent as one text: same package, same bytes; the loader runs nothing else; Python 3.6 takes it."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostagent_harness import Host, claim, host_in, until
from workers import agentbundle
from workers.agentbundle import ENTRY, LOADER, bundle, render

PACKAGE = Path(agentbundle.__file__).parent / "hostagent"


def pythons() -> list[str]:
    """This Python, and the oldest supported one where this machine has it."""
    places = [Path(folder) / "python3.6" for folder in os.get_exec_path() if "shims" not in folder]
    places += sorted((Path.home() / ".pyenv/versions").glob("3.6.*/bin/python3.6"))
    return [sys.executable, *[str(place) for place in places if place.exists()][:1]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def load(data: bytes, *prefix: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-I", "-c", LOADER], input=data, capture_output=True, timeout=60)


def test_the_same_package_gives_the_same_bytes_and_their_name() -> None:
    assert render(ENTRY) == bundle()
    assert hashlib.sha256(bundle().source).hexdigest() == bundle().sha256
    assert bundle().header == f"{len(bundle().source)} {bundle().sha256}\n".encode()
    # A day's worth of hosts takes this over the wire once each.
    assert len(bundle().source) < 256 * 1024


def test_another_directory_listing_order_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = sorted(PACKAGE.rglob("*.py"), reverse=True)
    monkeypatch.setattr(Path, "rglob", lambda _self, _pattern: listed)
    assert render(ENTRY) == bundle()


def test_every_module_is_in_it_and_nothing_else() -> None:
    tree = ast.parse(bundle().source)
    [table] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES"
    ]
    files = {
        "workers.hostagent." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in PACKAGE.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): text for name, text in files.items()}
    assert {name: text for name, (_, text) in table.items()} == {"workers": "", **names}


def test_production_has_one_entry_and_no_way_to_another_environment() -> None:
    assert ENTRY == "from workers.hostagent.main import run\nrun(AGENT)\n"
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert re.findall(r"\bEnvironment\((?!object)", text) == ["Environment("]  # the one in main
    # The only use of the environment variables is to hand them on to a child.
    assert re.findall(r".*environ\b.*", text) == [
        '    environment = dict(os.environ, LC_ALL="C", SYSTEMD_PAGER="", SYSTEMD_COLORS="0")'
    ]


def test_the_loader_can_be_quoted_anywhere() -> None:
    assert "'" not in LOADER
    assert "!" not in LOADER.replace("!=", "")  # no history expansion


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "end of input after 0 of 1 bytes"),
        (b"GET / HTTP/1.1\r\n", "no header"),
        (b"x" * 200, "no header"),
        (b"five abc\n", "no header"),
        (b"0 abc\n", "0 bytes"),
        (b"99999999 abc\n", "99999999 bytes"),
        (b"5 abc\nprint", "announced SHA-256"),
        (b"50 abc\nprint", "end of input after 5 of 50"),
    ],
)
def test_the_loader_refuses_what_it_was_not_promised(data: bytes, said: str) -> None:
    done = load(data)
    assert (done.returncode, done.stdout) == (65, b"")
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_changed_source_does_not_run() -> None:
    source = b"open('/proc/self/comm', 'w')\nprint('ran')\n"
    name = hashlib.sha256(source).hexdigest()
    assert load(b"%d %s\n%s" % (len(source), name.encode(), source)).stdout == b"ran\n"
    assert load(b"%d %s\n%s" % (len(source), name.encode(), source.replace(b"ran", b"RAN"))).stdout == b""


def test_modules_of_the_same_name_on_the_host_are_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "workers"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise SystemExit('the trap')")
    entry = f"sys.path.insert(0, {str(tmp_path)!r})\nimport workers.hostagent.main\nprint('ours')\n"
    made = render(entry)
    done = load(made.header + made.source)
    assert (done.stdout, done.stderr) == (b"ours\n", b"")


@pytest.mark.parametrize("python", pythons())
def test_a_whole_attempt_on_this_and_on_the_oldest_python(host: Host, python: str) -> None:
    agent = host.agent(python)
    assert agent.hello["python"].startswith("3.6" if python.endswith("3.6") else "3.")
    for name in ("identity", "initrd", "log", "machine", "units"):
        agent.ask("check", collector=name)
    agent.ask("facts")
    assert len(agent.ask("clock", samples=3, span=0.05)["pairs"]) == 3
    armed = agent.armed(host, claim(), lead=1.5)
    agent.ask("go", claim(), appointment=armed["appointment"])
    until(lambda: host.calls("reboot"), "reboot(2)")
    assert host.names() == ["load", "reboot"]


def vermin(floor: str, path: Path) -> None:
    arguments = [f"-t={floor}-", "--no-tips", "--violations", "--eval-annotations"]
    tool = Path(sys.executable).parent / "vermin"
    done = subprocess.run([tool, *arguments, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_floor_is_python_3_6() -> None:
    vermin("3.6", PACKAGE)  # annotations too: they are evaluated there


def test_the_loader_parses_under_any_python_3(tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text(LOADER)
    vermin("3.0", tmp_path)


def test_it_imports_only_the_standard_library_and_itself() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or name.startswith("workers.hostagent"), (path, name)
    counter = ast.parse((PACKAGE / "counter.py").read_text())
    imports = [node for node in ast.walk(counter) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imports] == ["typing"]  # its text is copied into the stamp hook
