"""What a forked process gives up before it runs code from outside: memory, capabilities, files, system calls.

Two levels confine. `namespaces` is a private view of the machine (own processes, network, shared memory, and a root
folder with only the libraries), plus Landlock where the kernel has it, plus a filter of system calls. `landlock` is
Landlock and the filter alone. `none` keeps only the resource limits and is for those who ask for it.
"""

import errno
import os
import resource
import stat
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from score_cli.verification.forkserver import Limits, fork, lower_limit
from score_cli.verification.programs.system_calls import FilterTemplate, call, filter_supported

NAMESPACES = "namespaces+landlock+seccomp"
NAMESPACES_WITHOUT_LANDLOCK = "namespaces+seccomp"
LANDLOCK = "landlock+seccomp"
NONE = "none"
LEVELS = (NAMESPACES, NAMESPACES_WITHOUT_LANDLOCK, LANDLOCK)

_MEGABYTE = 1024 * 1024
_FILE_BYTES = 16 * _MEGABYTE
_STACK_BYTES = 64 * _MEGABYTE
_OPEN_FILES = 256

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION_3 = 0x20080522


class Confinement(Limits):
    """What the fork server of programs does to itself and to each child, prepared once so that a fork is cheap."""

    def __init__(self, *, level: str, memory_mb: int, cpu_seconds: int, unlimited: str) -> None:
        """Enter nothing yet.

        Args:
            level: one of `LEVELS`, or `NONE`.
            memory_mb: address space of one child.
            cpu_seconds: processor time of one child.
            unlimited: the entry whose children serve many jobs, and so without a limit on their processor time.
        """
        super().__init__(memory_mb=memory_mb)
        self._level = level
        self._cpu_seconds = cpu_seconds
        self._unlimited = unlimited
        self._private = level not in (LANDLOCK, NONE)
        self._rules: int | None = None
        self._filter: FilterTemplate | None = None

    def enter(self) -> None:
        """Leave the machine's namespaces; the server is the first process of the new ones."""
        if self._private:
            enter_namespaces()

    def prepare(self) -> None:
        """Build the root folder and the rules in the server, and prove that they hold.

        Raises:
            OSError: the level is not available on this machine, or something forbidden succeeded.
        """
        if self._private:
            build_root()
        _forget()
        if self._level == NONE:
            return
        if not filter_supported():
            raise OSError(errno.ENOSYS, "no system call filter for this architecture")
        if self._level != NAMESPACES_WITHOUT_LANDLOCK:
            if not landlock_version():
                raise OSError(errno.ENOSYS, "no Landlock in this kernel")
            readable = [*library_paths(), *DEVICES]
            writable = [SCRATCH, "/dev/null"] if self._private else ["/dev/null"]
            self._rules = landlock_rules(readable=readable, writable=writable)
        truncation = self._private or landlock_governs_truncation()
        self._filter = FilterTemplate(scratch=self._private, truncation=truncation)
        self._prove()

    def confine(self, server: int, entry: str) -> None:
        """Give up everything, in the child.

        Raises:
            OSError: a step failed; the process must end without running anything.
        """
        super().confine(server, entry)
        lasting = entry == self._unlimited
        if not lasting:
            # A second apart: at the first the kernel says that time is up, at the second it kills without a reason.
            lower_limit(resource.RLIMIT_CPU, self._cpu_seconds + 1)
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (min(self._cpu_seconds, hard), hard))
        lower_limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
        lower_limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
        _raise_stack()
        if self._private and not lasting:
            # Here and not in the server: the folder of the last program may have been replaced.
            os.chdir(SCRATCH)
        if self._filter is None:
            return
        call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._rules is not None:
            restrict_files(self._rules)
            os.close(self._rules)
        self._filter.install()

    def tidy(self) -> None:
        """Empty the scratch folder where a program left something in it."""
        if self._private:
            renew_scratch()

    def _prove(self) -> None:
        """Try, in a confined process, what must be impossible.

        Raises:
            OSError: something forbidden succeeded.
        """
        reader, writer = os.pipe()
        server = os.getpid()

        def attempt() -> int:
            try:
                self.confine(server, "")
                _try_what_is_forbidden()
            except OSError as error:
                os.write(writer, str(error).encode()[:512])
            return 0

        child = fork(attempt)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            problem = file.read().decode()
        _, status = os.waitpid(child, 0)
        if problem or status:
            raise OSError(problem or f"a confined process ended with wait status {status}")


def _forget() -> None:
    """Point input and output nowhere, and forget the environment and where this package was imported from."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    os.environ.clear()
    os.chdir("/")
    sys.argv[:] = [""]
    sys.path[:] = [path for path in sys.path if path.startswith((sys.base_prefix, sys.base_exec_prefix))]


def _raise_stack() -> None:
    # Deep recursion through C code is legitimate, and 8 MB of stack is soon used up by it.
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES if hard < 0 else min(_STACK_BYTES, hard), hard))


def _try_what_is_forbidden() -> None:
    for name, attempt in _FORBIDDEN.items():
        try:
            attempt()
        except OSError:
            continue
        raise OSError(errno.EPERM, f"a confined process could {name}")


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


# A private view of the machine, entered once by a server; the programs it forks share it, one after another. Only the
# scratch folder can be written, and it is made anew whenever a program left something there.

SCRATCH_OPTIONS = b"size=16m,nr_inodes=2048,mode=1777"

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x00020000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_READ_ONLY_NO_SUID = (3).to_bytes(8, "little") + bytes(24)
_NOBODY = 65534

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def library_paths() -> list[str]:
    """What a program may read: the standard library, the shared libraries it loads, time zones."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths |= {f"{prefix}/{folder}" for prefix in prefixes for folder in ("lib", "lib64")}
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
    files = ("/etc/ld.so.cache", "/etc/localtime")
    # A folder under another of the list is reached through it; it would only be mounted twice.
    kept: list[str] = []
    for path in sorted(os.path.realpath(path) for path in (*paths, *system, *files)):
        if Path(path).exists() and not any(path.startswith(f"{parent}/") for parent in kept) and path not in kept:
            kept.append(path)
    return kept


def scratch_folder(libraries: list[str]) -> str:
    """The one folder that programs may write: /tmp, unless the interpreter itself lies below it."""
    return "/scratch" if any(path.startswith("/tmp/") for path in libraries) else "/tmp"


SCRATCH = scratch_folder(library_paths())


def _aliases(paths: list[str]) -> dict[str, str]:
    """Links by which the library folders are also known, such as /lib for /usr/lib, and where they lead."""
    names = ("/lib", "/lib64", sys.base_prefix, sys.base_exec_prefix)
    found = {name: os.path.realpath(name) for name in names if os.path.realpath(name) != name}
    return {name: target for name, target in found.items() if any(path.startswith(target) for path in paths)}


def enter_namespaces() -> None:
    """Leave the machine's namespaces; the next process forked is the first of the new process namespace.

    Raises:
        OSError: the kernel or its policy allows none.
    """
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    try:
        call("unshare", flags | _CLONE_NEWUSER)
    except OSError:
        # Where user namespaces are closed, root can still open the others.
        call("unshare", flags)
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {user} 1"), ("gid_map", f"{_NOBODY} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def build_root() -> None:
    """Replace the root folder by a small read-only one: libraries, four devices, a scratch folder. No /proc.

    Raises:
        OSError: mounting is not allowed here.
    """
    libraries = library_paths()
    aliases = _aliases(libraries)
    call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    # Any folder serves to build in: nothing under /proc is needed any more, and it is there on every machine.
    building = "/proc"
    call("mount", b"root", building.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"size=1m,mode=755")
    for source in (*libraries, *DEVICES):
        _show(source, building + source)
    for name, target in aliases.items():
        link = Path(building + name)
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    Path(building + SCRATCH).mkdir(parents=True, exist_ok=True)
    os.chdir(building)
    # The old root ends up under the new one and is then taken away.
    call("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    call("mount", b"none", b"/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, None)
    mount_scratch()


def _show(source: str, target: str) -> None:
    """Make a file or folder of the machine visible below the new root, to read."""
    if not Path(source).exists():
        return
    place = Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    call("mount", source.encode(), target.encode(), None, _MS_BIND | _MS_REC, None)
    if source in DEVICES:
        return
    arguments = (_MOUNT_ATTR_READ_ONLY_NO_SUID, len(_MOUNT_ATTR_READ_ONLY_NO_SUID))
    call("mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, *arguments)


def mount_scratch() -> None:
    """Give the next programs an empty scratch folder."""
    call("mount", b"scratch", SCRATCH.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, SCRATCH_OPTIONS)


def renew_scratch() -> None:
    """Empty the scratch folder where a program left something in it."""
    with os.scandir(SCRATCH) as entries:
        if next(entries, None) is None:
            return
    call("umount2", SCRATCH.encode(), _MNT_DETACH)
    mount_scratch()


# Landlock: which files a confined program may open, whoever it runs as. Rights and rule layouts follow
# linux/landlock.h; each version of the interface adds rights to the ones before.

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ_RIGHTS = _EXECUTE | _READ_FILE | _READ_DIR
# Rights known to each interface version: 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_RIGHTS = 0b11  # bind and connect TCP, from version 4
_SCOPES = 0b11  # abstract Unix sockets and signals stay inside, from version 6

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


def landlock_version() -> int:
    """The kernel's Landlock interface version, 0 where there is none."""
    try:
        return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def landlock_governs_truncation() -> bool:
    """Whether a program that may only read a file is also kept from truncating it."""
    return landlock_version() >= 3


def landlock_rules(*, readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of the rules: paths that may be read, and paths where anything goes; all else is refused.

    Paths that do not exist are left out: they name what a machine may have.
    """
    found = landlock_version()
    rights = _RIGHTS_BY_VERSION[min(found, 5)]
    attributes = struct.pack("=Q", rights)
    if found >= 4:
        attributes += struct.pack("=Q", _NETWORK_RIGHTS)
    if found >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = call("landlock_create_ruleset", attributes, len(attributes), 0)
    for paths, allowed in ((readable, _READ_RIGHTS), (writable, rights)):
        for path in paths:
            _allow_path(rules, path, allowed & rights)
    return rules


def _allow_path(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _FILE_RIGHTS
        call("landlock_add_rule", rules, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def restrict_files(rules: int) -> None:
    """Put the calling process under the rules, for good; no_new_privs must be set."""
    call("landlock_restrict_self", rules, 0)
