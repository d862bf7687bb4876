"""The playbook and the inventory that one run of a scenario is driven with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.lab.scenarios.context import TargetFiles
from orchestrator.lab.scenarios.spec import Power

DEADLINES = {
    "connect": "3m",
    "facts": "3m",
    "stage": "10m",
    "load": "5m",
    "jump": "2m",
    "return": "6m",
    "verify": "10m",
}
"""Generous: without KVM every instruction is emulated. `return` is what a silent death costs."""

BROKEN = [sys.executable, "-c", "import sys; sys.exit('the power switch of this scenario is broken')"]
HANGING = [sys.executable, "-c", "import time; time.sleep(86400)"]
HANGING_TIMEOUT = 15


def write_playbook(
    path: Path, name: str, target: TargetFiles, policy: Mapping[str, Any], words: Sequence[str]
) -> None:
    """The policy in the frame that all scenarios share; `words` go onto the new kernel's command line."""
    data: dict[str, Any] = {
        "name": name,
        "hosts": "all",
        "kernel": {"on_controller": {"image": str(target.image), "initrd": str(target.initrd)}},
        "even_if_current": True,
        **{key: value for key, value in plain(policy).items() if key not in ("deadlines", "cmdline")},
        "deadlines": {**DEADLINES, **plain(policy.get("deadlines") or {})},
    }
    cmdline = dict(plain(policy.get("cmdline") or {}))
    appended = cmdline.get("append") or []
    cmdline["append"] = [*([appended] if isinstance(appended, str) else appended), *words]
    if cmdline["append"] or len(cmdline) > 1:
        data["cmdline"] = cmdline
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def write_inventory(path: Path, lab_inventory: Path, power: Power) -> None:
    """The lab's own inventory with the power control that the scenario wants."""
    data = yaml.safe_load(lab_inventory.read_text(encoding="utf-8"))
    for host in data["hosts"].values():
        if power is Power.NONE:
            host.pop("power", None)
        elif power is not Power.QMP:
            run = BROKEN if power is Power.BROKEN else HANGING
            host["power"] = {"kind": "command", "run": run, "timeout": HANGING_TIMEOUT}
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def plain(value: Any) -> Any:
    """Values as YAML's own types: a loaded number remembers how it was written, which no dumper knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)
