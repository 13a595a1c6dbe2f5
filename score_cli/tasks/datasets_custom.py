"""A user's own problems: any JSON, CSV or Parquet rows, with the user's names for the columns, or those of a trainer.

| layout | question | answer |
| --- | --- | --- |
| columns | `question`, or as named | `answer`, or as named |
| verl | `prompt`, a chat | `reward_model.ground_truth` |
| trl | `prompt`, a text or a chat | `answer`, else `solution`: its last box, or what follows `####`, where it has one |
| competition | see `datasets_competition` | pairs of input and output |
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from score_cli.config import Layout
from score_cli.errors import UserError, guess
from score_cli.tables.io_pairs import pair_texts
from score_cli.tables.problems import KNOWN_COLUMNS, task_of
from score_cli.tables.records import Problem
from score_cli.tasks.datasets_competition import competition_problems, is_competition
from score_cli.tasks.latex_boxes import boxed_gold
from score_cli.tasks.prompts import PROMPTS, final_answer
from score_cli.tasks.readers import Loaded, Row

_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the user's rows holds which value; `a.b` is the field `b` of the column `a`.

    Only `question` and one of `answer` and `tests` must be there, and those not for a task of the user's own; another
    column may be absent, unless it was renamed, which says that it is expected. `reference` holds a right response,
    for the check of gold answers alone. `layout` says what the columns are called; `auto` goes by the first row's.
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
    layout: Layout = "auto"

    def renamed(self) -> dict[str, str]:
        """The names that the user chose, by field."""
        return {field: name for field, name in self._names() if name != field}

    def taken(self) -> set[str]:
        """The columns that have a place in a problem."""
        return {name for field, name in self._names() if field != "reference"}

    def _names(self) -> list[tuple[str, str]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "layout"]


def custom_problems(rows: Sequence[Row], columns: Columns, *, task: str | None) -> list[Loaded]:
    """Rows as problems; a text is put to the model in the words of its task, a chat as it stands.

    Args:
        task: whose prompts and grader apply; by default `math` for an answer, `humaneval` for tests with an entry
            point, `stdin` for tests that are pairs of input and output, `mbpp` for other tests.
    Raises:
        UserError: a column is missing or holds the wrong kind of value.
    """
    layout = _layout_of(rows[0], columns) if columns.layout == "auto" else columns.layout
    if columns.layout in ("verl", "trl", "competition") and columns.renamed():
        raise UserError(
            f"layout {layout} says what the columns are called: leave out {next(map(_option, columns.renamed()))}, "
            "or take layout columns and name them all"
        )
    if layout == "competition":
        return competition_problems(rows, task=task)
    if layout == "verl":
        loaded = [_verl_problem(row, task) for row in rows]
    elif layout == "trl":
        loaded = [_trl_problem(row, task) for row in rows]
    else:
        if columns.question == "question" and not rows[0].has("question") and rows[0].has("messages"):
            columns = replace(columns, question="messages")
        loaded = [_problem(row, columns, task) for row in rows]
    _check_ids(rows, loaded)
    return loaded


def _check_ids(rows: Sequence[Row], loaded: Sequence[Loaded]) -> None:
    first: dict[str, Row] = {}
    for row, (problem, _) in zip(rows, loaded, strict=True):
        before = first.setdefault(problem.problem_id, row)
        if before is not row:
            raise UserError(
                f"{row.where} has the id of {before.where}, {problem.problem_id}, expected its own: leave one of "
                "the two out, or name another column with --id-column"
            )


def _layout_of(row: Row, columns: Columns) -> Layout:
    """The layout of rows that say nothing: that of the trainer whose columns the first one has."""
    if not columns.renamed() and is_competition(row):
        return "competition"
    if columns.renamed() or row.has("question") or not row.has("prompt"):
        return "columns"
    if row.has("reward_model.ground_truth"):
        return "verl"
    return "trl" if row.has("answer") or row.has("solution") else "columns"


def _verl_problem(row: Row, task: str | None) -> Loaded:
    """A row that verl trains on; all but the prompt stays with it under verl's names, for a grader that wants them."""
    loaded = _problem(row, Columns(question="prompt", answer="reward_model.ground_truth", layout="verl"), task)
    if not row.has("data_source"):
        return loaded
    subject = loaded.problem.subject or row.text("data_source")
    return loaded._replace(problem=replace(loaded.problem, subject=subject))


def _trl_problem(row: Row, task: str | None) -> Loaded:
    """A row that TRL trains on; a worked solution stays with it, and its final answer is the gold one."""
    worked = row.is_empty("answer") or not row.has("answer")
    answer = "solution" if worked and row.has("solution") else "answer"
    loaded = _problem(row, Columns(question="prompt", answer=answer, layout="trl"), task)
    gold = loaded.problem.answer
    if gold is None:
        return loaded
    hashes = _HASHES.search(gold)
    final = boxed_gold(gold) or (hashes[1].strip() if hashes else gold)
    if final == gold:
        return loaded
    working = {"source_answer" if answer == "answer" else answer: gold}
    problem = replace(loaded.problem, answer=final, extra=loaded.problem.extra | working)
    return Loaded(problem, row.text("reference") if row.has("reference") else final_answer(final))


def _problem(row: Row, columns: Columns, task: str | None) -> Loaded:
    """One row as a problem."""
    named = {"question": columns.question} | columns.renamed()
    if columns.layout in ("columns", "auto"):
        _require(row, named)
    else:
        row.require(list(named.values()), f"the layout {columns.layout}")
    if row.is_empty(columns.question):
        raise row.nothing_in(columns.question)
    is_own = task is not None and task not in PROMPTS
    question, answer = row.question(columns.question), _answer(row, columns.answer, any_kind=is_own)
    if answer is None and not is_own and not row.has(columns.tests):
        raise _unanswered(row, columns)
    tests, entry_point = row.value(columns.tests), _optional(row, columns.entry_point)
    problem = Problem(
        problem_id=_optional(row, columns.problem_id) or f"custom/{row.part}/{row.place}",
        task=task or task_of(tests, entry_point),
        question=question.text,
        answer=answer,
        tests=None if tests is None else pair_texts(tests) or row.tests(columns.tests),
        entry_point=entry_point,
        setup=_optional(row, columns.setup),
        level=_optional(row, columns.level),
        subject=_optional(row, columns.subject),
        source=f"custom {row.part} {row.place}",
        messages=question.messages,
        extra=_extra(row, columns, kept=columns.answer if answer is None else None),
    )
    reference = _optional(row, columns.reference)
    if reference is None and problem.answer is not None and problem.tests is None:
        reference = final_answer(problem.answer)
    return Loaded(problem, reference)


def _require(row: Row, named: Mapping[str, str]) -> None:
    """Check that a row has a value in each column.

    Raises:
        UserError: it has not; the message says which columns there are, and the option that names another.
    """
    for field, name in named.items():
        if row.has(name):
            continue
        if row.is_empty(name):
            raise row.nothing_in(name)
        raise UserError(
            f"{row.where} has no column {name}: {guess(name, row.fields)}name the {field.replace('_', ' ')} "
            f"with {_option(field)}; the columns are {', '.join(row.fields)}"
        )


def _unanswered(row: Row, columns: Columns) -> UserError:
    """What to raise of a row without anything to grade by."""
    if row.has(columns.answer) or row.is_empty(columns.answer):
        return row.nothing_in(columns.answer)
    return UserError(
        f"{row.where} has neither an answer (column {columns.answer}) nor tests (column {columns.tests}): "
        f"name the column that holds one (--answer-column), or leave the row out; found {', '.join(row.fields)}"
    )


def _option(field: str) -> str:
    """The option of `score data` that names the column of a field."""
    return f"--{field.removeprefix('problem_').replace('_', '-')}-column"


def _optional(row: Row, name: str) -> str | None:
    return row.text(name) if row.has(name) else None


def _answer(row: Row, name: str, *, any_kind: bool) -> str | None:
    """The gold answer, none where it is blank; with `any_kind` none where it is no text instead: the user's own grader
    finds it in its column.
    """
    try:
        gold = row.gold(name) if row.has(name) else None
        return gold if any_kind or gold is None or gold.strip() else None
    except UserError:
        if any_kind:
            return None
        raise


def _extra(row: Row, columns: Columns, *, kept: str | None) -> dict[str, object]:
    """The columns that have no place in a problem; one that is called like a problem's own becomes `source_NAME`."""
    taken = columns.taken() - {kept}
    return {
        f"source_{name}" if name in KNOWN_COLUMNS else name: value
        for name, value in row.fields.items()
        if name not in taken and value is not None
    }
