"""What a forked process gives up before it runs code from outside: memory, capabilities, files, system calls.

Two levels confine: `namespaces` (a private view of the machine, plus Landlock where the kernel has it, plus seccomp)
and `landlock` (Landlock plus seccomp). `none` keeps only the resource limits and is for those who ask for it.
"""

import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

from score_cli.verification.programs import landlock, namespaces, seccomp
from score_cli.verification.programs.system import call

NAMESPACES = "namespaces+landlock+seccomp"
NAMESPACES_WITHOUT_LANDLOCK = "namespaces+seccomp"
LANDLOCK = "landlock+seccomp"
NONE = "none"
LEVELS = (NAMESPACES, NAMESPACES_WITHOUT_LANDLOCK, LANDLOCK)

_MEGABYTE = 1024 * 1024
_FILE_BYTES = 16 * _MEGABYTE
_STACK_BYTES = 64 * _MEGABYTE
_OPEN_FILES = 256

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522


class Confinement:
    """The limits of one keeper's programs, prepared once so that each program costs only a few system calls."""

    def __init__(self, *, level: str, memory_mb: int, cpu_seconds: int) -> None:
        """Enter nothing yet: `level` says what `confine` applies, and must be one this machine allows."""
        self.level = level
        self.memory_bytes = memory_mb * _MEGABYTE
        self.cpu_seconds = cpu_seconds
        self._rules: int | None = None
        self._filter: seccomp.FilterTemplate | None = None

    def prepare(self) -> None:
        """Build the rules in the keeper, once it stands in its namespaces.

        Raises:
            OSError: the level is not available on this machine.
        """
        if self.level == NONE:
            return
        if not seccomp.supported():
            raise OSError(errno.ENOSYS, "no system call filter for this architecture")
        scratch = self.level != LANDLOCK
        if self.level != NAMESPACES_WITHOUT_LANDLOCK:
            if not landlock.version():
                raise OSError(errno.ENOSYS, "no Landlock in this kernel")
            readable = [*namespaces.library_paths(), *namespaces.DEVICES]
            writable = [namespaces.SCRATCH, "/dev/null"] if scratch else ["/dev/null"]
            self._rules = landlock.ruleset(readable=readable, writable=writable)
        truncation = scratch or landlock.governs_truncation()
        self._filter = seccomp.FilterTemplate(scratch=scratch, truncation=truncation)

    def confine(self, keeper: int | None, *, lasting: bool = False) -> None:
        """Give up everything, in the forked process.

        Args:
            keeper: the process whose death must end this one.
            lasting: leave the processor time unlimited, for a process that serves many jobs.

        Raises:
            OSError: a step failed; the process must end without running anything.
        """
        for kind, limit in (
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_CPU, resource.RLIM_INFINITY if lasting else self.cpu_seconds),
            (resource.RLIMIT_FSIZE, _FILE_BYTES),
            (resource.RLIMIT_NOFILE, _OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            _lower(kind, limit)
        _raise_stack()
        if self._filter is None:
            if sys.platform == "linux":
                die_with(keeper)
            return
        call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        die_with(keeper)
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._rules is not None:
            landlock.restrict(self._rules)
            os.close(self._rules)
        self._filter.install()

    def prove(self) -> None:
        """Try, in a confined process, what must be impossible.

        Raises:
            OSError: something forbidden succeeded.
        """
        if self.level == NONE:
            return
        for name, attempt in _FORBIDDEN.items():
            try:
                attempt()
            except OSError:
                continue
            raise OSError(errno.EPERM, f"a confined process could {name}")


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        limit = hard if limit == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _raise_stack() -> None:
    # Deep recursion through C code is legitimate, and 8 MB of stack is soon used up by it.
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES if hard < 0 else min(_STACK_BYTES, hard), hard))


def die_with(keeper: int | None) -> None:
    """Ask the kernel to kill this process when its parent dies; `keeper` is the parent, where it can be seen.

    Raises:
        OSError: the parent is gone already.
    """
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if keeper is not None and os.getppid() != keeper:
        raise OSError(errno.ESRCH, "the parent is gone")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _connect() -> None:
    # Imported here: the confined processes themselves have no use for it.
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


_FORBIDDEN: dict[str, Callable[[], None]] = {
    "start a process": _fork,
    "open a socket": _connect,
    "read the machine's users": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "write outside of its folder": lambda: os.close(os.open("/score-sandbox-proof", os.O_WRONLY | os.O_CREAT)),
    "signal its parent": lambda: os.kill(os.getppid() or 1, 0),
}
