"""Landlock: which files a confined program may open, whoever it runs as.

Rights and rule layouts follow linux/landlock.h; each version of the interface adds rights to the ones before.
"""

import os
import stat
import struct
from collections.abc import Iterable

from score_cli.verification.programs.system import call

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


def version() -> int:
    """The kernel's Landlock interface version, 0 where there is none."""
    try:
        return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def governs_truncation() -> bool:
    """Whether a program that may only read a file is also kept from truncating it."""
    return version() >= 3


def ruleset(*, readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of the rules: paths that may be read, and paths where anything goes; all else is refused.

    Paths that do not exist are left out: they name what a machine may have.
    """
    found = version()
    rights = _RIGHTS_BY_VERSION[min(found, 5)]
    attributes = struct.pack("=Q", rights)
    if found >= 4:
        attributes += struct.pack("=Q", _NETWORK_RIGHTS)
    if found >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = call("landlock_create_ruleset", attributes, len(attributes), 0)
    for paths, allowed in ((readable, _READ_RIGHTS), (writable, rights)):
        for path in paths:
            _allow(rules, path, allowed & rights)
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
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


def restrict(rules: int) -> None:
    """Put the calling process under the rules, for good; no_new_privs must be set."""
    call("landlock_restrict_self", rules, 0)
