"""Problems of competitions: the layouts of the released data sets, by rows made here, and their own solutions."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from score_cli.errors import UserError
from score_cli.tables.schemas import CORRECT, INCORRECT
from score_cli.tasks.datasets_custom import Columns
from score_cli.tasks.loaders import load
from score_cli.tasks.prompts import prompts_of
from score_cli.tasks.readers import Loaded
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.task_grader import Item

QUESTION = "Read two numbers and print their sum."
SOLUTION = "print(sum(map(int, input().split())))"
TESTS = [json.dumps({"input": f"{a} 2\n", "output": f"{a + 2}\n"}) for a in (1, 40)]


def packed(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def case(a: int, kind: str = "stdin") -> dict[str, str]:
    return {"input": f"{a} 2\n", "output": f"{a + 2}\n", "testtype": kind}


BOTH = {"inputs": ["1 2\n", "40 2\n"], "outputs": ["3\n", "42\n"]}
HALF = [{"input": [f"{a} 2\n"], "output": [f"{a + 2}\n"]} for a in (1, 40)]
EMPTY: dict[str, list[str]] = {"input": [], "output": []}

APPS = {"problem_id": 7, "question": QUESTION, "solutions": json.dumps([SOLUTION]), "input_output": json.dumps(BOTH)}
APPS |= {"difficulty": "interview", "url": "", "starter_code": ""}
TACO = {"question": QUESTION, "solutions": [SOLUTION], "input_output": BOTH, "name": "7", "difficulty": "EASY"}
CONTESTS = {"name": "7", "description": QUESTION, "public_tests": HALF[0], "private_tests": HALF[1]}
CONTESTS |= {"generated_tests": EMPTY, "solutions": {"language": [2, 3], "solution": ["int main(){}", SOLUTION]}}
LIVE = {"question_id": "7", "question_content": QUESTION, "public_test_cases": json.dumps([case(1)])}
LIVE |= {"private_test_cases": packed([case(40)]), "platform": "atcoder", "difficulty": "easy"}
PAIRS = {"id": "7", "problem": QUESTION, "official_tests": [case(1), case(40)], "solutions": [SOLUTION]}


def loaded(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> list[Loaded]:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load("custom", source=str(path), columns=Columns(**settings))


@pytest.mark.parametrize(
    ("row", "level", "subject"),
    [
        (APPS, "interview", None),
        (TACO, "EASY", None),
        (CONTESTS, None, None),
        (LIVE, "easy", "atcoder"),
        (PAIRS, None, None),
    ],
    ids=["apps", "taco", "code-contests", "livecodebench", "pairs"],
)
@pytest.mark.parametrize("layout", ["auto", "competition"])
def test_a_row_of_each_data_set(
    tmp_path: Path, row: dict[str, Any], level: str | None, subject: str | None, layout: str
) -> None:
    [(problem, gold)] = loaded(tmp_path, row, layout=layout)
    assert (problem.problem_id, problem.task, problem.question) == ("train/7", "stdin", QUESTION)
    assert problem.tests == TESTS
    assert (problem.level, problem.subject) == (level, subject)
    assert gold == (None if row is LIVE else f"```python\n{SOLUTION}\n```")


def test_rows_that_call_a_function_are_left_out(tmp_path: Path) -> None:
    calls = APPS | {"problem_id": 8, "input_output": json.dumps(BOTH | {"fn_name": "add"})}
    functional = LIVE | {"question_id": "9", "public_test_cases": json.dumps([case(1, "functional")])}
    found = loaded(tmp_path, APPS, calls)
    assert [one.problem.problem_id for one in found] == ["train/7"]
    assert len(loaded(tmp_path, LIVE, functional)) == 1


def test_pairs_in_a_column_of_ones_own(tmp_path: Path) -> None:
    row = {"question": QUESTION, "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "40 2\n", "output": "42\n"}]}
    [(problem, _)] = loaded(tmp_path, row)
    assert (problem.task, problem.tests) == ("stdin", TESTS)
    [(problem, _)] = loaded(tmp_path, row | {"tests": json.dumps(BOTH)})
    assert (problem.task, problem.tests) == ("stdin", TESTS)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (APPS | {"input_output": "not json"}, "input_output holds no pairs of input and output: leave the row out"),
        (APPS | {"input_output": ""}, "is no competition's problem: expected a question"),
        (LIVE | {"private_test_cases": "AAAA"}, "private_test_cases cannot be unpacked"),
        (
            LIVE | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Planted()))).decode()},
            "cannot be unpacked .it names builtins.exec.",
        ),
    ],
)
def test_a_row_that_is_broken_says_what_is_wrong(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, row)


def test_the_prompt_asks_for_a_program_that_reads_standard_input(tmp_path: Path) -> None:
    [(problem, _)] = loaded(tmp_path, APPS)
    first = prompts_of("stdin").first_turn(problem)
    assert QUESTION in first and "standard input" in first and "standard output" in first


def test_solutions_pass_their_own_tests(tmp_path: Path) -> None:
    grader = ProgramGrader()
    try:
        for row in (APPS, TACO, CONTESTS, PAIRS):
            [(problem, gold)] = loaded(tmp_path, row)
            assert gold is not None
            items = [Item(problem, gold), Item(problem, gold.replace("sum", "max"))]
            assert [each.verdict for each in grader.grade(items)] == [CORRECT, INCORRECT]
    finally:
        grader.close()
