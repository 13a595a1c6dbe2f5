"""The ways a command ends badly, and the exit code of each."""

import difflib
import errno
from collections.abc import Iterable, Sequence

EXIT_JOB_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_ROOM = 3
EXIT_INTERRUPTED = 130
# How the kernel says that a disk, a quota or a limit of a process is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Known words that a message lists at the most.
_LISTED = 12


def guess(word: str, known: Iterable[str]) -> str:
    """`did you mean NAME? ` where an unknown word looks like a known one, to be put before what there is; else ""."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the known one that it looks like, or those that there are."""
    if near := guess(word, known):
        return f": {near.rstrip()}"
    more = f" and {len(known) - _LISTED} others" if len(known) > _LISTED else ""
    shown = difflib.get_close_matches(word, known, n=_LISTED, cutoff=0.0) if more else known
    return f": expected one of {', '.join(shown)}{more}"


class UserError(Exception):
    """Something the user can put right: one line saying what is wrong, what was expected, what to do."""

    exit_code = EXIT_BAD_INPUT


class JobError(Exception):
    """The job itself failed, on input that was fine: one line."""

    exit_code = EXIT_JOB_FAILED


class NoRoomError(JobError):
    """The disk has no room for what is to be written: one line."""

    exit_code = EXIT_NO_ROOM
