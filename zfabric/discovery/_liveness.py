"""How the writer of a registry file shows that it lives, even when it is killed.

With flock the kernel lets go of the lock the moment the last descriptor closes, however its owner dies.
Without it (Windows) the process id in the file has to do; it may have been given to another process since.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import ctypes
else:
    import fcntl

__all__ = ["has_locks", "hold", "is_held", "pid_exists"]

_PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
_STILL_ACTIVE = 259


def has_locks() -> bool:
    """Whether this system can lock a file for the life of a descriptor."""
    return sys.platform != "win32"


def hold(descriptor: int) -> None:
    """Claim the open file for as long as the descriptor stays open."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(descriptor: int) -> bool:
    """Whether the writer of the file still lives. Shared, so that two readers do not take each other for it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def pid_exists(pid: int) -> bool:
    """Whether a process with this id runs now."""
    if sys.platform == "win32":
        # os.kill(pid, 0) would send Ctrl-C there.
        kernel = ctypes.windll.kernel32
        process = kernel.OpenProcess(_PROCESS_QUERY_LIMITED_INFORMATION, False, pid)
        if not process:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(process, ctypes.byref(code))
        kernel.CloseHandle(process)
        return code.value == _STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
