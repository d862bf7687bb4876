"""What a host and its power control say without a claim: nothing here changes anything."""

from __future__ import annotations

import base64
import glob

from orchestrator.domain.errors import HostRefused, PowerFailed
from orchestrator.domain.facts import HostFacts
from orchestrator.domain.inventory import Host
from orchestrator.domain.playbook import HostImage, Kernel
from workers.agent import AgentClient
from workers.deadline import Deadline
from workers.diagnosis import PowerCheck, WatchdogCheck
from workers.power.base import PowerDriver

POWER_SECONDS = 30.0
"""For power control to say its status; a rollout gives it longer to switch."""

_KERNELS = ("/boot/vmlinuz-{}", "/boot/Image-{}", "/boot/vmlinux-{}")
_INITRDS = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/initrd-{}", "/boot/initrd-{}.img")
"""Where Debian, Fedora and openSUSE keep a kernel and its initrd, by release."""

_WATCHDOG = "/sys/class/watchdog/watchdog0/"  # Documentation/ABI/testing/sysfs-class-watchdog


def check_power(host: Host, driver: PowerDriver | None) -> PowerCheck:
    """Ask power control for its status, and change nothing."""
    if driver is None or host.power is None:
        return PowerCheck()
    kind = host.power.kind
    try:
        state = driver.status(Deadline.after(POWER_SECONDS))
    except PowerFailed as error:
        return PowerCheck(kind=kind, works=False, text=error.message, hint=error.hint)
    return PowerCheck(kind=kind, works=True, text=f"{state.power}: {state.text}")


def own_kernel(agent: AgentClient, host: str, facts: HostFacts, deadline: Deadline) -> Kernel:
    """The running kernel by its files under /boot. Raises HostRefused where they are not there."""
    release = facts.release or ""
    found = []
    for what, patterns in (("kernel", _KERNELS), ("initrd", _INITRDS)):
        names = [pattern.format(glob.escape(release)) for pattern in patterns]
        paths = [match.path for name in names for match in agent.resolve(name, deadline)]
        if not release or not paths:
            raise HostRefused(
                host,
                "find the kernel",
                f"the {what} that this host runs ({release or 'release unknown'}) is not under /boot",
                hint="name a kernel: --playbook FILE, or --image FILE --initrd FILE on this machine",
                code="no_such_image",
            )
        found.append(paths[0])
    return Kernel(on_host=HostImage(image=found[0], initrd=found[1]), release=release)


def watchdog_of(agent: AgentClient, deadline: Deadline) -> WatchdogCheck:
    """What sysfs tells of the first watchdog; it is not opened: that would start it."""
    try:
        if not agent.resolve(_WATCHDOG + "uevent", deadline):
            return WatchdogCheck(present=False)
        identity = _line_of(agent, _WATCHDOG + "identity", deadline)
        stays = _line_of(agent, _WATCHDOG + "nowayout", deadline)
    except HostRefused:
        return WatchdogCheck()
    return WatchdogCheck(
        present=True,
        identity=identity,
        can_be_stopped={"0": True, "1": False}.get(stays),
    )


def _line_of(agent: AgentClient, path: str, deadline: Deadline) -> str:
    """A sysfs file's text; empty where the kernel has none (CONFIG_WATCHDOG_SYSFS)."""
    if not agent.resolve(path, deadline):
        return ""
    return base64.b64decode(agent.digest(path, deadline).head).decode("utf-8", "replace").strip()
