"""The two ways a command ends badly, and the exit code of each."""

EXIT_JOB_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can put right: one line saying what is wrong, what was expected, what to do."""


class JobError(Exception):
    """The job itself failed, on input that was fine: one line, exit code 1."""
