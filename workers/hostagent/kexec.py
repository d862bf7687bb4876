"""The kernel's kexec calls through ctypes, and which of their flags this kernel knows."""

import ctypes
import errno
import fcntl
import os
import platform
import time
from typing import Dict, Optional, Tuple

# kexec_file_load(2). x86_64: arch/x86/entry/syscalls/syscall_64.tbl; the others share asm-generic's 294.
_SYSCALL = {"x86_64": 320, "aarch64": 294}

# include/uapi/linux/kexec.h
UNLOAD = 0x1
ON_CRASH = 0x2
NO_INITRAMFS = 0x4
DEBUG = 0x8  # Linux 6.7
NO_CMA = 0x10  # Linux 6.17

# include/uapi/linux/reboot.h, LINUX_REBOOT_CMD_KEXEC
REBOOT_CMD_KEXEC = 0x45584543


class Kernel(object):
    """The calls that a test replaces. Every method raises OSError with the kernel's errno."""

    def __init__(self) -> None:
        # CDLL(None) is the libc that Python itself runs on: glibc or musl.
        self._libc = ctypes.CDLL(None, use_errno=True)
        # An index, not an attribute: each gives its own function object, so argument types cannot collide.
        self._syscall = self._libc["syscall"]
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = [
            ctypes.c_long,  # number
            ctypes.c_long,  # kernel_fd
            ctypes.c_long,  # initrd_fd
            ctypes.c_ulong,  # cmdline_len, with the NUL
            ctypes.c_char_p,  # cmdline
            ctypes.c_ulong,  # flags
        ]
        self._reboot = self._libc["reboot"]
        self._reboot.restype = ctypes.c_int
        self._reboot.argtypes = [ctypes.c_int]

    def kexec_file_load(self, kernel_fd: int, initrd_fd: int, cmdline: Optional[bytes], flags: int) -> None:
        """One raw kexec_file_load(2): kexec-tools would fall back to the old kexec_load silently."""
        number = _SYSCALL.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, "no kexec_file_load number known for " + platform.machine())
        length = 0 if cmdline is None else len(cmdline) + 1  # ctypes passes a NUL-terminated copy
        ctypes.set_errno(0)
        if self._syscall(number, kernel_fd, initrd_fd, length, cmdline, flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def reboot_kexec(self) -> None:
        """reboot(2) into the loaded image. Returns only by raising."""
        ctypes.set_errno(0)
        self._reboot(REBOOT_CMD_KEXEC)
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

    def sync(self) -> None:
        os.sync()

    def open_device(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def ioctl(self, descriptor: int, request: int, data: bytes) -> bytes:
        """ioctl(2) with a structure of this size; -> what the kernel made of it."""
        return bytes(fcntl.ioctl(descriptor, request, data))

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def free_bytes(self, path: str) -> int:
        """Bytes that may still be written to the file system that holds `path`."""
        space = os.statvfs(path)
        return space.f_bavail * space.f_frsize


def unload(kernel: Kernel, seconds: float = 30.0) -> Optional[OSError]:
    """Unloads whatever is loaded; harmless where nothing is. None when done, else why not.

    EBUSY means that somebody is inside a load at this moment (kexec_trylock, kernel/kexec_internal.h): waits
    for it.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            kernel.kexec_file_load(-1, -1, None, UNLOAD)
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= end:
                return error
        time.sleep(0.1)


def probe_flag(kernel: Kernel, flag: int) -> Tuple[Optional[bool], int]:
    """(does this kernel know the flag, errno of the probe): EBADF says yes, EINVAL no, anything else nothing.

    Harmless: with both descriptors -1 the call ends before anything is read (run on Linux 6.12, 6.17 and
    7.2).
    """
    try:
        kernel.kexec_file_load(-1, -1, None, flag | NO_INITRAMFS)
    except OSError as error:
        return {errno.EBADF: True, errno.EINVAL: False}.get(error.errno or 0), error.errno or 0
    return None, 0


def probe_flags(
    kernel: Kernel, load_limit: Optional[int]
) -> Tuple[Dict[str, Optional[bool]], Dict[str, int]]:
    """({"no_cma", "debug"} -> known or not, the same -> errno).

    Where kernel.kexec_load_limit_reboot is set, every call counts against it, a probe too
    (kexec_load_permitted, kernel/kexec_core.c): nothing is probed then.
    """
    known: Dict[str, Optional[bool]] = {}
    errnos: Dict[str, int] = {}
    for name, flag in (("no_cma", NO_CMA), ("debug", DEBUG)):
        if load_limit is None or load_limit < 0:
            known[name], errnos[name] = probe_flag(kernel, flag)
        else:
            known[name] = None
    return known, errnos
