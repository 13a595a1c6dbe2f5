"""Hand-written problems for the tests of program grading."""

import os
from collections.abc import Sequence
from pathlib import Path

from score_cli.tables.records import Problem
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.task_grader import Item

SHARED_DATA = Path(os.environ.get("SCORE_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

ADDITION = (
    "def check(candidate):\n"
    "    assert candidate(1, 2) == 3\n"
    "    assert candidate(5, 7) == 12\n"
    "    assert candidate(-1, 1) == 0\n"
)


def item(
    code: str,
    *,
    tests: str | Sequence[str] = ADDITION,
    entry_point: str | None = "add",
    setup: str | None = None,
    question: str = "",
    fenced: bool = True,
) -> Item:
    """A response of one program to a problem with these tests."""
    problem = Problem(
        problem_id="p",
        task="code",
        question=question,
        tests=[tests] if isinstance(tests, str) else list(tests),
        entry_point=entry_point,
        setup=setup,
        source="hand-written",
    )
    return Item(problem, f"```python\n{code}\n```" if fenced else code)


def lines(code: str, *tests: str, setup: str | None = None) -> Item:
    """A response to a problem whose tests are lines, with no entry point."""
    return item(code, tests=tests, entry_point=None, setup=setup)


def verdict(grader: ProgramGrader, given: Item) -> str:
    """What the grader says of one item."""
    return grader.grade([given])[0].verdict
