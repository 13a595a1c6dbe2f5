"""A private view of the machine: own processes, network, shared memory, and a root folder with only the libraries.

Entered once by a keeper; the programs it forks share the view, one after another. Only the scratch folder can be
written, and it is made anew whenever a program left something there.
"""

import os
import sys
import sysconfig
from pathlib import Path

from score_cli.verification.programs.system import call

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


def enter() -> None:
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
