"""What a lab remembers between commands: its VMs and its target, in one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.domain.errors import LabError
from orchestrator.lab.paths import LabPaths, labs_root, write_atomically
from orchestrator.lab.vm import VmConfig


@dataclass(frozen=True)
class Target:
    image: str
    initrd: str
    release: str
    spec: str  # as the user wrote it, or the release that was chosen


@dataclass(frozen=True)
class LabState:
    target: Target
    vms: tuple[VmConfig, ...]


def read_state(paths: LabPaths) -> LabState | None:
    try:
        data = json.loads(paths.state.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(
            f"{paths.state} cannot be read: {error}",
            hint=f"`kexec-fleet lab down --name {paths.root.name}` clears it away",
        ) from None
    try:
        return LabState(Target(**data["target"]), tuple(VmConfig(**vm) for vm in data["vms"]))
    except (KeyError, TypeError) as error:
        raise LabError(
            f"{paths.state} was written by another version: {error}",
            hint=f"`kexec-fleet lab down --name {paths.root.name}` clears it away",
        ) from None


def write_state(paths: LabPaths, state: LabState) -> None:
    write_atomically(paths.state, json.dumps(asdict(state), indent=1).encode(), mode=0o600)


def ports_taken() -> set[int]:
    """By any lab of this user, its VMs running or not."""
    taken: set[int] = set()
    for file in labs_root().glob("*/lab.json"):
        try:
            vms = json.loads(Path(file).read_text())["vms"]
            taken.update(port for vm in vms for port in (vm["ssh_port"], vm["service_port"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return taken
