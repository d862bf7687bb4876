"""The one seam between the agent and the host it runs on: its paths and its system calls.

main builds the real one. A test builds another one (a directory as `root`, a Kernel that records its calls)
and hands it to the same code. No environment variable, file or option of a production host leads here.
"""

import os
from typing import Optional

from workers.hostagent.files import read_int, read_line
from workers.hostagent.kexec import Kernel


class Environment(object):
    """Paths below `root` ("" on a real host), and the system calls."""

    def __init__(self, kernel: Kernel, root: str = "") -> None:
        self.kernel = kernel
        self.proc = root + "/proc"
        self.sys = root + "/sys"
        self.boot = root + "/boot"
        self.efi = root + "/efi"
        self.etc = root + "/etc"
        self.dev_kmsg = root + "/dev/kmsg"
        self.console = root + "/dev/console"
        self.pmsg = root + "/dev/pmsg0"
        self.dev_watchdog = root + "/dev/watchdog"
        # Where systemd-pstore.service moves what pstore kept (pstore.conf(5)).
        self.systemd_pstore = root + "/var/lib/systemd/pstore"
        self.run_dir = root + "/run/kexec-fleet"
        self.lib_dir = root + "/var/lib/kexec-fleet"
        self.run_systemd = root + "/run/systemd"
        # systemd-shutdown(8) runs every executable in here, and only in here, right before its reboot(2).
        self.hook_dir = root + "/usr/lib/systemd/system-shutdown"
        # Our own processes are real ones even where everything else is a test's directory.
        self.pids = "/proc"
        self.systemctl = "systemctl"
        self.busctl = "busctl"
        self.bootctl = "bootctl"
        self.systemd_inhibit = "systemd-inhibit"

    def boot_id(self) -> str:
        return read_line(self.proc + "/sys/kernel/random/boot_id") or ""

    def kexec_loaded(self) -> Optional[int]:
        """1 where an image is loaded, 0 where not, None where the kernel has no kexec."""
        return read_int(self.sys + "/kernel/kexec_loaded")

    def init(self) -> str:
        """The command name of process 1: "systemd" on a systemd host."""
        return read_line(self.proc + "/1/comm") or ""

    def has_systemd(self) -> bool:
        # sd_booted(3): this directory exists exactly where systemd is the init.
        return os.path.isdir(self.run_systemd + "/system")
