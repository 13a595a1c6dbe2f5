"""The ways a command ends badly, and the exit code of each."""

import errno

EXIT_JOB_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_ROOM = 3
EXIT_INTERRUPTED = 130
# How the kernel says that a disk, a quota or a limit of a process is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can put right: one line saying what is wrong, what was expected, what to do."""

    exit_code = EXIT_BAD_INPUT


class JobError(Exception):
    """The job itself failed, on input that was fine: one line."""

    exit_code = EXIT_JOB_FAILED


class NoRoomError(JobError):
    """The disk has no room for what is to be written: one line."""

    exit_code = EXIT_NO_ROOM
