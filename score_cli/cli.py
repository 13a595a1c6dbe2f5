"""The command line: `main`, and the one line that an error becomes.

Heavy libraries are imported inside the commands that need them, so that `score --help` is instant.
"""

import errno
import itertools
import os
import re
import sys
import traceback
from typing import Any

import typer

from score_cli.commands.app import app
from score_cli.console import spelled
from score_cli.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_NO_ROOM,
    NO_ROOM,
    JobError,
    UserError,
)
from score_cli.interrupts import interrupt_on_signals, interrupt_when_parent_dies
from score_cli.storage import Mirror

# Each adds its commands to the app, in the order of `score --help`.
import score_cli.commands.stages  # isort: skip
import score_cli.commands.supervised  # isort: skip
import score_cli.commands.runs  # noqa: F401  # isort: skip

# What several processes of torchrun do together.
TOGETHER = ("train-stage1", "train-stage2", "train-sft", "run")

# What the command line's parser calls a number.
_NUMBERS = {"integer": "a whole number", "number": "a number"}
# typer brings its own copy of click in some versions; this is the base of all usage errors in either.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line; every error a user can cause is one line on standard error."""
    interrupt_on_signals()
    sys.exit(run_command())


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 3 no room, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run_together(given) if started_by_torchrun() else _run_here(given)
    except (UserError, JobError) as error:
        return _fail(str(error), error.exit_code)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(_out_of_memory(error), EXIT_JOB_FAILED)


def started_by_torchrun() -> bool:
    """Whether this is one of several processes of `torchrun`; asked before torch is there."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"


def _run_together(given: list[str]) -> int:
    """Take part in a command that several processes of `torchrun` run: the first runs it, the others serve it."""
    if not given or given[0] not in TOGETHER:
        if os.environ["RANK"] != "0":
            return EXIT_BAD_INPUT
        raise UserError(f"{' '.join(given[:1])} under torchrun, which is for {', '.join(TOGETHER)}: run it by itself")
    if os.environ["RANK"] == "0":
        # A torchrun that is killed cannot pass anything on: its processes would go on, and nobody could stop them.
        interrupt_when_parent_dies()
    from score_cli.tables.processes import take_part

    return take_part(lambda: _run_here(given))


def _run_here(given: list[str]) -> int:
    """Run a command in this process, whoever else takes part in it."""
    mirror = Mirror(given)
    try:
        with mirror, spelled(mirror.in_addresses):
            if mirror.fetch() and (code := _call(mirror.arguments)):
                return code
            for address in mirror.send():
                print(f"{address}: sent", file=sys.stderr)
        return 0
    except (UserError, JobError) as error:
        return _fail(mirror.in_addresses(str(error)), error.exit_code)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return EXIT_BAD_INPUT
        command = error.ctx.command_path if getattr(error, "ctx", None) else "score"
        return _fail(f"{_in_words(error.format_message(), given)} (see `{command} --help`)", EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        if error.errno in NO_ROOM:
            place = error.filename or "the output"
            return _fail(f"no space to write {place}: free some and run the command again", EXIT_NO_ROOM)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _fail(f"no permission for {error.filename or 'the output'}: name a place you may write to", 2)
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            return _fail(f"{error.filename} cannot be used ({error.strerror}): name another place", EXIT_BAD_INPUT)
        raise


def _in_words(message: str, given: list[str]) -> str:
    """A message of the command line's parser about a value, with the value and what was expected in plain words."""
    found = re.fullmatch(r"Invalid value for '(--[a-z0-9-]+)': (.*?)\.?", message, re.DOTALL)
    if found is None:
        return message
    option, said = found.groups()
    kind = re.match(r"Input should be a valid (integer|number)", said)
    choices = re.fullmatch(r"Value error, '.*' is not one of (.*)", said)
    if kind is None and choices is None:
        return message
    words = [part for word in given for part in (word.split("=", 1) if word.startswith("--") else [word])]
    value = dict(itertools.pairwise(words)).get(option, "something else")
    expected = f"one of {choices[1]}".replace("'", "") if choices else _NUMBERS[str(kind and kind[1])]
    return f"{option} is {value}, expected {expected}"


def _call(arguments: list[str]) -> int:
    # Outside standalone mode typer returns the exit code, or raises what it would have printed.
    code = typer.main.get_command(app)(args=arguments, prog_name="score", standalone_mode=False) or 0
    return _interrupted() if code == EXIT_INTERRUPTED else int(code)


def _interrupted() -> int:
    return _fail("interrupted: nothing half-written is left; run the command again to go on", EXIT_INTERRUPTED)


def _out_of_memory(error: RuntimeError) -> str:
    """What to lower, by where in the package torch found no more memory on the GPU."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(module.startswith("score_cli.sampling") for module in modules):
        advice = "lower batch_size or max_tokens of sample and eval"
    else:
        advice = (
            "lower micro_batch_tokens or scoring_tokens of the training stage, or gpu_memory_utilization if vLLM runs "
            "beside it"
        )
    # torch says more, line after line; its first sentences tell how much was asked for and how much was free.
    reason = ". ".join(str(error).split(". ")[:2])
    return f"the GPU has no memory left ({reason}): {advice}"


def _fail(message: str, code: int) -> int:
    # One line, whatever a library put into its message.
    print("score: " + " ".join(message.split()), file=sys.stderr)
    return code
