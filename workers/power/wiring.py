"""Makes the driver that a host's inventory names."""

from __future__ import annotations

from orchestrator.domain.inventory import Host
from orchestrator.domain.power import CommandPower, QmpPower
from workers.power.base import PowerDriver
from workers.power.command import CommandDriver
from workers.power.qmp import QmpDriver


def power_driver(host: Host) -> PowerDriver | None:
    """The host's power control, or None where the inventory names none. Connects to nothing yet."""
    match host.power:
        case None:
            return None
        case QmpPower() as power:
            return QmpDriver(host.name, power)
        case CommandPower() as power:
            return CommandDriver(host.name, power)
