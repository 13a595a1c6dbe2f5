"""Find the final answer in a response and compare it exactly: text and rational numbers, no algebra."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from score_cli.tables.schemas import CORRECT, INCORRECT, NO_ANSWER, UNSCORED
from score_cli.tasks.latex_boxes import last_boxed
from score_cli.verification.task_grader import NO_GOLD, Graded, Item

_NUMBER = re.compile(r"[+-]?\d+(\.\d+|/\d+)?")


@lru_cache(maxsize=65536)  # samples of a problem repeat each other's answers
def same_number(answer: str, gold: str) -> bool:
    """Whether two answers are the same text or the same rational number (`0.5`, `1/2`, `+0.50`)."""
    answer, gold = answer.strip(), gold.strip()
    if answer == gold:
        return True
    if not (_NUMBER.fullmatch(answer) and _NUMBER.fullmatch(gold)):
        return False
    try:
        return Fraction(answer) == Fraction(gold)
    except (ZeroDivisionError, ValueError):  # a number of thousands of digits is not converted
        return False


class NumberGrader:
    """Grades boxed answers that are numbers, exactly; the built-in task's grader."""

    in_processes = False

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item; a problem without a gold answer is unscored."""
        return [self._grade_one(item) for item in items]

    def _grade_one(self, item: Item) -> Graded:
        answer = last_boxed(item.response)
        if item.problem.answer is None or not item.problem.answer.strip():
            return Graded(answer, UNSCORED, reason=NO_GOLD)
        if answer is None:
            return Graded(None, NO_ANSWER)
        return Graded(answer, CORRECT if same_number(answer, item.problem.answer) else INCORRECT)

    def describe(self) -> dict[str, str]:
        """Exact comparison has nothing to record but its name."""
        return {"number": "exact"}

    def close(self) -> None:
        """Nothing is held."""
