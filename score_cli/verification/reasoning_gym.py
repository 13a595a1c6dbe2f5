"""Grading by reasoning-gym's own scoring, from the entry that stands with each problem.

Some of its scores evaluate the answer as Python. Nothing that a policy writes is evaluated here: a score that calls
`eval` is given `ast.literal_eval`; one that calls SymPy's `parse_expr`, which evaluates too, sees arithmetic and the
elementary functions alone, and everything else scores 0.
"""

import ast
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from score_cli.tables.schemas import CRASHED, NO_ANSWER, OUT_OF_MEMORY, TIMEOUT
from score_cli.tasks.datasets_reasoning_gym import make, package, version
from score_cli.verification import call_pool
from score_cli.verification.call_pool import NO_MEMORY, TIMED_OUT, Outcome
from score_cli.verification.own_grader import Limits, OwnGrader, OwnSource
from score_cli.verification.task_grader import Graded, Item

_VERDICTS = {TIMED_OUT: TIMEOUT, NO_MEMORY: OUT_OF_MEMORY, call_pool.CRASHED: CRASHED}

Score = Callable[[str, dict[str, Any]], float]

# Data sets whose score compares tuples, which JSON gives back as lists.
_TUPLES = {"arc_agi", "rearc"}
_EVALUATES = re.compile(r"(?<![\w.])eval\(")
_PARSES = re.compile(r"\bparse_expr\(")
_SYMBOLS = re.compile(r"[\w\s+\-*/^%().,]*", re.ASCII)
_NAMES = re.compile(r"[^\W\d]\w*", re.ASCII)
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|[^\W\d]\w*\s*\.|\)\s*\.", re.ASCII)
_FUNCTIONS = {"sqrt", "exp", "log", "ln", "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "pi", "Abs"}
_FUNCTIONS |= {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh"}


class ReasoningGymGrader(OwnGrader):
    """Calls `grade` as a user's own function is called; but what hangs or dies of an answer is the answer's doing."""

    def __init__(self, **limits: Unpack[Limits]) -> None:
        """Raises:
        UserError: the package is not installed.
        """
        self._version = version()
        name = f"{__name__}:{grade.__name__}"
        super().__init__(OwnSource(name, name, None), **limits)

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in the order of the items; equal answers to one problem are scored once.

        Raises:
            JobError: no process can be started any more.
        """
        answers = [find_answer(item.response) for item in items]
        keys = [(item.problem.problem_id, answer) for item, answer in zip(items, answers, strict=True)]
        different = {key: item for key, item in zip(keys, items, strict=True) if key[1] is not None}
        graded = dict(zip(different, super().grade(list(different.values())), strict=True))
        return [
            graded[key]._replace(answer=answer) if answer is not None else Graded(None, NO_ANSWER)
            for key, answer in zip(keys, answers, strict=True)
        ]

    def graded(self, outcome: Outcome) -> Graded:
        """What a call's outcome says of its item."""
        if outcome.ending in _VERDICTS:
            return Graded(None, _VERDICTS[outcome.ending])
        return super().graded(outcome)

    def describe(self) -> dict[str, str]:
        """As of a user's own function, and the package's version, on which its scores depend."""
        return super().describe() | {"reasoning_gym": self._version}


def grade(problem: Mapping[str, Any], response: str) -> float:
    """The package's own score of a response's last `<answer>`, from 0 to 1; 0 without one.

    Args:
        problem: a row of a problems table that `score data reasoning-gym` made.
    """
    answer = find_answer(response)
    if answer is None:
        return 0.0
    entry, config = _mapping(problem["entry"]), _mapping(problem["config"])
    name = entry["metadata"]["source_dataset"]
    if name in _TUPLES:
        entry = entry | {"metadata": _as_tuples(entry["metadata"])}
    return min(1.0, max(0.0, float(_score(name, json.dumps(config))(answer, entry))))


def find_answer(response: str) -> str | None:
    """What stands in the last `<answer>...</answer>` of a response, thinking left out."""
    said = response.rpartition("</think>")[2].partition("<think>")[0]
    found: str | None = package().utils.extract_answer(said)
    return found


def _mapping(value: Any) -> dict[str, Any]:
    """A column's value; tables that went through other tools hold its JSON as text."""
    mapping: dict[str, Any] = json.loads(value) if isinstance(value, str) else value
    return mapping


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return value


@functools.cache
def _score(name: str, config: str) -> Score:
    """The score of one data set, made safe."""
    dataset = make(name, json.loads(config), seed=0, size=1)
    score: Score = dataset.score_answer
    source = inspect.getsource(type(dataset).score_answer)
    if _EVALUATES.search(source):
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    if _PARSES.search(source):
        return lambda answer, entry: score(answer, entry) if is_arithmetic(answer) else 0.0
    return score


def is_arithmetic(text: str) -> bool:
    """Whether a text holds numbers, one-letter names and elementary functions alone, so that parsing runs no code."""
    if not _SYMBOLS.fullmatch(text) or _ATTRIBUTE.search(text):
        return False
    return all((len(name) == 1 and name != "_") or name in _FUNCTIONS for name in _NAMES.findall(text))
