"""Grade by a user's own function `grade(problem, response)`, called in processes that can be killed.

    score verify --grader reward.py:grade

The function gets the problem's row as a plain dict, columns of the user's own included, and the response's text. It
answers with True or False, a number from 0 to 1, or None where it cannot tell. What it does not answer, because it
raises, hangs, dies or says something else, is unscored, and why is counted.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple, TypedDict

from score_cli.errors import JobError, UserError
from score_cli.tables.schemas import CORRECT, INCORRECT, UNSCORED
from score_cli.verification.call_pool import CRASHED, LOST, NO_MEMORY, RAISED, TIMED_OUT, VALUE, Call, CallPool, Outcome
from score_cli.verification.forkserver import ForkServerError
from score_cli.verification.task_grader import Graded, Item

# The group under which a package registers graders: a name, and `package.module:function`.
GROUP = "score.graders"
DEFAULT_FUNCTION = "grade"

_CHILD = "score_cli.verification.own_reward"
# What may be read from the network or onto a GPU before the first grade.
_LOADING_SECONDS = 300.0
# A grader that has hung this often and never answered will not: hours would be waited for nothing.
_TRIALS = 16


class OwnSource(NamedTuple):
    """Where a grader's function is.

    Attributes:
        label: how a footer names it: no path of this machine.
        name: `FILE.py:FUNCTION` with the file's whole path, or `package.module:function`.
        source: what stands in the file; None for a module.
    """

    label: str
    name: str
    source: bytes | None

    @property
    def sha256(self) -> str | None:
        """The digest of a file; of a module only the process that imports it can tell."""
        return None if self.source is None else hashlib.sha256(self.source).hexdigest()


class Limits(TypedDict):
    """How a function is called, and what its rewards mean: see `OwnGrader`."""

    workers: int
    timeout_seconds: float
    memory_mb: int
    correct_at: float


def registered(name: str) -> EntryPoint | None:
    """The grader that an installed package has registered under a name; nothing is imported."""
    return next(iter(entry_points(group=GROUP, name=name)), None)


def find_source(name: str) -> OwnSource:
    """What `--grader` names: a file, a module, or an entry point.

    Raises:
        UserError: there is no such thing.
    """
    place, colon, function = name.rpartition(":")
    if not colon:
        place, function = name, DEFAULT_FUNCTION
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UserError(f"there is no file {place} for the grader {name}: expected FILE.py:FUNCTION")
        return OwnSource(f"{path.name}:{function}", f"{path.resolve()}:{function}", path.read_bytes())
    if colon:
        return OwnSource(name, name, None)
    found = registered(name)
    if found is None:
        known = sorted({point.name for point in entry_points(group=GROUP)})
        raise UserError(
            f"no grader is called {name}: expected FILE.py:FUNCTION, package.module:function, or a name that an "
            f"installed package registers under {GROUP} ({', '.join(known) or 'none is here'})"
        )
    return OwnSource(found.value, found.value, None)


class OwnGrader:
    """Grades by one function; the same reward from `correct_at` on counts as correct.

    Args:
        workers: calls at a time.
        timeout_seconds: wall time of one call.
        memory_mb: address space of one process; 0 for no limit.
    Raises:
        UserError: the function cannot be loaded.
    """

    in_processes = True

    def __init__(
        self, source: OwnSource, *, workers: int, timeout_seconds: float, memory_mb: int, correct_at: float
    ) -> None:
        self._source = source
        self._correct_at = correct_at
        self._timeout_seconds = timeout_seconds
        self._memory_mb = memory_mb
        load = Call(f"{_CHILD}:prepare", (source.name, source.source))
        self._pool = CallPool(
            workers=workers,
            timeout_seconds=timeout_seconds,
            memory_mb=memory_mb or None,
            preload=[_CHILD],
            first=load,
            first_seconds=_LOADING_SECONDS,
        )
        try:
            [loaded] = self._pool.map([load])
        except ForkServerError as error:
            self._pool.close()
            raise UserError(f"the grader {source.label} cannot be loaded: {_reason(str(error))}") from error
        self._sha256 = str(loaded.value)
        self._has_answered = False

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in the order of the items.

        Raises:
            JobError: no process can be started any more, or the function hangs at whatever it is given.
        """
        calls = [
            Call(f"{_CHILD}:grade_one", (self._source.name, self._source.source, item.problem.row(), item.response))
            for item in items
        ]
        trials = 0 if self._has_answered else _TRIALS
        outcomes = self._outcomes(calls[:trials])
        if len(outcomes) == _TRIALS and all(outcome.ending == TIMED_OUT for outcome in outcomes):
            raise JobError(
                f"the grader {self._source.label} took more than {self._timeout_seconds:g} s for each of the first "
                f"{_TRIALS} responses: mend it, or raise --grader-timeout-seconds"
            )
        outcomes += self._outcomes(calls[trials:])
        self._has_answered |= any(outcome.ending != TIMED_OUT for outcome in outcomes)
        return [self.graded(outcome) for outcome in outcomes]

    def _outcomes(self, calls: Sequence[Call]) -> list[Outcome]:
        try:
            return self._pool.map(calls)
        except ForkServerError as error:
            raise JobError(f"the grader {self._source.label} cannot be started again ({error})") from error

    def graded(self, outcome: Outcome) -> Graded:
        """What a call's outcome says of its item."""
        if outcome.ending != VALUE:
            return Graded(None, UNSCORED, reason=self._why(outcome))
        reward = float(outcome.value)
        return Graded(None, CORRECT if reward >= self._correct_at else INCORRECT, reward=reward)

    def _why(self, outcome: Outcome) -> str:
        if outcome.ending == RAISED:
            return _reason(str(outcome.value))
        return {
            TIMED_OUT: f"took more than {self._timeout_seconds:g} s",
            NO_MEMORY: f"needed more than {self._memory_mb} MB",
            CRASHED: "ended its process",
            LOST: "was killed from outside",
        }[outcome.ending]

    def describe(self) -> dict[str, str]:
        """The function, the digest of its source, and what could change its answers."""
        return {
            "grader": self._source.label,
            "sha256": self._sha256,
            "timeout_seconds": f"{self._timeout_seconds:g}",
            "memory_mb": str(self._memory_mb),
            "correct_at": f"{self._correct_at:g}",
        }

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def _reason(raised: str) -> str:
    """What a call raised, without the name of our own error around it."""
    return raised.removeprefix("OwnRewardError: ")
