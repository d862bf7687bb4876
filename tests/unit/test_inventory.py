"""Inventory files: folding, positions of mistakes, and the way through the journal's JSON."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError
from orchestrator.domain.inventory import Inventory, Probe, ProbeKind
from orchestrator.loading.inventory import check_files, load_inventory

_BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))
HOST_KEY = "ssh-ed25519 " + base64.b64encode(_BLOB).decode()

WHOLE = f"""\
variables: {{image: /boot/vmlinuz, number: 6.10}}
defaults: {{user: root, key: keys/id, sudo: false, labels: {{site: ber}}, variables: {{shared: "1"}}}}
groups:
  inner: {{hosts: [b], user: innermost, labels: {{level: inner}}}}
  outer: {{hosts: [a], children: [inner], user: outer, port: 2200, labels: {{level: outer, ok: yes}}}}
  later: {{hosts: [a], user: later}}
  nobody:
hosts:
  a: {{address: 192.0.2.1, host_key: "{HOST_KEY} root@a"}}
  b: {{address: 192.0.2.2, port: 2222, labels: {{kernel: 6.10}}, probe: {{kind: http, port: 80, path: /up}}}}
  c:
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "inventory.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_inventory(write(folder, text))
    assert caught.value.hint
    return caught.value


def line(error: InputError) -> tuple[int, int]:
    assert error.position is not None
    return error.position.line, error.position.column


def test_groups_and_defaults_are_folded_in(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, WHOLE))
    a, b, c = (inventory.hosts[name] for name in "abc")
    assert list(inventory.hosts) == ["a", "b", "c"]
    assert inventory.groups == {"inner": ("b",), "outer": ("a", "b"), "later": ("a",), "nobody": ()}
    assert (a.user, a.port, a.labels) == ("later", 2200, {"site": "ber", "level": "outer", "ok": "yes"})
    assert (b.user, b.port) == ("innermost", 2222)
    assert b.labels == {"site": "ber", "level": "inner", "ok": "yes", "kernel": "6.10"}
    assert (b.groups, a.groups, c.groups) == (("outer", "inner"), ("outer", "later"), ())
    assert b.probe == Probe(kind=ProbeKind.HTTP, port=80, path="/up")
    assert (c.address, c.port, c.user) == ("c", 22, "root"), (
        "a host without an address is reached by its name"
    )
    assert a.host_key == HOST_KEY, "the comment is no part of the key"
    assert inventory.variables == {"image": "/boot/vmlinuz", "number": "6.10", "shared": "1"}
    assert a.variables == inventory.variables


def test_a_host_may_take_back_what_its_group_says(tmp_path: Path) -> None:
    text = "groups: {g: {hosts: [a, b], sudo: true}}\nhosts: {a: {sudo: false}, b: }\n"
    hosts = load_inventory(write(tmp_path, text)).hosts
    assert (hosts["a"].sudo, hosts["b"].sudo) == (False, True)


def test_files_start_at_the_inventorys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.chdir(tmp_path)
    text = "hosts:\n  a: {key: keys/id}\n  b: {key: ~/id, known_hosts: /etc/kh}\n"
    write(tmp_path, text)
    inventory = load_inventory(Path("inventory.yaml"))
    assert inventory.hosts["a"].key == str(tmp_path / "keys/id")
    assert inventory.hosts["b"].key == "/somewhere/id"
    assert inventory.hosts["b"].known_hosts == "/etc/kh"


def test_through_json_and_back(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, WHOLE))
    assert Inventory.model_validate_json(inventory.model_dump_json(by_alias=True)) == inventory


def test_key_files_that_are_not_there(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, WHOLE))
    with pytest.raises(InputError, match="keys/id is not there") as caught:
        check_files(inventory, inventory.hosts)
    assert line(caught.value) == (2, 29)
    assert not caught.value.others, "one file, one error"
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/id").touch()
    check_files(inventory, inventory.hosts)


@pytest.mark.parametrize(
    ("text", "at", "says", "hint"),
    [
        ("hosts: {a: {adress: x}}", (1, 13), "unknown key `adress` in `hosts.a`", "`address`"),
        ("host: {a: {}}\nhosts: {a: {}}", (1, 1), "unknown key `host`", "`hosts`"),
        ("groups: {}", (1, 1), "`hosts` is missing", "hosts"),
        ("hosts: {}", (1, 8), "there is no host", "at least one"),
        ("hosts: [a]", (1, 8), "a mapping is wanted, not a list", "key: value"),
        ("hosts:\n  a:\n  a:\n", (3, 3), "`a` is here twice", "keep one"),
        ("hosts: {all: {}}", (1, 9), "`all` is the selector", "another name"),
        ("hosts: {'a b': {}}", (1, 9), "not a name: 'a b'", "letters"),
        ("hosts: {a: {port: 70000}}", (1, 19), "70000 is too large", "65535"),
        ("hosts: {a: {port: ssh}}", (1, 19), "a whole number is wanted, not 'ssh'", "digits"),
        ("hosts: {a: {sudo: maybe}}", (1, 19), "true or false is wanted", "true or false"),
        ("hosts: {a: {address: root@x}}", (1, 22), "not an address", "apart"),
        ("hosts: {a: {host_key_policy: strickt}}", (1, 30), "'strickt' is not one of", "`strict`"),
        ("hosts: {a: {probe: {port: 0}}}", (1, 27), "0 is too small", "1"),
        ("hosts: {a: {probe: {kind: ping, port: 1}}}", (1, 27), "'ping' is not one of", "banner"),
        ("hosts: {a: {probe: {kind: http}}}", (1, 13), "`port` is missing", "port"),
        ("hosts: {a: {console: {}}}", (1, 13), "`file` is missing", "file"),
        ("hosts: {a: {console: {file: ''}}}", (1, 29), "it is empty", "text"),
        ("hosts: {a: {labels: {x: [1]}}}", (1, 25), "a text is wanted, not a list", "quotes"),
        ("hosts: {a: {labels: {'x y': 1}}}", (1, 22), "not a name", "letters"),
        ("groups: {g: {hosts: [web2]}}\nhosts: {web1: }", (1, 22), "names the host `web2`", "`web1`"),
        ("groups: {g: {children: [inr]}, inner: }\nhosts: {a: }", (1, 25), "the group `inr`", "`inner`"),
        ("groups: {a: {hosts: [a]}}\nhosts: {a: }", (1, 10), "is a group and a host", "rename"),
        (
            "groups: {x: {children: [y]}, y: {children: [x]}}\nhosts: {a: }",
            (1, 14),
            "contains itself",
            "away",
        ),
        ("hosts: {a: {address: h}, b: {address: H}}", (1, 26), "`b` is the same host as `a`", "keep one"),
        ("hosts: {a: {address: b}, b: }", (1, 26), "`b` is the same host as `a`", "keep one"),
    ],
)
def test_each_mistake_has_its_place(
    tmp_path: Path, text: str, at: tuple[int, int], says: str, hint: str
) -> None:
    error = refused(tmp_path, text)
    assert says in error.message
    assert line(error) == at
    assert hint in error.hint
    assert not error.others


def test_same_address_through_another_jump_host_is_another_host(tmp_path: Path) -> None:
    text = "hosts: {a: {address: 10.0.0.1, proxy_jump: x}, b: {address: 10.0.0.1, proxy_jump: y}}"
    assert len(load_inventory(write(tmp_path, text)).hosts) == 2


@pytest.mark.parametrize(
    "key",
    [
        "AAAAC3NzaC1lZDI1NTE5",
        "ssh-ed25519",
        "ssh-ed25519 not*base64",
        "ssh-ed25519 AAAA",
        "ssh-dss " + HOST_KEY.split()[1],
        "ssh-rsa " + HOST_KEY.split()[1],
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    ],
)
def test_host_keys_that_are_none(tmp_path: Path, key: str) -> None:
    error = refused(tmp_path, f"hosts:\n  a:\n    host_key: {key}\n")
    assert "host key" in error.message
    assert line(error) == (3, 15)
    assert "ssh_host_ed25519_key.pub" in error.hint


def test_all_mistakes_of_a_file_come_at_once_in_its_order(tmp_path: Path) -> None:
    error = refused(tmp_path, "hosts:\n  a: {prot: 1}\n  b: {port: x}\n  c: {user: ''}\n")
    assert [line(one)[0] for one in (error, *error.others)] == [2, 3, 4]
