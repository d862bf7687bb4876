"""JSON Schema of inventory and playbook files, for editors (yaml-language-server and others)."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.inventory import InventoryFile
from orchestrator.domain.playbook import Playbook

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = {"type": "string", "pattern": r"\$\{.+\}"}


def playbook_schema() -> dict[str, Any]:
    """The schema of a playbook; `${name}` may stand for any scalar."""
    schema = _with_variables(_closed(Playbook.model_json_schema()))
    return {"$schema": _DIALECT, **schema, "title": "kexec-fleet playbook"}


def inventory_schema() -> dict[str, Any]:
    """The schema of an inventory."""
    schema = _closed(InventoryFile.model_json_schema())
    return {"$schema": _DIALECT, **schema, "title": "kexec-fleet inventory"}


def _closed(schema: Any) -> Any:
    """`schema` with nothing allowed beside a pattern's names, as pydantic means it and does not write."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if "patternProperties" in schema else closed


def _with_variables(schema: Any) -> Any:
    """`schema` with a `${name}` allowed wherever a scalar is wanted that such a text does not satisfy."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    constrained = (
        schema.get("type") in ("integer", "number", "boolean") or "enum" in schema or "pattern" in schema
    )
    if constrained:
        texts = {key: schema[key] for key in ("default", "description", "title") if key in schema}
        bare = {key: value for key, value in schema.items() if key not in texts}
        return {**texts, "anyOf": [bare, _VARIABLE]}
    return {
        key: value if key in ("default", "required") else _with_variables(value)
        for key, value in schema.items()
    }
