"""Problems as they stand in a table: one that this program wrote, or one made by hand with fewer columns and more.

A file needs `problem_id` and `question`. The other columns of `schemas.PROBLEMS` may be absent; columns beyond them
are kept in `Problem.extra` and come back out of `write_problems_table` with the same values.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from score_cli.errors import UserError
from score_cli.tables.io_pairs import pair_texts
from score_cli.tables.parquet import PROBLEMS, read_all_columns, write_table
from score_cli.tables.provenance import Footer
from score_cli.tables.records import Message, Problem

ROLES = ("system", "user", "assistant")
KNOWN_COLUMNS = (*PROBLEMS.schema.names, "messages")
_CHAT = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
# Marks a text column whose values are JSON: lists, mappings and mixtures, which no other column holds unchanged.
_JSON = {b"encoding": b"json"}
_PLAIN_KINDS = (str, bool, int, float, bytes, Decimal, datetime, date, time, timedelta)


class Question(NamedTuple):
    """What is asked: a text, or the last turn of a chat together with the whole of it."""

    text: str
    messages: list[Message] | None


def read_problems(path: Path) -> list[Problem]:
    """All problems, in file order.

    Raises:
        UserError: the file is missing, damaged, empty or no problems table, a value is of the wrong kind, or a
            problem_id stands twice.
    """
    table = read_all_columns(path, PROBLEMS)
    columns = {name: _values(table, name, path) for name in table.column_names}
    _check_columns(columns, path)
    names, rows = list(columns), zip(*columns.values(), strict=True)
    problems = [_problem(dict(zip(names, row, strict=True)), f"{path} row {n}") for n, row in enumerate(rows, start=1)]
    for name, count in Counter(problem.problem_id for problem in problems).items():
        if count > 1:
            raise UserError(f"{path}: problem_id {name} stands {count} times, expected once: keep one of them")
    return problems


def _values(table: pa.Table, name: str, path: Path) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    if not _JSON.items() <= (table.schema.field(name).metadata or {}).items():
        return values
    try:
        return [None if value is None else json.loads(value) for value in values]
    except ValueError as error:
        raise UserError(f"{path}: column {name} is marked as JSON and is not ({error}): write it again") from None


def _check_columns(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    if "task" not in columns and not {"answer", "tests"} & columns.keys():
        raise UserError(
            f"{path} is not a problems table: it lacks task, and neither answer nor tests tells which it is: "
            "add a column task that names whose prompts and grader apply"
        )
    for name in ("problem_id", "task", "question", "source"):
        nulls = [row for row, value in enumerate(columns.get(name, ()), start=1) if value is None]
        if nulls:
            more = f" and {len(nulls) - 1} more" if len(nulls) > 1 else ""
            raise UserError(f"{path} row {nulls[0]}{more}: column {name} is empty: fill it in, or leave the row out")


def _problem(row: dict[str, Any], where: str) -> Problem:
    def text(name: str) -> str | None:
        value = row.get(name)
        return None if value is None else plain_text(value, f"{where}: column {name}")

    question = read_question(row["question"], f"{where}: column question")
    if row.get("messages") is not None:
        question = read_question(row["messages"], f"{where}: column messages")
    tests = row.get("tests")
    answer = row.get("answer")
    name, entry_point = text("problem_id"), text("entry_point")
    assert name is not None
    return Problem(
        problem_id=name,
        task=text("task") or task_of(tests, entry_point),
        question=question.text,
        answer=None if answer is None else gold_text(answer, f"{where}: column answer"),
        tests=None if tests is None else text_list(tests, f"{where}: column tests"),
        entry_point=entry_point,
        setup=text("setup"),
        level=text("level"),
        subject=text("subject"),
        source=text("source") or "own",
        messages=question.messages,
        extra={name: value for name, value in row.items() if name not in KNOWN_COLUMNS},
    )


def task_of(tests: object, entry_point: str | None) -> str:
    """The task of a problem that names none: by its answer `math`, by its tests `stdin`, `mbpp` or `humaneval`."""
    if tests is None:
        return "math"
    if pair_texts(tests) is not None:
        return "stdin"
    return "mbpp" if entry_point is None else "humaneval"


def plain_text(value: Any, where: str) -> str:
    """Text with Unix line ends; a number is written out.

    Raises:
        UserError: the value is neither text nor a finite number.
    """
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise UserError(f"{where} holds {type(value).__name__}, expected text")
    if not math.isfinite(value):
        raise UserError(f"{where} holds {value}, expected text or a number: give its value, or leave the row out")
    if isinstance(value, float) and "e" in repr(value):
        value = Decimal(repr(value))  # 1e-07 is 0.0000001 to whoever answers
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def gold_text(value: Any, where: str) -> str:
    """A gold answer as text: a number is written out, a list of one value is that value.

    Raises:
        UserError: the value is of another kind, or NaN, as a number or as text.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise UserError(f"{where} holds a list of {len(value)} values, expected one answer: keep one of them")
        return gold_text(value[0], where)
    text = plain_text(value, where)
    if text.strip().casefold() == "nan":
        raise UserError(f"{where} holds {text}, which stands for no value: give the answer, or leave the row out")
    return text


def text_list(value: Any, where: str) -> list[str]:
    """A list of texts with Unix line ends; one text counts as a list of one.

    Raises:
        UserError: the value is something else.
    """
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise UserError(f"{where} holds {_kind(value)}, expected a list of texts")
    return [plain_text(item, where) for item in values]


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'}"
    return type(value).__name__


def read_question(value: Any, where: str) -> Question:
    """A question that is a text, or a chat: a list of messages with `role` and `content`, the last one the user's.

    Raises:
        UserError: the value is neither.
    """
    if not isinstance(value, list):
        return Question(plain_text(value, where), None)
    if not value or not all(isinstance(message, Mapping) and "role" in message for message in value):
        raise UserError(f"{where} holds list, expected text, or a chat of messages with role and content")
    chat = [_message(message, f"{where}, message {place}") for place, message in enumerate(value)]
    if chat[-1]["role"] != "user":
        raise UserError(
            f"{where} holds a chat that ends with one of {chat[-1]['role']}, expected the user's question last: "
            "cut it after that"
        )
    if any(message["role"] == "system" for message in chat[1:]):
        raise UserError(f"{where} holds a system message after the first, expected it to open the chat: move it there")
    return Question(chat[-1]["content"], chat)


def _message(value: Mapping[str, Any], where: str) -> Message:
    role, content = value["role"], value.get("content")
    if role not in ROLES:
        raise UserError(f"{where} has role {role}, expected one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    if not isinstance(content, str):
        raise UserError(f"{where} has content of {type(content).__name__}, expected text")
    return Message(role=role, content=plain_text(content, where))


def _joined_parts(parts: Sequence[Any], where: str) -> str:
    """The text of a message in parts, as multimodal data sets write it."""
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has a part that is not text: leave out what shows pictures or sounds")
    return "".join(map(str, texts))


def question_key(text: str) -> str:
    """A question without what does not make it another one: case, white space, and ways to encode a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def overlapping(train: Sequence[Problem], evaluation: Sequence[Problem]) -> list[Problem]:
    """The training problems whose question is asked in evaluation too."""
    asked = {question_key(problem.question) for problem in evaluation}
    return [problem for problem in train if question_key(problem.question) in asked]


def write_problems_table(path: Path, problems: Sequence[Problem], footer: Footer) -> None:
    """Write a problems table, with the columns that its problems bring beside the known ones.

    Raises:
        UserError: an extra column holds what no column of a table can.
    """
    fields, rows = list(PROBLEMS.schema), [problem.row() for problem in problems]
    if any(problem.messages is not None for problem in problems):
        fields.append(pa.field("messages", _CHAT))
    for name in dict.fromkeys(name for problem in problems for name in problem.extra):
        field, values = _extra_column(name, [problem.extra.get(name) for problem in problems])
        fields.append(field)
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    write_table(path, replace(PROBLEMS, schema=pa.schema(fields)), rows, footer)


def _extra_column(name: str, values: list[Any]) -> tuple[pa.Field, list[Any]]:
    """The field of an extra column and its values, such that reading gives back what was written."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.field(name, pa.string()), values
    # Times in lists are no JSON, and whole numbers beyond 64 bits nothing else: where one way fails, the other serves.
    ways = [_as_arrow, _as_json] if len(kinds) == 1 and kinds <= set(_PLAIN_KINDS) else [_as_json, _as_arrow]
    for way in ways:
        try:
            return way(name, values)
        except (TypeError, OverflowError, pa.ArrowInvalid):
            continue
    named = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise UserError(f"column {name} cannot be kept in a table (it holds {named}): leave it out, or make it text")


def _as_arrow(name: str, values: list[Any]) -> tuple[pa.Field, list[Any]]:
    return pa.field(name, pa.array(values).type), values


def _as_json(name: str, values: list[Any]) -> tuple[pa.Field, list[Any]]:
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.field(name, pa.string(), metadata=_JSON), texts
