"""What a rollout is to do: values that a playbook holds after validation. Durations are seconds, sizes bytes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from orchestrator.domain.inventory import Value


class CmaPolicy(StrEnum):
    """Whether the next image is to lie in CMA memory."""

    PREFER = "prefer"  # CMA where kernel and area allow it, NO_CMA after a failure
    REQUIRE = "require"  # CMA or fail: no fallback
    NEVER = "never"  # KEXEC_FILE_NO_CMA from the first attempt on


class JumpMethod(StrEnum):
    """How the host leaves its old kernel."""

    DIRECT = "direct"  # sync, then reboot(2): no service is stopped
    SYSTEMD = "systemd"  # systemctl kexec: orderly stop of services, then the jump


class AfterFailure(StrEnum):
    """What follows when an attempt failed and attempts are left."""

    RETRY = "retry"  # the next rung of the ladder
    STOP = "stop"  # the host is failed at once


class ControllerImage(Value):
    """An image and initrd that lie on the controller and are staged to the host."""

    image: str
    initrd: str | None = None
    image_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    initrd_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class HostImage(Value):
    """An image and initrd that lie on the host already: a path, or a glob that matches exactly one file."""

    image: str
    initrd: str | None = None
    image_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    initrd_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Kernel(Value):
    """The target kernel: exactly one of the two places."""

    on_controller: ControllerImage | None = None
    on_host: HostImage | None = None
    release: str | None = None  # what uname -r must say afterwards; None: what the image's header says


class CommandLine(Value):
    """How the new kernel's command line is made; our own options go before ` -- `."""

    reuse: bool = True
    append: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()  # parameter names (`quiet`, `console`) or whole words (`console=ttyS0`)


class Deadlines(Value):
    """Seconds per phase; each wait of a rollout is one of these."""

    connect: float = Field(default=60, gt=0)
    facts: float = Field(default=60, gt=0)
    stage: float = Field(default=900, gt=0)
    load: float = Field(default=180, gt=0)
    jump: float = Field(default=60, gt=0)  # armed and told to go
    stop: float = Field(default=300, gt=0)  # systemd jump: the orderly stop
    return_: float = Field(default=600, gt=0, alias="return")  # dark until the host answers again
    verify: float = Field(default=180, gt=0)

    model_config = {**Value.model_config, "populate_by_name": True}


class FailureBudget(Value):
    """How many hosts of the whole fleet may fail, be unreachable or be lost before no new one starts."""

    count: int | None = Field(default=None, ge=0)
    percent: float | None = Field(default=None, ge=0, le=100)


class WaveSize(Value):
    """Up to how much of the fleet is done when the wave ends: a count or a percentage, cumulative."""

    count: int | None = Field(default=None, ge=1)
    percent: float | None = Field(default=None, gt=0, le=100)


class Checks(Value):
    """Which checks run after the boot and what they tolerate."""

    skip: tuple[str, ...] = ()
    log_ignore: tuple[str, ...] = ()  # regular expressions for kernel log lines that are no failure
    ssh_sessions: int = Field(default=2, ge=1, le=10)


class Playbook(Value):
    """One validated playbook."""

    name: str
    hosts: str = "all"  # selector
    kernel: Kernel
    cmdline: CommandLine = CommandLine()
    cma: CmaPolicy = CmaPolicy.PREFER
    attempts: int = Field(default=3, ge=1, le=10)
    after_failure: AfterFailure = AfterFailure.RETRY
    jump: JumpMethod = JumpMethod.DIRECT
    waves: tuple[WaveSize, ...] = (WaveSize(percent=100),)
    at_once: int = Field(default=10, ge=1)
    failure_budget: FailureBudget = FailureBudget(count=0)
    deadlines: Deadlines = Deadlines()
    checks: Checks = Checks()
    even_if_current: bool = False  # jump also where the target already runs
