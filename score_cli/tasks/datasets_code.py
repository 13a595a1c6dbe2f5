"""MBPP, HumanEval and their EvalPlus forms: rows of the released files to problems with tests."""

import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks.evalplus import check_block
from score_cli.tasks.prompts import Shot, mbpp_question
from score_cli.tasks.readers import Loaded, Row

MBPP_LAYOUT = "the layout of MBPP"
SANITIZED_LAYOUT = "the layout of sanitized MBPP"
HUMANEVAL_LAYOUT = "the layout of HumanEval"
EVALPLUS_LAYOUT = "EvalPlus's released layout"

# Task ids, first and last, of the official parts of MBPP; sanitized MBPP inherits them.
MBPP_PARTS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
SHOT_IDS = (2, 3, 4)


def mbpp_problems(
    rows: Sequence[Row], dataset: str, *, split: str, shots: int, shown_tests: int | None = None
) -> list[Loaded]:
    """The problems of one split of MBPP or sanitized MBPP.

    The question is the whole canonical prompt: `shots` solved tasks of the same file (ids 2, 3, 4 in this order), then
    the task and its tests. A shot that is itself asked does not see its own solution. `challenge_test_list` is unused.

    Args:
        shown_tests: how many of its tests a task shows, the first ones; all of them by default. Every test is graded.
    Raises:
        UserError: the rows have another layout, or the shots' tasks are not among them.
    """
    # Even for rows outside the split: a file that lost a field is broken wherever the field is missing.
    for row in rows:
        row.require(_mbpp_fields(row), SANITIZED_LAYOUT if row.has("test_imports") else MBPP_LAYOUT)
    shown = _shown({_task_number(row): row for row in rows}, shots, lambda row: _shot(row, shown_tests))
    first, last = MBPP_PARTS.get(split, (1, sys.maxsize))
    return [
        _mbpp_problem(row, dataset, _shot(row, shown_tests), _without(shown, number))
        for row in rows
        if first <= (number := _task_number(row)) <= last
    ]


def _shown(tasks: Mapping[int, Row], shots: int, read: Callable[[Row], Shot]) -> dict[int, Shot]:
    """The first `shots` of the canonical shots, taken from the rows themselves."""
    wanted = SHOT_IDS[:shots]
    missing = [str(number) for number in wanted if number not in tasks]
    if missing:
        raise UserError(
            f"{next(iter(tasks.values())).where}: the prompt of {shots} shots shows tasks "
            f"{', '.join(map(str, wanted))}, but the source lacks {', '.join(missing)}: give all of it, or take 0 shots"
        )
    return {number: read(tasks[number]) for number in wanted}


def _without(shown: Mapping[int, Shot], asked: int) -> list[Shot]:
    return [shot for number, shot in shown.items() if number != asked]


def _task_number(row: Row) -> int:
    row.require(("task_id",), MBPP_LAYOUT)
    text = row.text("task_id").removeprefix("Mbpp/")
    if not text.isdecimal():
        raise UserError(f"{row.where}: task_id is {text!r}, expected a number as in {MBPP_LAYOUT}")
    return int(text)


def _mbpp_fields(row: Row) -> tuple[str, ...]:
    return ("task_id", _text_field(row), "code", "test_list")


def _text_field(row: Row) -> str:
    """`text`, or `prompt` as the sanitized file calls it."""
    return "prompt" if row.has("prompt") else "text"


def _shot(row: Row, shown_tests: int | None) -> Shot:
    tests, code = row.tests("test_list"), row.text("code").strip("\n")
    heads = [] if tests[:shown_tests] else _heads(code, tests)
    return Shot(row.text(_text_field(row)).strip(), tests[:shown_tests], code, heads)


def _heads(code: str, tests: Sequence[str]) -> list[str]:
    """The first lines of the functions and classes of a solution that its tests name."""
    named = set(re.findall(r"\w+", " ".join(tests)))
    heads = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name in named:
            heads.append(f"def {node.name}({ast.unparse(node.args)}):")
        elif isinstance(node, ast.ClassDef) and node.name in named:
            heads.append(f"class {node.name}:")
    return heads


def _mbpp_problem(row: Row, dataset: str, asked: Shot, shots: Sequence[Shot]) -> Loaded:
    setup = row.text("test_setup_code") if row.has("test_setup_code") else ""
    if row.has("test_imports"):
        setup = "\n".join(row.texts("test_imports"))
    number = _task_number(row)
    problem = Problem(
        problem_id=f"{dataset}/{number}",
        task="mbpp",
        question=mbpp_question(asked, shots),
        tests=row.tests("test_list"),
        setup=setup.strip() or None,
        source=f"{dataset} {number}",
    )
    return Loaded(problem, row.text("code"))


def humaneval_problem(row: Row, dataset: str) -> Loaded:
    """A HumanEval row: the question is the function's head, the tests one block that defines `check(candidate)`.

    HumanEval+ rows give inputs in place of the block, and are compared with their reference program.

    Raises:
        UserError: the row has another layout.
    """
    compared = row.has("plus_input")
    tested = ("base_input", "plus_input") if compared else ("test",)
    layout = EVALPLUS_LAYOUT if compared else HUMANEVAL_LAYOUT
    row.require(("task_id", "prompt", "entry_point", "canonical_solution", *tested), layout)
    if not compared and "def check(" not in row.text("test"):
        raise UserError(f"{row.where}: test does not define check(candidate), which {layout} does")
    reference = row.text("prompt") + row.text("canonical_solution")
    name = row.text("task_id")
    problem = Problem(
        problem_id=f"{dataset}/{name.removeprefix('HumanEval/')}",
        task="humaneval",
        question=row.text("prompt"),
        tests=[_compared_tests(row, reference) if compared else row.text("test")],
        entry_point=row.text("entry_point"),
        source=f"{dataset} {name}",
    )
    return Loaded(problem, reference)


def mbppplus_problems(rows: Sequence[Row], dataset: str, *, shots: int) -> list[Loaded]:
    """The problems of MBPP+: MBPP's prompt with the one test that MBPP+ shows, and hidden tests by comparison.

    Raises:
        UserError: the rows have another layout, or the shots' tasks are not among them.
    """
    needed = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input")
    for row in rows:
        row.require(needed, EVALPLUS_LAYOUT)
    shown = _shown({_task_number(row): row for row in rows}, shots, _plus_shot)
    return [_mbppplus_problem(row, dataset, shown) for row in rows]


def _mbppplus_problem(row: Row, dataset: str, shown: Mapping[int, Shot]) -> Loaded:
    asked, number = _plus_shot(row), _task_number(row)
    problem = Problem(
        problem_id=f"{dataset}/{number}",
        task="mbpp",
        question=mbpp_question(asked, _without(shown, number)),
        tests=[_compared_tests(row, row.text("canonical_solution"))],
        entry_point=row.text("entry_point"),
        source=f"{dataset} {number}",
    )
    return Loaded(problem, row.text("canonical_solution"))


def _plus_shot(row: Row) -> Shot:
    """Text and shown tests from MBPP+'s prompt, which is a docstring: the text, then assert lines."""
    lines = row.text("prompt").replace('"""', "").strip().split("\n")
    tests = [line for line in lines if line.startswith("assert")]
    text = "\n".join(line for line in lines if not line.startswith("assert"))
    return Shot(text.strip(), tests, row.text("canonical_solution").strip("\n"))


def _compared_tests(row: Row, reference: str) -> str:
    inputs = [*_inputs(row, "base_input"), *_inputs(row, "plus_input")]
    if not inputs:
        raise UserError(f"{row.where} has no input to test with: expected some in base_input, or leave the row out")
    return check_block(
        task_id=row.text("task_id"),
        entry_point=row.text("entry_point"),
        reference=reference,
        inputs=inputs,
        tolerance=float(row.fields.get("atol") or 0),
    )


def _inputs(row: Row, name: str) -> list[Any]:
    value = row.fields[name]
    # Mbpp/793 has {} for no further input.
    if value == {}:
        return []
    if not isinstance(value, list):
        raise UserError(f"{row.where}: {name} holds {type(value).__name__}, expected a list of argument lists")
    return value
