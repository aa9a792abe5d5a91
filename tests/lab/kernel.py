"""The system calls that Python 3.11 has no name for: namespaces and mounts (Linux)."""

import ctypes
import os
from pathlib import Path

# <linux/sched.h>
NEW_MOUNT = 0x00020000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_PID = 0x20000000
NEW_NET = 0x40000000
MACHINE = NEW_MOUNT | NEW_UTS | NEW_IPC | NEW_NET
"""All that tells a host from another, but for its processes (`NEW_PID`)."""

# <linux/mount.h>
BIND = 0x1000
RECURSIVE = 0x4000
PRIVATE = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """New namespaces for this process; `NEW_PID` for its next child."""
    _check(_libc.unshare(flags), "unshare")


def join(pid: int, flags: int) -> None:
    """The namespaces of another process; `NEW_PID` for children of this one."""
    fd = os.pidfd_open(pid)
    try:
        _check(_libc.setns(fd, flags), f"setns to {pid}")
    finally:
        os.close(fd)


def mount(source: str | Path, target: str | Path, kind: str | None = None, flags: int = 0) -> None:
    """mount(2); `kind` is the file system's."""
    kind_ = kind.encode() if kind else None
    _check(
        _libc.mount(str(source).encode(), str(target).encode(), kind_, flags, None),
        f"mount {target}",
    )
