"""Linux system calls that Python's standard library does not offer, by ctypes."""

import ctypes
import errno
import os
import platform
import sys

_NUMBERS = {
    "x86_64": dict(capset=126, mount=165, pivot_root=155, prctl=157, seccomp=317, umount2=166, unshare=272),  # noqa: C408
    "aarch64": dict(capset=91, mount=40, pivot_root=41, prctl=167, seccomp=277, umount2=39, unshare=97),  # noqa: C408
}
# These were added after the numbering of the architectures became one.
_COMMON = {
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "mount_setattr": 442,
}

_MACHINE_NUMBERS = _NUMBERS.get(platform.machine(), {}) | _COMMON
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call; integers, byte strings and null pointers may be passed.

    Raises:
        OSError: the call failed, or this machine has no such call.
    """
    if _libc is None or name not in _MACHINE_NUMBERS:
        raise OSError(errno.ENOSYS, f"{name} is not known on {sys.platform} {platform.machine()}")
    # A bare Python int would be passed as a C int, and an address cut to its lower half.
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(_MACHINE_NUMBERS[name]), *converted)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result
