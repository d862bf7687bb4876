"""The real agent bundle on a make-believe host: a directory as its root, and a kernel that takes no kexec
call.

No test that runs on this machine may reach its kernel's kexec: the entry below is the only one that tests
start over SSH, and its Kernel raises for every call.
"""

from __future__ import annotations

from pathlib import Path

from workers.agentbundle import AgentBundle, render

_ENTRY = """
import errno, os
from workers.hostagent.environment import Environment
from workers.hostagent.kexec import Kernel
from workers.hostagent.main import serve

class NoKexec(Kernel):
    def __init__(self):
        pass
    def kexec_file_load(self, kernel_fd, initrd_fd, cmdline, flags):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    def reboot_kexec(self):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    def sync(self):
        pass

serve(Environment(NoKexec(), root={root!r}), AGENT)
"""

BOOT_ID = "11111111-2222-3333-4444-555555555555"


def bundle_for(root: Path) -> AgentBundle:
    """The agent for a host that lives under `root`, with BOOT_ID as its boot."""
    random = root / "proc/sys/kernel/random"
    random.mkdir(parents=True)
    (random / "boot_id").write_text(BOOT_ID + "\n")
    (root / "sys/kernel").mkdir(parents=True)
    (root / "sys/kernel/kexec_loaded").write_text("0\n")
    return render(_ENTRY.format(root=str(root)))
