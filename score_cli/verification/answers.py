"""Find the final answer in a response and compare it exactly: text and rational numbers, no algebra."""

import re
from collections.abc import Sequence
from fractions import Fraction

from score_cli.tables.schemas import CORRECT, INCORRECT, NO_ANSWER, UNSCORED
from score_cli.verification.graders import Graded, Item

BOXED = "\\boxed{"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+|/\d+)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last non-empty `\boxed{...}` with balanced braces, or None."""
    end = len(text)
    while (start := text.rfind(BOXED, 0, end)) >= 0:
        depth, position = 1, start + len(BOXED)
        while position < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
        content = text[start + len(BOXED) : position - 1].strip()
        if depth == 0 and content:
            return content
        end = start
    return None


def same_number(answer: str, gold: str) -> bool:
    """Whether two answers are the same text or the same rational number (`0.5`, `1/2`, `+0.50`)."""
    answer, gold = answer.strip(), gold.strip()
    if answer == gold:
        return True
    if not (_NUMBER.fullmatch(answer) and _NUMBER.fullmatch(gold)):
        return False
    try:
        return Fraction(answer) == Fraction(gold)
    except ZeroDivisionError:
        return False


class NumberGrader:
    """Grades boxed answers that are numbers, exactly; the built-in task's grader."""

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item; a problem without a gold answer is unscored."""
        return [self._grade_one(item) for item in items]

    def _grade_one(self, item: Item) -> Graded:
        answer = last_boxed(item.response)
        if item.problem.answer is None:
            return Graded(answer, UNSCORED)
        if answer is None:
            return Graded(None, NO_ANSWER)
        return Graded(answer, CORRECT if same_number(answer, item.problem.answer) else INCORRECT)

    def describe(self) -> dict[str, str]:
        """Exact comparison has nothing to record but its name."""
        return {"number": "exact"}

    def close(self) -> None:
        """Nothing is held."""
