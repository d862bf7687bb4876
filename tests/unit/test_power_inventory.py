"""`power` and `console` in an inventory: folding, the host's own fields, and the place of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.domain.inventory import Inventory, InventoryFile
from orchestrator.domain.power import CommandPower, QmpPower, Secret
from orchestrator.loading.inventory import load_inventory
from orchestrator.loading.schema import inventory_schema
from tests.unit.test_inventory import line, refused, write

KEY = -6  # the column of the key `power`, where its value is column 1

WHOLE = """\
defaults:
  console: {file: "consoles/${host}.log"}
  power:
    kind: command
    run: [bin/bmc, --at, "${labels.bmc}", "cycle ${host}:${port}", "$${PATH}", "${variables.site}"]
    status: [bmc, "${user}@${address}"]
    timeout: 1m30s
    environment: {ZONE: "${labels.bmc}/1", SLOT: 7}
    secrets: {BMC_PASSWORD: {file: "secrets/${host}"}, TOKEN: {environment: BMC_TOKEN}}
groups:
  vms: {hosts: [b], power: {kind: qmp, socket: "vms/${host}/qmp.sock"}}
variables: {site: ber}
hosts:
  a: {address: 192.0.2.1, labels: {bmc: bmc-1}}
  b: {console: {file: /var/log/b}}
"""


def test_power_is_folded_and_speaks_of_its_host(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, WHOLE))
    a, b = inventory.hosts["a"], inventory.hosts["b"]
    assert a.power == CommandPower(
        kind="command",
        run=(f"{tmp_path}/bin/bmc", "--at", "bmc-1", "cycle a:22", "${PATH}", "ber"),
        status=("bmc", "root@192.0.2.1"),
        timeout=90,
        environment={"ZONE": "bmc-1/1", "SLOT": "7"},
        secrets={
            "BMC_PASSWORD": Secret(file=f"{tmp_path}/secrets/a"),
            "TOKEN": Secret(environment="BMC_TOKEN"),
        },
    ), "a program with a `/` is a file of the inventory's folder, one without is found through PATH"
    assert b.power == QmpPower(kind="qmp", socket=f"{tmp_path}/vms/b/qmp.sock")
    assert a.console is not None and a.console.file == f"{tmp_path}/consoles/a.log"
    assert b.console is not None and b.console.file == "/var/log/b"


def test_without_power_there_is_none(tmp_path: Path) -> None:
    host = load_inventory(write(tmp_path, "hosts: {a: }")).hosts["a"]
    assert (host.power, host.console) == (None, None)


def test_null_takes_nothing_away_and_does_not_hide_the_place(tmp_path: Path) -> None:
    text = "defaults:\n  power: {kind: qmp, socket: '${host}${x}'}\nhosts: {a: {power: null}}\n"
    assert line(refused(tmp_path, text)) == (2, 37)


def test_through_json_and_back(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, WHOLE))
    assert Inventory.model_validate_json(inventory.model_dump_json(by_alias=True)) == inventory


def test_what_a_field_says_is_no_placeholder_again(tmp_path: Path) -> None:
    text = "hosts: {a: {labels: {x: '${host}'}, power: {kind: qmp, socket: '/${labels.x}'}}}"
    power = load_inventory(write(tmp_path, text)).hosts["a"].power
    assert isinstance(power, QmpPower) and power.socket == "/${host}"


@pytest.mark.parametrize(
    ("power", "column", "says", "hint"),
    [
        ("{}", 1, "`kind` is missing", "qmp, command"),
        ("qmp", 1, "a mapping is wanted", "kind"),
        ("{kind: comand, run: [x]}", 8, "no power control of the kind 'comand'", "`command`"),
        ("{kind: [x]}", 8, "no power control of the kind", "qmp"),
        ("{kind: command}", KEY, "`run` is missing", "run"),
        ("{kind: command, run: []}", 22, "the command is empty", "program"),
        ("{kind: command, run: ipmi cycle}", 22, "a list is wanted", "[one, two]"),
        ("{kind: command, run: ['']}", 23, "name is empty", "program"),
        ("{kind: command, run: [a, {}]}", 26, "a text is wanted", "quotes"),
        ('{kind: command, run: ["a\\0"]}', 23, "NUL", "take it out"),
        ("{kind: command, run: [a], socket: b}", 27, "unknown key `socket`", ""),
        ("{kind: command, run: [a], stauts: [b]}", 27, "unknown key `stauts`", "`status`"),
        ("{kind: command, run: [a], timeout: soon}", 36, "not a duration: 'soon'", "90s"),
        ("{kind: command, run: [a], environment: {A-B: x}}", 41, "not a name for an environment", "digit"),
        ("{kind: command, run: [a], secrets: {A: {}}}", 40, "neither of `file` and `environment`", "PATH"),
        ("{kind: command, run: [a], secrets: {A: {file: x, environment: Y}}}", 40, "both of", "PATH"),
        ("{kind: command, run: [a], environment: {A: x}, secrets: {A: {file: x}}}", 44, "`A` is in", "one"),
        ("{kind: qmp}", KEY, "`socket` is missing", "socket"),
        ("{kind: qmp, socket: ''}", 21, "it is empty", "text"),
        ("{kind: command, run: [a, '-${hots}']}", 27, "host `a` has no `hots`", "`host`"),
        ("{kind: command, run: [a, '-${}']}", 27, "host `a` has no ``", "known fields"),
        ("{kind: command, run: [a, '-${host']}", 27, "not a field of a host: ${host", "$${"),
        ("{kind: command, run: [a, '${labels.bcm}']}", 26, "has no `labels.bcm`", "`labels.bmc`"),
        ("{kind: command, run: [a], environment: {A: '${variables.x}'}}", 44, "`variables.x`", "known"),
        ("{kind: command, run: [a], secrets: {A: {file: '${x}'}}}", 47, "has no `x`", "known"),
        ("{kind: qmp, socket: '${labels.none}'}", 21, "`power.socket` is unusable", "at least 1"),
    ],
)
def test_each_mistake_has_its_place(tmp_path: Path, power: str, column: int, says: str, hint: str) -> None:
    error = refused(tmp_path, f"hosts:\n  a:\n    labels: {{bmc: x, none: ''}}\n    power: {power}\n")
    assert says in error.message
    assert line(error) == (4, len("    power: ") + column)
    assert hint in error.hint
    assert not error.others


def test_a_secret_written_into_the_inventory_is_not_shown(tmp_path: Path) -> None:
    for written in ("hunter2", "[hunter2]", "{value: hunter2}"):
        text = f"hosts: {{a: {{power: {{kind: command, run: [x], secrets: {{P: {written}}}}}}}}}"
        error = refused(tmp_path, text)
        assert not any("hunter2" in str(one) + one.hint for one in (error, *error.others))
        assert "secret" in error.message or "`value`" in error.message


def test_a_slip_in_the_defaults_is_one_mistake(tmp_path: Path) -> None:
    hosts = "".join(f"  h{number}:\n" for number in range(30))
    text = f"defaults: {{power: {{kind: command, run: ['${{labels.bmc}}', '${{hots}}']}}}}\nhosts:\n{hosts}"
    error = refused(tmp_path, text)
    assert len((error, *error.others)) == 2
    assert "h0" in error.message


@pytest.mark.parametrize(
    ("power", "good"),
    [
        ({"kind": "qmp", "socket": "x"}, True),
        ({"kind": "command", "run": ["x", 1, True], "timeout": "1m", "environment": {"A": 1}}, True),
        ({"kind": "command", "run": ["x"], "status": None, "secrets": {"A": {"file": "f"}}}, True),
        ({"kind": "qmp"}, False),
        ({"kind": "redfih", "run": ["x"]}, False),
        ({"kind": "command", "run": []}, False),
        ({"kind": "command", "run": ["x"], "socket": "y"}, False),
        ({"kind": "command", "run": ["x"], "environment": {"1": "y"}}, False),
        ({"kind": "command", "run": ["x"], "secrets": {"A": "y"}}, False),
    ],
)
def test_the_schema_agrees(power: dict[str, Any], good: bool) -> None:
    data = {"hosts": {"a": {"power": power, "console": {"file": "c"}}}}
    assert jsonschema.Draft202012Validator(inventory_schema()).is_valid(data) is good
    if good:
        InventoryFile.model_validate(data)
    else:
        with pytest.raises(ValueError):
            InventoryFile.model_validate(data)


def test_the_schema_takes_the_whole() -> None:
    jsonschema.validate(yaml.safe_load(WHOLE), inventory_schema())
