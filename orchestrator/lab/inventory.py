"""The inventory file that every other command takes: text only, in one fixed layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class InventoryHost:
    name: str
    port: int
    service_port: int
    host_key: str
    kernel: str  # release it was made with
    role: str
    monitor: Path  # QEMU's QMP socket: the VM's reset button
    console: Path


@dataclass(frozen=True)
class InventoryTarget:
    image: Path
    initrd: Path
    release: str


def scalar(value: object) -> str:
    """Plain where YAML reads the same text back, else a double-quoted string (JSON's are YAML's too)."""
    text = str(value)
    try:
        plain = yaml.safe_load(f"[{{a: {text}}}]") == [{"a": text}]
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text)


def field_text(value: object) -> str:
    """A scalar where `${...}` would stand for a field of the host."""
    return scalar(str(value).replace("${", "$${"))


def inventory_text(
    lab: str, key: Path, target: InventoryTarget, hosts: Sequence[InventoryHost], program: str = "kexec-fleet"
) -> str:
    """The file's text. `program`: the kexec-fleet command by its full path, for playbooks that call it."""
    names = ", ".join(scalar(host.name) for host in hosts)
    lines = [
        "# written by `kexec-fleet lab up`",
        "variables:                     # usable in playbooks as ${name}",
        f"  lab_target_image: {scalar(target.image)}",
        f"  lab_target_initrd: {scalar(target.initrd)}",
        f"  lab_target_release: {scalar(target.release)}",
        f"  lab_name: {scalar(lab)}",
        f"  lab_program: {scalar(program)}",
        f"defaults: {{user: root, key: {scalar(key)}, sudo: false}}",
        "groups:",
        f"  lab: {{hosts: [{names}]}}",
        "hosts:",
    ]
    for host in hosts:
        lines += [
            f"  {scalar(host.name)}:",
            "    address: 127.0.0.1",
            f"    port: {host.port}",
            f"    host_key: {scalar(host.host_key)}",
            f"    labels: {{kernel: {scalar(host.kernel)}, role: {scalar(host.role)}, lab: {scalar(lab)}}}",
            f"    probe: {{kind: banner, port: {host.service_port}}}"
            "   # a service whose answer proves that the guest is up",
            f"    power: {{kind: qmp, socket: {field_text(host.monitor)}}}   # its reset button",
            f"    console: {{file: {field_text(host.console)}}}",
        ]
    return "\n".join(lines) + "\n"
