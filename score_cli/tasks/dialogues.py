r"""Given dialogues, to learn from before anything is sampled: rows of a problem and its turns, read and written.

    {"problem_id": "p1", "task": "division", "question": "Divide 264 by 5. ", "turns": [
        {"role": "solve", "text": "\\boxed{53}: product 265, remainder -01"}, {"role": "verify", "text": "wrong"}]}

The user's words between the turns are not in a row: they are those that sampling says.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.errors import UserError
from score_cli.tables.atomic import replacing_file
from score_cli.tables.problems import plain_text
from score_cli.tables.records import ROLES, Problem
from score_cli.tasks.readers import Row, read_file

TURNS = "turns"


class Said(NamedTuple):
    """One turn of the model: what it is, and its text."""

    role: str
    text: str


@dataclass(frozen=True)
class GivenDialogue:
    """A problem and what a model may say to it, turn by turn; `where` is how an error names it."""

    problem: Problem
    turns: list[Said]
    where: str


def read_dialogues(path: Path) -> list[GivenDialogue]:
    """The dialogues of a JSON-lines, JSON or Parquet file.

    Raises:
        UserError: the file cannot be read or is empty, or a row is no dialogue.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: name the dialogues to learn from, a .jsonl or .parquet file")
    found = [_dialogue(row) for row in read_file(path)]
    if not found:
        raise UserError(f"{path} holds no rows, expected a dialogue in each")
    return found


def write_dialogues(path: Path, dialogues: Iterable[GivenDialogue]) -> None:
    """Write dialogues as JSON lines, in place of any that were there."""
    with replacing_file(path) as temporary:
        temporary.write_text("".join(json.dumps(_row(each), ensure_ascii=False) + "\n" for each in dialogues))


def _row(dialogue: GivenDialogue) -> dict[str, Any]:
    problem = dialogue.problem
    asked = {"question": problem.question} if problem.messages is None else {"messages": problem.messages}
    turns = [turn._asdict() for turn in dialogue.turns]
    return {"problem_id": problem.problem_id, "task": problem.task, **asked, TURNS: turns}


def _dialogue(row: Row) -> GivenDialogue:
    asked = "question" if row.has("question") else "messages"
    row.require([asked, TURNS], "a dialogue")
    question = row.question(asked)
    if not question.text.strip():
        raise UserError(f"{row.where}: {asked} is empty, expected what the model is asked")
    problem = Problem(
        problem_id=row.text("problem_id") if row.has("problem_id") else f"given/{row.part}/{row.place}",
        task=row.text("task") if row.has("task") else "math",
        question=question.text,
        source=row.where,
        messages=question.messages,
    )
    return GivenDialogue(problem, _turns(row), row.where)


def _turns(row: Row) -> list[Said]:
    turns = row.value(TURNS)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{row.where}: {TURNS} holds {turns!r:.60}, expected a list of turns with role and text")
    return [_said(turn, f"{row.where}, turn {number}") for number, turn in enumerate(turns, start=1)]


def _said(turn: Any, where: str) -> Said:
    if not isinstance(turn, dict) or set(turn) != {"role", "text"}:
        raise UserError(f"{where} is {turn!r:.60}, expected an object of role and text alone")
    if turn["role"] not in ROLES:
        raise UserError(f"{where} has role {turn['role']!r}, expected one of {', '.join(ROLES)}")
    text = plain_text(turn["text"], where)
    if not text.strip():
        raise UserError(f"{where} has no text, expected what the model says: leave the row out")
    return Said(turn["role"], text)
