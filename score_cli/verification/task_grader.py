"""The seam between `Grader` and what grades each kind of task.

A grader takes a chunk of items and answers each one, in order. It owns whatever it needs
(worker processes, a sandbox) and gives it back in `close`. It never raises for what a response
contains: what is the response's fault is a verdict, what is its own fault is `unscored`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from score_cli.tables.records import Problem

# Why attempts at a problem without a gold answer are unscored.
NO_GOLD = "of problems without a gold answer that can be read"


class Item(NamedTuple):
    """One attempt to grade: the problem it answers and the response's text."""

    problem: Problem
    response: str


class Graded(NamedTuple):
    """What a grader says of one item.

    Attributes:
        answer: what was extracted from the response and judged; None where nothing was found.
        verdict: one of `tables.schemas.VERDICTS`.
        reward: from 0 to 1, where it is not simply 1 for a correct answer and 0 for any other.
        reason: why the item is unscored, where the grader can tell; equal reasons are counted together.
        hard_coded: a right program holds the expected value of one of its tests in a branch on this test's input.
    """

    answer: str | None
    verdict: str
    reward: float | None = None
    reason: str | None = None
    hard_coded: bool = False


class TaskGrader(Protocol):
    """Grades the items of the tasks it serves.

    Attributes:
        in_processes: the work is long, and done in processes of its own, so that sampling goes on beside it.
    """

    in_processes: bool

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in the order of the items."""

    def describe(self) -> dict[str, str]:
        """What the rewards footer should record of how grading was done; no host, path or clock."""

    def close(self) -> None:
        """Give back processes and files; the grader is not used again."""
