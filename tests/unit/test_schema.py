"""The JSON Schemas for editors agree with what loading accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.domain.inventory import InventoryFile
from orchestrator.domain.playbook import Playbook
from orchestrator.loading.schema import inventory_schema, playbook_schema

EXAMPLES = Path(__file__).parents[2] / "playbooks"
KERNEL = {"on_host": {"image": "/k"}}


def valid(schema: dict[str, Any], data: object) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(data))


def test_schemas_are_schemas() -> None:
    for schema in (playbook_schema(), inventory_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_examples_are_valid(path: Path) -> None:
    schema = inventory_schema() if "inventory" in path.name else playbook_schema()
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize(
    "changes",
    [
        {"waves": [1, "50%", "100%"]},
        {"waves": [{"count": 1}, {"percent": 100}]},
        {"waves": ["2", "7.5 %", "100%"]},
        {"failure_budget": 0},
        {"failure_budget": "10%"},
        {"failure_budget": {"percent": 10}},
        {"deadlines": {"return": "10m", "load": 90, "stop": "1h30m", "jump": "45"}},
        {"cmdline": {"append": "quiet", "remove": ["console", 5]}},
        {"checks": {"skip": "log"}},
        {"kernel": {**KERNEL, "release": 6.12}},
        {"cma": "never", "jump": "systemd", "after_failure": "stop"},
    ],
)
def test_short_forms_are_valid_for_both(changes: dict[str, Any]) -> None:
    data = {"name": "x", "kernel": KERNEL} | changes
    assert valid(playbook_schema(), data)
    Playbook.model_validate(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"wave": [1]},
        {"waves": []},
        {"waves": ["half"]},
        {"waves": [0]},
        {"failure_budget": -1},
        {"deadlines": {"return": "10 minutes"}},
        {"deadlines": {"return": 0}},
        {"deadlines": {"return_": 1, "retrun": 1}},
        {"cma": "prefered"},
        {"attempts": 0},
        {"attempts": 2.5},
        {"at_once": 0},
        {"kernel": {}},
        {"kernel": {**KERNEL, "on_controller": {"image": "k"}}},
        {"kernel": {"on_host": {"image": "/k", "image_sha256": "abc"}}},
    ],
)
def test_mistakes_are_mistakes_for_both(changes: dict[str, Any]) -> None:
    data = {"name": "x", "kernel": KERNEL} | changes
    assert not valid(playbook_schema(), data)
    with pytest.raises(ValueError):
        Playbook.model_validate(data)


def test_a_variable_may_stand_for_any_scalar() -> None:
    data = {
        "name": "${n}",
        "attempts": "${n}",
        "cma": "${n}",
        "even_if_current": "${n}",
        "waves": ["${n}", "100%"],
        "deadlines": {"load": "${n}"},
        "kernel": {"on_controller": {"image": "${n}", "image_sha256": "${n}"}},
    }
    jsonschema.validate(data, playbook_schema())


@pytest.mark.parametrize(
    ("hosts", "good"),
    [
        ({"a": None}, True),
        ({"a": {"address": "h", "port": 22, "labels": {"v": 6.10, "ok": True}}}, True),
        ({"a": {"probe": {"kind": "http", "port": 80}}}, True),
        ({"a": {"adress": "h"}}, False),
        ({"a": {"port": 0}}, False),
        ({"a b": {}}, False),
        ({}, False),
    ],
)
def test_inventories(hosts: dict[str, Any], good: bool) -> None:
    for groups in (None, {"g": None, "h": {"hosts": list(hosts), "user": "x", "children": ["g"]}}):
        data = {"hosts": hosts, "groups": groups, "defaults": None, "variables": None}
        assert valid(inventory_schema(), data) is good
        if good:
            InventoryFile.model_validate(data)
        else:
            with pytest.raises(ValueError):
                InventoryFile.model_validate(data)


def test_every_key_is_described() -> None:
    for schema in (playbook_schema(), inventory_schema()):
        for name, part in {"": schema, **schema["$defs"]}.items():
            for key, value in part.get("properties", {}).items():
                references = [schema["$defs"][ref.rsplit("/", 1)[1]] for ref in _references(value)]
                described = [value, *references]
                assert any("description" in one for one in described), f"{name}.{key}"


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    if not isinstance(value, dict):
        return []
    return [value["$ref"]] if "$ref" in value else [f for item in value.values() for f in _references(item)]
