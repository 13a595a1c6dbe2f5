"""Problems of programming competitions, whose programs read standard input: rows as the released data sets have them.

| data set | question | tests |
| --- | --- | --- |
| APPS, TACO | `question` | `input_output`: JSON with `inputs` and `outputs` |
| CodeContests | `description` | `public_tests`, `private_tests`, `generated_tests`: `input` and `output` |
| LiveCodeBench | `question_content` | `public_test_cases`, `private_test_cases`: JSON, the second packed |
| others | `question`, `problem` or `prompt` | `test_cases` or `official_tests`: a list of `input` and `output` |

Rows whose tests call a function (`fn_name`, `functional`) are left out: their programs read nothing.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.io_pairs import pair_texts
from score_cli.tables.records import Problem
from score_cli.tasks.readers import Loaded, Row

QUESTIONS = ("question_content", "description", "question", "problem", "prompt")
TESTS = (
    *("input_output", "public_tests", "private_tests", "generated_tests", "public_test_cases", "private_test_cases"),
    *("test_cases", "official_tests"),
)
_IDS = ("question_id", "problem_id", "task_id", "id", "name")
_SUBJECTS = ("platform", "source")
# CodeContests' number of Python 3.
_PYTHON_3 = 3


def is_competition(row: Row) -> bool:
    """Whether a row has the columns of one of these data sets."""
    return any(row.has(name) for name in TESTS) and any(row.has(name) for name in QUESTIONS)


def competition_problems(rows: Sequence[Row], *, task: str | None) -> list[Loaded]:
    """The problems of the rows whose programs read standard input.

    Raises:
        UserError: a row has no question, or tests in no form that is known.
    """
    return [_problem(row, task or "stdin") for row in rows if not _calls_a_function(row)]


def _problem(row: Row, task: str) -> Loaded:
    question = next((name for name in QUESTIONS if row.has(name)), None)
    tests = [text for name in TESTS if row.has(name) for text in _tests(row, name)]
    if question is None or not tests:
        raise UserError(
            f"{row.where} is no competition's problem: expected a question ({', '.join(QUESTIONS)}) and pairs of input "
            f"and output ({', '.join(TESTS)}); found {', '.join(row.fields)}"
        )
    name = next((row.text(name) for name in _IDS if row.has(name)), str(row.place))
    problem = Problem(
        problem_id=f"{row.part}/{name}",
        task=task,
        question=row.text(question),
        tests=list(dict.fromkeys(tests)),
        level=row.text("difficulty") if row.has("difficulty") else None,
        subject=next((row.text(name) for name in _SUBJECTS if row.has(name)), None),
        source=f"custom {row.part} {row.place}",
    )
    solution = _solution(row.value("solutions"))
    return Loaded(problem, None if solution is None else f"```python\n{solution.rstrip()}\n```")


def _calls_a_function(row: Row) -> bool:
    packed = row.value("input_output")
    if isinstance(packed, str):
        packed = _json(packed)
    if isinstance(packed, dict) and packed.get("fn_name"):
        return True
    public = row.value("public_test_cases")
    public = _json(public) if isinstance(public, str) else public
    return isinstance(public, list) and any(
        isinstance(test, dict) and test.get("testtype", "stdin") != "stdin" for test in public
    )


def _tests(row: Row, name: str) -> list[str]:
    value = row.value(name)
    if name == "private_test_cases" and isinstance(value, str) and not value.lstrip().startswith("["):
        value = _unpacked(value, f"{row.where}: {name}")
    if isinstance(value, dict) and not any(value.values()):
        return []  # CodeContests has such for problems without tests of a kind
    if value in ("", [], "[]"):
        return []
    found = pair_texts(value)
    if found is None:
        raise UserError(f"{row.where}: {name} holds no pairs of input and output: leave the row out")
    return found


class _TextOnly(pickle.Unpickler):
    """Reads a pickle of a text, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpacked(text: str, where: str) -> str:
    """LiveCodeBench's hidden tests: JSON in a pickle, compressed, in base 64."""
    try:
        value = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"{where} cannot be unpacked ({error}): fetch the file again") from error
    if not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__} where packed, expected the text of JSON")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _solution(value: Any) -> str | None:
    """The first solution in Python that a row gives."""
    if isinstance(value, str):
        value = _json(value)
    if isinstance(value, dict):
        pairs = zip(value.get("language") or [], value.get("solution") or [], strict=False)
        value = [code for language, code in pairs if language in (_PYTHON_3, "PYTHON3")]
    return next((code for code in value if isinstance(code, str) and code.strip()), None) if value else None
