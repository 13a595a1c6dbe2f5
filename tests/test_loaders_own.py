"""A user's own problems in the shapes they come in: named columns, CSV, chats, the rows of verl and TRL."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from score_cli.cli import run_command
from score_cli.config import DataConfig
from score_cli.errors import UserError
from score_cli.stages.data import write_problems
from score_cli.tables.parquet import PROBLEMS, read_footer
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem
from score_cli.tasks.loaders import Columns, gold_responses, load, load_problems

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "What is 2*3? Answer after ####."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "6"},
    "extra_info": {"split": "train", "index": 0, "answer": "2*3=6\n#### 6"},
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    """Rows in the format that the name's ending says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load_one(path: Path, row: dict[str, Any], **options: Any) -> Problem:
    (problem,) = load_problems("custom", source=write(path, row), **options)
    return problem


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_problem(tmp_path: Path, kind: str) -> None:
    row = {"question": 'What, "exactly",\nis 1+1?', "answer": "2", "level": "5", "hint": "Count."}
    assert load_one(tmp_path / f"mine{kind}", row) == Problem(
        problem_id="custom/mine/0",
        task="math",
        question='What, "exactly",\nis 1+1?',
        answer="2",
        level="5",
        source="custom mine 0",
        extra={"hint": "Count."},
    )


def test_a_csv_file_is_text_throughout_and_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress("\ufeffquestion,answer,note\r\nQ,007,\r\nR,1.50,x\r\n".encode()))
    first, second = load_problems("custom", source=str(path))
    assert (first.answer, first.extra, second.answer, second.extra) == ("007", {}, "1.50", {"note": "x"})


def test_columns_may_be_fields_of_columns(tmp_path: Path) -> None:
    row = {"meta": {"q": "1+1?", "gold": {"value": 2}}, "a.b": 3}
    columns = Columns(question="meta.q", answer="meta.gold.value", level="a.b")
    problem = load_one(tmp_path / "a.jsonl", row, columns=columns)
    assert (problem.question, problem.answer, problem.level) == ("1+1?", "2", "3")
    assert problem.extra == {"meta": row["meta"]}


def test_a_column_called_like_a_problems_own_is_kept_under_another_name(tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "One and one are two.", "final": "2"}
    problem = load_one(tmp_path / "a.jsonl", row, columns=Columns(answer="final"))
    assert (problem.answer, problem.extra) == ("2", {"source_answer": "One and one are two."})


def test_a_reference_is_checked_and_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2", "reference": r"It is \boxed{2}."})
    (gold,) = gold_responses("custom", source=source)
    assert (gold.gold_response, gold.problem.extra) == (r"It is \boxed{2}.", {"reference": r"It is \boxed{2}."})


@pytest.mark.parametrize("column", ["question", "messages"])
def test_chat_messages_are_asked_as_they_stand(tmp_path: Path, column: str) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    for kind in ("jsonl", "parquet"):
        problem = load_one(tmp_path / f"a.{kind}", {column: chat, "answer": 2})
        assert (problem.question, problem.messages, problem.extra) == ("1+1?", chat, {})


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", ["auto", "verl"])
def test_rows_of_verl_are_read_with_what_its_rewards_are_given(tmp_path: Path, kind: str, layout: Any) -> None:
    problem = load_one(tmp_path / f"train.{kind}", VERL, columns=Columns(layout=layout))
    assert problem == Problem(
        problem_id="custom/train/0",
        task="math",
        question="What is 2*3? Answer after ####.",
        answer="6",
        subject="openai/gsm8k",
        source="custom train 0",
        messages=VERL["prompt"],  # type: ignore[arg-type]
        extra={name: VERL[name] for name in ("data_source", "ability", "reward_model", "extra_info")},
    )


def test_a_truth_that_is_no_text_is_left_to_the_users_own_grader(tmp_path: Path) -> None:
    truth = {"target": ["Rome", "Roma"]}
    row = VERL | {"reward_model": {"ground_truth": truth}}
    with pytest.raises(UserError, match=r"reward_model.ground_truth holds dict, expected text"):
        load_one(tmp_path / "a.jsonl", row)
    problem = load_one(tmp_path / "a.jsonl", row, task="search")
    assert (problem.task, problem.answer, problem.extra["reward_model"]) == ("search", None, {"ground_truth": truth})
    listed = load_one(tmp_path / "b.jsonl", {"question": "Q", "answer": ["Rome", "Roma"]}, task="search")
    assert (listed.answer, listed.extra) == (None, {"source_answer": ["Rome", "Roma"]})


@pytest.mark.parametrize(
    ("row", "answer", "extra"),
    [
        ({"prompt": "1+1?", "answer": "2"}, "2", {}),
        ({"prompt": "1+1?", "answer": 2, "difficulty": 3}, "2", {"difficulty": 3}),
        ({"prompt": "1+1?", "solution": "$2$"}, "$2$", {}),
        (
            {"prompt": "1+1?", "solution": r"Add: $\boxed{2}$."},
            "2",
            {"solution": r"Add: $\boxed{2}$."},
        ),
        (
            {"prompt": "1+1?", "answer": "1+1=2\n#### 2"},
            "2",
            {"source_answer": "1+1=2\n#### 2"},
        ),
        ({"prompt": "1+1?", "answer": "2", "solution": "Add."}, "2", {"solution": "Add."}),
    ],
)
def test_rows_of_trl_are_read_by_themselves(
    tmp_path: Path, row: dict[str, Any], answer: str, extra: dict[str, Any]
) -> None:
    problem = load_one(tmp_path / "a.jsonl", row)
    assert (problem.question, problem.messages, problem.answer, problem.extra) == ("1+1?", None, answer, extra)
    chat = [{"role": "user", "content": "1+1?"}]
    assert load_one(tmp_path / "a.jsonl", row | {"prompt": chat}) == replace(problem, messages=chat)  # type: ignore[arg-type]
    (gold,) = gold_responses("custom", source=write(tmp_path / "a.jsonl", row))
    assert gold.gold_response == f"Final Answer: The final answer is ${answer}$. I hope it is correct."


def test_a_layout_that_was_asked_for_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column question: name the question with --question-column"):
        load_one(tmp_path / "a.jsonl", VERL, columns=Columns(layout="columns"))
    with pytest.raises(UserError, match=r"lacks prompt: expected the layout trl, which has prompt"):
        load_one(tmp_path / "a.jsonl", {"question": "Q", "answer": "1"}, columns=Columns(layout="trl"))
    with pytest.raises(
        UserError, match=r"layout verl says what the columns are called: leave out --subject-column, or take"
    ):
        load_one(tmp_path / "a.jsonl", VERL, columns=Columns(layout="verl", subject="ability"))
    renamed = load_one(tmp_path / "a.jsonl", VERL, columns=Columns(question="prompt", answer="extra_info.index"))
    assert renamed.answer == "0"


def test_held_out_questions_are_nowhere_else_and_stay_held_out_when_others_come(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}+1?", "answer": n + 1} for n in range(200)]
    few, all_rows = write(tmp_path / "few.jsonl", *rows[:100]), write(tmp_path / "all.jsonl", *rows)

    def questions(source: str, split: str | None) -> set[str]:
        return {one.problem.question for one in load("custom", source=source, split=split, hold_out=0.2)}

    parts = {split: questions(all_rows, split) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 200
    assert 20 < len(parts["test"]) < 60 and 20 < len(parts["validation"]) < 60
    assert questions(all_rows, None) == parts["train"]
    assert questions(few, "test") == parts["test"] & {row["question"] for row in rows[:100]}
    shouted = write(tmp_path / "shouted.jsonl", *({**row, "question": f" {row['question'].upper()}\n"} for row in rows))
    assert len(questions(shouted, "test")) == len(parts["test"])


def test_hold_out_names_its_splits_and_is_for_ones_own_problems(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2"})
    with pytest.raises(UserError, match=r"with hold-out there is no split dev: expected train, validation, test"):
        load("custom", source=source, split="dev", hold_out=0.1)
    with pytest.raises(UserError, match=r"hold-out is for data set custom: gsm8k has splits of its own"):
        load("gsm8k", source=source, hold_out=0.1)
    with pytest.raises(UserError, match=r"has no problem of split (test|train) of custom: take another split"):
        [load("custom", source=source, split=split, hold_out=0.3) for split in ("train", "test")]


def test_every_gold_answer_is_checked_and_unserved_tasks_are_named(tmp_path: Path) -> None:
    said: list[str] = []

    class Told:
        def line(self, text: str) -> None:
            said.append(text)

    source = write(tmp_path / "a.jsonl", {"question": "Is it?", "verdict": True})
    write_problems(
        "custom",
        DataConfig(task="mine"),
        source=source,
        out=tmp_path / "p.parquet",
        progress=Told(),  # type: ignore[arg-type]
    )
    assert said == ["no grader serves task mine: its gold answers are not checked"]
    (problem,) = read_problems(tmp_path / "p.parquet")
    assert (problem.task, problem.answer, problem.extra) == ("mine", None, {"verdict": True})


def test_the_command_writes_verl_rows_with_their_layout_in_the_footer(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", VERL, VERL | {"reward_model": {"ground_truth": "7"}})
    out = tmp_path / "p.parquet"
    assert run_command(["data", "custom", "--from", source, "--layout", "verl", "--out", str(out)]) == 0
    assert [problem.answer for problem in read_problems(out)] == ["6", "7"]
    footer = read_footer(out, PROBLEMS)
    assert footer is not None and footer.config["layout"] == "verl"
    write_problems("division", DataConfig(limit=1), out=tmp_path / "d.parquet")
    built_in = read_footer(tmp_path / "d.parquet", PROBLEMS)
    assert built_in is not None and "layout" not in built_in.config
