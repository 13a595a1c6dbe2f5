"""Problems of one's own: which tables are taken, what becomes of each value, and what comes back out."""

import datetime
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from score_cli.cli import run_command
from score_cli.config import DataConfig
from score_cli.errors import UserError
from score_cli.show import own_problems
from score_cli.stages.data import write_problems
from score_cli.tables.parquet import PROBLEMS, count_rows, read_footer
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer
from score_cli.tables.records import Problem
from score_cli.verification.grader import without_gold

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def hand_made(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def read_one(path: Path, **values: Any) -> Problem:
    columns = {"problem_id": "p", "question": "1+1?", "answer": "2"} | values
    (problem,) = read_problems(hand_made(path / "p.parquet", **{name: [value] for name, value in columns.items()}))
    return problem


def copy_of(problems: list[Problem], path: Path) -> list[Problem]:
    write_problems_table(path, problems, Footer(table="problems", stage="run"))
    return read_problems(path)


def test_the_optional_columns_may_be_absent(tmp_path: Path) -> None:
    path = hand_made(
        tmp_path / "p.parquet", problem_id=["p"], task=["math"], question=["1+1?"], source=["mine"], answer=["2"]
    )
    assert read_problems(path) == [
        Problem(problem_id="p", task="math", question="1+1?", answer="2", source="mine"),
    ]
    assert count_rows(path, PROBLEMS) == 1


def test_a_file_that_is_no_table_yet_is_answered_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("question,answer\n1+1?,2\n")
    with pytest.raises(UserError, match=r"p.csv is no problems table: `score data custom --from \S+p.csv` makes one"):
        read_problems(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ({"answer": "2"}, "math"),
        ({"answer": None, "tests": ["assert f() == 1"]}, "mbpp"),
        ({"answer": None, "tests": ["def check(c): ..."], "entry_point": "f"}, "humaneval"),
        ({"task": "division"}, "division"),
    ],
)
def test_a_task_that_is_not_named_is_told_by_answer_or_tests(
    tmp_path: Path, columns: dict[str, Any], task: str
) -> None:
    assert read_one(tmp_path, **columns).task == task
    assert read_one(tmp_path, **columns).source == "own"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (2.5, "2.5"),
        (1e-07, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (Decimal("3.50"), "3.50"),
        (["7"], "7"),
        ([7], "7"),
        ([[Decimal("1E+2")]], "100"),
        ("a\r\nb", "a\nb"),
        (None, None),
    ],
)
def test_an_answer_is_taken_as_its_text(tmp_path: Path, value: Any, text: str | None) -> None:
    assert read_one(tmp_path, task="math", answer=value).answer == text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": math.nan}, r"row 1: column answer holds nan, expected text or a number"),
        ({"answer": "NaN"}, r"row 1: column answer holds NaN, which stands for no value"),
        ({"answer": [math.nan]}, r"row 1: column answer holds nan"),
        ({"answer": math.inf}, r"row 1: column answer holds inf"),
        ({"answer": ["1", "2"]}, r"column answer holds a list of 2 values, expected one answer"),
        ({"answer": True}, r"column answer holds bool, expected text"),
        ({"answer": {"value": 1}}, r"column answer holds dict, expected text"),
        ({"level": ["5"]}, r"column level holds list, expected text"),
        ({"tests": [1]}, r"column tests holds a list of int, expected a list of texts"),
        ({"tests": ["a", None]}, r"column tests holds a list of NoneType, str, expected a list of texts"),
        ({"problem_id": None}, r"p.parquet row 1: column problem_id is empty: fill it in"),
        ({"question": {"text": "?"}}, r"column question holds dict, expected text"),
    ],
)
def test_wrong_values_are_named_in_one_line(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_one(tmp_path, **columns)
    assert "\n" not in str(caught.value)


def test_a_table_without_questions_or_without_anything_to_grade_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is not a problems table: it lacks question \(expected problem_id, question.*: `score data cu"
    ):
        read_problems(hand_made(tmp_path / "a.parquet", problem_id=["p"], answer=["2"]))
    with pytest.raises(UserError, match=r"it lacks task, and neither answer nor tests tells which it is: add a column"):
        read_problems(hand_made(tmp_path / "b.parquet", problem_id=["p"], question=["1+1?"]))


def test_unknown_columns_are_kept_and_stand_in_the_row_that_graders_get(tmp_path: Path) -> None:
    problem = read_one(tmp_path, task="mine", rubric={"steps": [1, 2]}, weight=0.5)
    assert problem.extra == {"rubric": {"steps": [1, 2]}, "weight": 0.5}
    assert problem.row() == {
        "problem_id": "p",
        "task": "mine",
        "question": "1+1?",
        "answer": "2",
        **dict.fromkeys(("tests", "entry_point", "setup", "level", "subject")),
        "source": "own",
        "rubric": {"steps": [1, 2]},
        "weight": 0.5,
    }


@pytest.mark.parametrize(
    "values",
    [
        ["a", None],
        [1, 2],
        [0.1, math.inf],
        [True, None],
        [None, None],
        [datetime.datetime(2025, 1, 2, 3), None],
        [Decimal("1.50"), Decimal("22.75")],
        [b"\x00\xff", b""],
        [2**70, 1],
        [{"a": 1}, {"b": [None, "x", {"c": 1.5}]}],
        [1, "one"],
        [[1, "two", None], []],
        [[datetime.date(2025, 1, 2)], None],
    ],
)
def test_extra_values_survive_being_copied(tmp_path: Path, values: list[Any]) -> None:
    problems = [
        Problem(problem_id=f"p{place}", task="mine", question="?", source="own", extra={"x": value})
        for place, value in enumerate(values)
    ]
    once = copy_of(problems, tmp_path / "a.parquet")
    assert [problem.extra["x"] for problem in once] == values
    assert [type(problem.extra["x"]) for problem in once] == [type(value) for value in values]
    assert copy_of(once, tmp_path / "b.parquet") == problems
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_problem_without_an_extra_column_has_null_there(tmp_path: Path) -> None:
    problems = [
        Problem(problem_id="a", task="t", question="?", source="own", extra={"x": 1}),
        Problem(problem_id="b", task="t", question="?", source="own"),
    ]
    assert [problem.extra for problem in copy_of(problems, tmp_path / "p.parquet")] == [{"x": 1}, {"x": None}]


def test_an_extra_value_that_no_table_holds_is_refused(tmp_path: Path) -> None:
    problem = Problem(problem_id="a", task="t", question="?", source="own", extra={"x": {1j}})
    with pytest.raises(UserError, match=r"column x cannot be kept in a table \(it holds set\)"):
        copy_of([problem], tmp_path / "p.parquet")
    assert not list(tmp_path.iterdir())


def test_a_chat_asks_by_itself_and_its_last_turn_is_the_question(tmp_path: Path) -> None:
    problem = read_one(tmp_path, question=CHAT)
    assert (problem.question, problem.messages) == ("1+1?", CHAT)
    assert copy_of([problem], tmp_path / "copy.parquet") == [problem]
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]
    assert read_one(tmp_path, question=parts).messages == [{"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"content": "1+1?"}], r"column question holds list, expected text, or a chat of messages with role and"),
        ([CHAT[1], {"role": "assistant", "content": "2"}], r"holds a chat that ends with one of assistant, expected"),
        ([CHAT[1], CHAT[0], CHAT[1]], r"holds a system message after the first, expected it to open the chat"),
        ([{"role": "tool", "content": "2"}], r"column question, message 0 has role tool, expected one of system, user"),
        (["1+1?"], r"column question holds list, expected text, or a chat of messages with role and content"),
        ([{"role": "user", "content": None}], r"message 0 has content of NoneType, expected text"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}],
            r"message 0 has a part that is not text: leave out what shows pictures",
        ),
    ],
)
def test_a_chat_that_asks_nothing_is_refused(tmp_path: Path, chat: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_one(tmp_path, question=chat)


def test_a_hand_made_table_goes_through_every_command(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chats = [[{"role": "user", "content": f"Divide {100 + n} by 5. "}] for n in range(3)]
    hand_made(Path("problems.parquet"), problem_id=["a", "b", "c"], question=chats, answer=[20, 20, 20], note=[1, 2, 3])
    small = ["--samples", "2", "--max-tokens", "6", "--threads", "1"]
    for command in (
        ["sample", "--model", str(checkpoint), *small],
        ["verify"],
        ["eval", "--traces", "traces.parquet", "--rewards", "rewards.parquet", "--problems", "problems.parquet"],
        ["show", "--limit", "1"],
        ["eval", "--model", str(checkpoint), *small, "--problems", "problems.parquet", "--out", "own.parquet"],
    ):
        assert run_command(command) == 0, capsys.readouterr().err
    assert "Divide 100 by 5." in capsys.readouterr().out


def test_problems_without_an_answer_are_sampled_with_a_word_and_not_trained_or_measured_on(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = {"question": ["Divide 100 by 5. ", "Divide 102 by 5. "], "answer": ["", " "], "task": ["division"] * 2}
    hand_made(Path("bare.parquet"), problem_id=["a", "b"], **bare)
    hand_made(Path("gold.parquet"), problem_id=["c"], question=["Divide 104 by 5. "], answer=["20"], task=["division"])
    Path("half.py").write_text("def grade(problem, response): return 0.5\n")
    Path("run.toml").write_text("[sample]\nmax_tokens = 6\n[run]\nstage1_iterations = 1\n")
    small = ["--model", str(checkpoint), "--samples", "2", "--max-tokens", "6", "--threads", "1"]
    assert run_command(["sample", *small, "--problems", "bare.parquet"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "bare.parquet: no problem of task division has anything to be graded by: only a grader of your own "
        "(`score verify --grader`) can tell what its traces are worth"
    )
    refusal = (
        "score: bare.parquet: no problem of task division has anything in column answer, by which it is graded: fill "
        "it in, or grade with a function of your own (--grader, or [verify] grader)"
    )
    run = ["run", "run.toml", "--model", str(checkpoint), "--out", "run"]
    for command in (
        ["eval", *small, "--problems", "bare.parquet", "--out", "own.parquet"],
        [*run, "--problems", "bare.parquet", "--eval-problems", "gold.parquet"],
        [*run, "--problems", "gold.parquet", "--eval-problems", "bare.parquet"],
    ):
        assert run_command(command) == 2
        assert capsys.readouterr().err.splitlines()[-1] == refusal
    own = ["eval", *small, "--problems", "bare.parquet", "--out", "own.parquet", "--grader", "half.py"]
    assert run_command(own) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("problems", "task"),
    [
        ([("math", None, None), ("math", " ", None)], "math"),
        ([("math", None, None), ("math", "1", None)], None),
        ([("math", "1", None), ("stdin", "2", [])], "stdin"),
        ([("mbpp", None, ["assert f()"]), ("of one's own", None, None)], None),
    ],
)
def test_what_nothing_tells_the_answers_of_is_a_task_without_any(
    problems: list[tuple[str, str | None, list[str] | None]], task: str | None
) -> None:
    made = [
        Problem(problem_id=str(n), task=of, question="Q", answer=answer, tests=tests, source="test")
        for n, (of, answer, tests) in enumerate(problems)
    ]
    assert without_gold(made) == task


def test_show_asks_the_problems_of_the_run_that_traces_lie_in(tmp_path: Path) -> None:
    update, evaluation = tmp_path / "iterations/0002/traces.parquet", tmp_path / "eval/base-greedy.traces.parquet"
    for split in ("train", "test"):
        hand_made(tmp_path / f"{split}.parquet", problem_id=["p"], question=["1+1?"])
    assert (own_problems(update), own_problems(evaluation)) == (None, None), "no run's folder: any other problems"
    (tmp_path / "config.json").write_text("{}")
    assert (own_problems(update), own_problems(evaluation)) == (tmp_path / "train.parquet", tmp_path / "test.parquet")
    assert own_problems(tmp_path / "traces.parquet") is None
    hand_made(tmp_path / "problems.parquet", problem_id=["p"], question=["1+1?"])
    assert own_problems(tmp_path / "traces.parquet") == tmp_path / "problems.parquet"


def test_a_table_of_polars_is_taken_with_categories_and_small_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"problem_id": [1, 2], "question": ["a", "b"], "answer": [3, 4], "level": ["5", "5"]},
        schema={"problem_id": pl.Int64, "question": pl.String, "answer": pl.Int8, "level": pl.Categorical},
    )
    frame.write_parquet(tmp_path / "p.parquet")
    problems = read_problems(tmp_path / "p.parquet")
    assert [(p.problem_id, p.answer, p.level) for p in problems] == [("1", "3", "5"), ("2", "4", "5")]


def test_tables_of_built_in_problems_have_the_known_columns_alone(tmp_path: Path) -> None:
    write_problems("division", DataConfig(limit=3), out=tmp_path / "p.parquet")
    assert pq.read_schema(tmp_path / "p.parquet").names == PROBLEMS.schema.names
    footer = read_footer(tmp_path / "p.parquet", PROBLEMS)
    assert footer is not None and footer.stage == "data"
