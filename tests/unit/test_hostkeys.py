"""Which keys a host may show: known_hosts files as OpenSSH writes them, pins, and the refusals."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from orchestrator.domain.inventory import Host
from tests.support.sshd import make_key, public
from workers.connection.errors import HostKeyProblem
from workers.connection.hostkeys import (
    HostKey,
    judge,
    known_keys,
    known_name,
    remember,
    search,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostKey]:
    where = tmp_path_factory.mktemp("keys")
    made = {"a": "ed25519", "b": "ed25519", "rsa": "rsa", "ecdsa": "ecdsa"}
    return {name: HostKey.parse(public(make_key(where / name, kind))) for name, kind in made.items()}


def host(tmp_path: Path, **values: object) -> Host:
    given = {"name": "web1", "address": "web1.example", "known_hosts": str(tmp_path / "known_hosts")}
    return Host(**(given | values))  # type: ignore[arg-type]


def test_the_fingerprint_is_the_one_of_ssh_keygen(tmp_path: Path) -> None:
    path = make_key(tmp_path / "key")
    shown = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
    key = HostKey.parse(public(path))
    assert shown.split()[1] == key.fingerprint
    assert str(key) == public(path)


@pytest.mark.parametrize(
    "text", ["", "ssh-ed25519", "ssh-ed25519 ???", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIA==", "x y"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        HostKey.parse(text)


@pytest.mark.parametrize(
    ("names", "matches"),
    [
        ("web1.example", True),
        ("WEB1.example", True),
        ("other,web1.example", True),
        ("*.example", True),
        ("web?.example", True),
        ("*.example,!web1.example", False),
        ("[web1.example]:22", False),
        ("[web1.example]:2222", False),
        ("web2.example", False),
        ("web1", False),
    ],
)
def test_names_and_patterns(keys: dict[str, HostKey], names: str, matches: bool) -> None:
    known = search(f"# a comment\n\nbroken line\n{names} {keys['a']} me@here\n", "web1.example", "f")
    assert known.keys == ((keys["a"],) if matches else ())


def test_a_port_that_is_not_22_is_part_of_the_name(keys: dict[str, HostKey], tmp_path: Path) -> None:
    name = known_name(host(tmp_path, port=2222))
    assert name == "[web1.example]:2222"
    assert search(f"[web1.example]:2222 {keys['a']}", name, "f").keys == (keys["a"],)
    assert search(f"[*.example]:2222 {keys['a']}", name, "f").keys == (keys["a"],)
    assert search(f"web1.example {keys['a']}", name, "f").keys == ()


@pytest.mark.parametrize("port", [22, 2222])
def test_lines_hashed_by_ssh_keygen(keys: dict[str, HostKey], tmp_path: Path, port: int) -> None:
    wanted = host(tmp_path, port=port)
    file = tmp_path / "known_hosts"
    file.write_text(f"{known_name(wanted)} {keys['a']}\nother {keys['b']}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
    assert "web1" not in file.read_text()
    assert known_keys(wanted).keys == (keys["a"],)


def test_revoked_keys_and_certificate_authorities(keys: dict[str, HostKey], tmp_path: Path) -> None:
    text = f"@revoked * {keys['a']}\n@cert-authority *.example {keys['b']}\nweb1.example {keys['a']}\n"
    known = search(text, "web1.example", "f")
    assert (known.keys, known.revoked) == ((keys["a"],), (keys["a"],))
    with pytest.raises(HostKeyProblem) as caught:
        judge(host(tmp_path), known, keys["a"])
    assert caught.value.code == "host_key_revoked"


def test_only_algorithms_of_known_keys_are_offered(keys: dict[str, HostKey]) -> None:
    assert search(f"h {keys['rsa']}", "h", "f").algorithms == ("rsa-sha2-512", "rsa-sha2-256")
    both = search(f"h {keys['ecdsa']}\nh {keys['a']}", "h", "f")
    assert both.algorithms == ("ssh-ed25519", "ecdsa-sha2-nistp256")
    assert "ssh-rsa" not in search("", "h", "f").algorithms
    assert len(search("", "h", "f").algorithms) == 6


def test_the_pin_goes_before_the_file(keys: dict[str, HostKey], tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text(f"web1.example {keys['b']}\n")
    known = known_keys(host(tmp_path, host_key=f"{keys['a']} a comment"))
    assert known.keys == (keys["a"],)
    with pytest.raises(HostKeyProblem) as caught:
        judge(host(tmp_path), known, keys["b"])
    assert caught.value.code == "host_key_changed"
    assert keys["a"].fingerprint in str(caught.value)
    assert keys["b"].fingerprint in str(caught.value)


def test_a_pin_of_a_type_that_no_sshd_shows(tmp_path: Path) -> None:
    kind = b"sk-ssh-ed25519@openssh.com"
    pin = base64.b64encode(len(kind).to_bytes(4, "big") + kind + bytes(40)).decode()
    with pytest.raises(HostKeyProblem) as caught:
        known_keys(host(tmp_path, host_key=f"{kind.decode()} {pin}"))
    assert caught.value.code == "host_key_invalid"


def test_an_unknown_key_is_refused_with_the_line_for_the_inventory(
    keys: dict[str, HostKey], tmp_path: Path
) -> None:
    with pytest.raises(HostKeyProblem) as caught:
        judge(host(tmp_path), known_keys(host(tmp_path)), keys["a"])
    assert caught.value.code == "host_key_unknown"
    assert keys["a"].fingerprint in str(caught.value)
    assert f'host_key: "{keys["a"]}"' in caught.value.hint
    assert not (tmp_path / "known_hosts").exists()


def test_accept_new_takes_one_key_up_and_no_other(keys: dict[str, HostKey], tmp_path: Path) -> None:
    new = host(tmp_path, host_key_policy="accept-new", port=2222, known_hosts=str(tmp_path / "d" / "kh"))
    before = known_keys(new)
    judge(new, before, keys["a"])
    assert (tmp_path / "d" / "kh").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d" / "kh").read_text() == f"[web1.example]:2222 {keys['a']}\n"
    judge(new, known_keys(new), keys["a"])
    with pytest.raises(HostKeyProblem) as caught:
        judge(new, known_keys(new), keys["b"])
    assert caught.value.code == "host_key_changed"
    # Another connection took the first key up between our look and our writing.
    with pytest.raises(HostKeyProblem) as raced:
        judge(new, before, keys["b"])
    assert raced.value.code == "host_key_changed"
    judge(new, before, keys["a"])
    assert (tmp_path / "d" / "kh").read_text().count("\n") == 1


def test_a_pin_is_not_bent_by_accept_new(keys: dict[str, HostKey], tmp_path: Path) -> None:
    pinned = host(tmp_path, host_key=str(keys["a"]), host_key_policy="accept-new")
    with pytest.raises(HostKeyProblem) as caught:
        judge(pinned, known_keys(pinned), keys["b"])
    assert caught.value.code == "host_key_changed"
    assert not (tmp_path / "known_hosts").exists()


def test_a_file_without_a_last_newline_is_appended_to(keys: dict[str, HostKey], tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"other {keys['b']}")
    remember(file, "web1.example", keys["a"])
    assert file.read_text() == f"other {keys['b']}\nweb1.example {keys['a']}\n"
