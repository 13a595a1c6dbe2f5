"""A user's own problems: any JSON, JSON lines or Parquet rows, with the user's names for the columns."""

from dataclasses import dataclass, fields

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks.prompts import final_answer, prompts_of
from score_cli.tasks.readers import Loaded, Row


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the user's rows holds which value.

    Only `question` and one of `answer` and `tests` must be there; another column may be absent, unless it was renamed,
    which says that it is expected. `reference` holds a right response, for the check of gold answers alone.
    """

    problem_id: str = "problem_id"
    question: str = "question"
    answer: str = "answer"
    tests: str = "tests"
    entry_point: str = "entry_point"
    setup: str = "setup"
    level: str = "level"
    subject: str = "subject"
    reference: str = "reference"


def custom_problem(row: Row, columns: Columns, *, task: str | None) -> Loaded:
    """One row as a problem; its question is put to the model in the words of its task.

    Args:
        task: whose prompts and grader apply; by default `math` for an answer, `humaneval` for tests with an entry
            point, `mbpp` for other tests.
    Raises:
        UserError: a column is missing or holds the wrong kind of value.
    """
    named = [(getattr(columns, field.name), field.default) for field in fields(columns)]
    renamed = [name for name, default in named if name != default]
    row.require(list(dict.fromkeys([columns.question, *renamed])), "the columns as named")
    if not row.has(columns.answer) and not row.has(columns.tests):
        raise UserError(
            f"{row.where} has neither an answer (column {columns.answer}) nor tests (column {columns.tests}): "
            f"name the column that holds one; found {', '.join(row.fields)}"
        )
    task = task or _task_of(row, columns)
    prompts_of(task)
    answer = _optional(row, columns.answer)
    problem = Problem(
        problem_id=_optional(row, columns.problem_id) or f"custom/{row.part}/{row.place}",
        task=task,
        question=row.text(columns.question),
        answer=answer,
        tests=row.tests(columns.tests) if row.has(columns.tests) else None,
        entry_point=_optional(row, columns.entry_point),
        setup=_optional(row, columns.setup),
        level=_optional(row, columns.level),
        subject=_optional(row, columns.subject),
        source=f"custom {row.part} {row.place}",
    )
    reference = _optional(row, columns.reference)
    if reference is None and answer is not None and problem.tests is None:
        reference = final_answer(answer)
    return Loaded(problem, reference)


def _task_of(row: Row, columns: Columns) -> str:
    if not row.has(columns.tests):
        return "math"
    return "humaneval" if row.has(columns.entry_point) else "mbpp"


def _optional(row: Row, name: str) -> str | None:
    return row.text(name) if row.has(name) else None
