"""MATH, GSM8K, a user's own rows, the hub, and bad input: each layout and quirk by small files made here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks.datasets_math import math500_ids
from score_cli.tasks.latex_boxes import boxed_gold, last_boxed
from score_cli.tasks.loaders import Columns, gold_responses, load_problems

SAMPLES = Path(__file__).parent.parent / "data"
HELD_OUT = "test/algebra/1072.json"
KEPT = "test/algebra/1.json"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_math(root: Path, name: str, solution: str, **fields: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"problem": f"Problem {name}", "level": "Level 3", "type": "Algebra", "solution": solution, **fields}
    path.write_text(json.dumps(row), encoding="utf-8")


def by_id(problems: list[Problem]) -> dict[str, Problem]:
    return {problem.problem_id: problem for problem in problems}


# MATH


def test_math_split_follows_the_original_ids(tmp_path: Path) -> None:
    for name in ("train/algebra/0.json", KEPT, HELD_OUT):
        write_math(tmp_path, name, r"\boxed{1}")
    assert HELD_OUT in math500_ids() and KEPT not in math500_ids()
    source = str(tmp_path)

    def ids(dataset: str, split: str | None) -> set[str]:
        return {problem.problem_id for problem in load_problems(dataset, source=source, split=split)}

    train, kept, held_out = "math/train/algebra/0", "math/test/algebra/1", "math/test/algebra/1072"
    assert ids("math", None) == ids("math", "train") == {train, kept}
    assert ids("math", "test") == ids("math500", None) == {held_out}
    assert ids("math", "official-train") == {train}
    assert ids("math", "official-test") == {kept, held_out}
    assert ids("math", "all") == {train, kept, held_out}


def test_math_reads_a_problem(tmp_path: Path) -> None:
    write_math(tmp_path, "train/counting_and_probability/7.json", r"So $\boxed{\frac{1}{2}}$.", type="Counting")
    assert load_problems("math", source=str(tmp_path)) == [
        Problem(
            problem_id="math/train/counting_and_probability/7",
            task="math",
            question="Problem train/counting_and_probability/7.json",
            answer=r"\frac{1}{2}",
            level="3",
            subject="Counting",
            source="math train/counting_and_probability/7.json",
        )
    ]


def test_math_given_as_its_train_folder_keeps_the_ids(tmp_path: Path) -> None:
    write_math(tmp_path, "train/algebra/5.json", r"\boxed{1}")
    assert [p.problem_id for p in load_problems("math", source=str(tmp_path / "train"))] == ["math/train/algebra/5"]


def test_math_empty_box_is_zero_in_the_two_known_problems_alone(tmp_path: Path) -> None:
    for number in (7115, 7117, 9000):
        write_math(tmp_path, f"train/number_theory/{number}.json", r"The answer is $\boxed{}$.")
    answers = {key: problem.answer for key, problem in by_id(load_problems("math", source=str(tmp_path))).items()}
    assert answers == {
        "math/train/number_theory/7115": "0",
        "math/train/number_theory/7117": "0",
        "math/train/number_theory/9000": None,
    }


def test_math_unknown_level_is_null(tmp_path: Path) -> None:
    write_math(tmp_path, "train/geometry/377.json", r"\boxed{1}", level="Level ?")
    assert load_problems("math", source=str(tmp_path))[0].level is None


def test_math_duplicates_are_kept_under_their_own_ids(tmp_path: Path) -> None:
    for number in (1, 2):
        write_math(tmp_path, f"train/algebra/{number}.json", r"\boxed{1}", problem="The same.")
    loaded = load_problems("math", source=str(tmp_path))
    assert [problem.question for problem in loaded] == ["The same.", "The same."]
    assert len(by_id(loaded)) == 2


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"First $\boxed{1}$, then $\boxed{2}$.", "2"),
        (r"so $x = \boxed 2$.", "2"),
        (r"so $x = \boxed {3}$.", "3"),
        (r"$\boxed{4}$, for $\boxed{}$ is empty", "4"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed{\left\{ x \right.}$", r"\left\{ x \right."),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"$\fbox{5}$", "5"),
        (r"\boxed{6", None),
        (r"\boxedeqn{7}", None),
        (r"\boxed{}", ""),
        ("7", None),
    ],
)
def test_gold_is_the_last_filled_box(solution: str, gold: str | None) -> None:
    assert boxed_gold(solution) == gold


def test_a_responses_box_needs_braces() -> None:
    assert last_boxed(r"\boxed{1} and \boxed 2$") == "1"
    assert last_boxed(r"\boxed 2$") is None
    assert last_boxed(r"\boxed{}") is None


def test_math_copy_with_ids_and_answers_is_the_same_problem(tmp_path: Path) -> None:
    row = {"problem": "P", "solution": r"\boxed{7.0}", "answer": "7", "subject": "Algebra", "level": 5}
    pq.write_table(pa.Table.from_pylist([{**row, "unique_id": HELD_OUT}]), tmp_path / "test-00000-of-00001.parquet")
    (problem,) = load_problems("math500", source=str(tmp_path))
    assert problem.problem_id == "math/test/algebra/1072"
    assert (problem.answer, problem.level, problem.subject) == ("7", "5", "Algebra")


def test_math_copy_without_ids_offers_the_authors_split_alone(tmp_path: Path) -> None:
    row = {"problem": "P", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{}"}
    for part in ("train", "test"):
        write_lines(tmp_path / f"{part}.jsonl", [row, row])
    loaded = load_problems("math", source=str(tmp_path), split="official-train")
    assert {problem.problem_id: problem.answer for problem in loaded} == {"math/train/0": "0", "math/train/1": "0"}
    with pytest.raises(UserError, match=r"has no unique_id, so MATH500's problems cannot be told from the others"):
        load_problems("math", source=str(tmp_path))


def test_math_limit_is_a_mixture_in_an_order_that_files_do_not_change(tmp_path: Path) -> None:
    rows = []
    for subject in ("algebra", "geometry", "precalculus"):
        for number in range(40):
            write_math(tmp_path / "folder", f"train/{subject}/{number}.json", r"\boxed{1}", type=subject)
            unique_id = f"train/{subject}/{number}.json"
            rows.append({"problem": f"Problem {unique_id}", "solution": r"\boxed{1}", "unique_id": unique_id})
    from_folder = load_problems("math", source=str(tmp_path / "folder"), limit=20)
    from_lines = load_problems("math", source=write_lines(tmp_path / "m.jsonl", rows), limit=20)
    assert len({problem.subject for problem in from_folder}) == 3
    assert [problem.problem_id for problem in from_folder] == [problem.problem_id for problem in from_lines]


# GSM8K


def test_gsm8k_gold_follows_the_hashes_without_commas(tmp_path: Path) -> None:
    row = {"question": "How much?", "answer": "It is <<1+1=2>>2 thousand.\n#### 2,000"}
    source = write_lines(tmp_path / "train.jsonl", [row])
    (problem,) = load_problems("gsm8k", source=source)
    assert (problem.problem_id, problem.task, problem.answer) == ("gsm8k/train/0", "math", "2000")
    (gold,) = gold_responses("gsm8k", source=source)
    assert gold.gold_response == (
        "It is <<1+1=2>>2 thousand.\nFinal Answer: The final answer is $2000$. I hope it is correct."
    )


def test_gsm8k_split_is_the_file_of_that_name(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_lines(tmp_path / f"{part}.jsonl", [{"question": part, "answer": "#### 1"}])
    assert [p.question for p in load_problems("gsm8k", source=str(tmp_path))] == ["train"]
    assert [p.question for p in load_problems("gsm8k", source=str(tmp_path), split="test")] == ["test"]
    with pytest.raises(UserError, match=r"train.jsonl has no split test: its files or splits are train"):
        load_problems("gsm8k", source=str(tmp_path / "train.jsonl"), split="test")


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('\ufeff{"question": "a\u2028b", "answer": "#### 1"}\n', encoding="utf-8")
    assert load_problems("gsm8k", source=str(path))[0].question == "a\u2028b"


# The user's own


def test_custom_columns_are_named_by_the_user(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mine.jsonl", [{"q": "1+1?", "gold": 2, "topic": "sums"}])
    columns = Columns(question="q", answer="gold", subject="topic")
    assert load_problems("custom", source=source, columns=columns) == [
        Problem(
            problem_id="custom/mine/0",
            task="math",
            question="1+1?",
            answer="2",
            subject="sums",
            source="custom mine 0",
        )
    ]
    (gold,) = gold_responses("custom", source=source, columns=columns)
    assert gold.gold_response == "Final Answer: The final answer is $2$. I hope it is correct."


def test_custom_programs_keep_their_tests(tmp_path: Path) -> None:
    rows = [
        {"question": "Q", "tests": ["assert f() == 1"], "reference": "def f(): return 1"},
        {"question": "Q", "tests": "def check(c): ...", "entry_point": "g", "problem_id": "mine"},
    ]
    source = write_lines(tmp_path / "mine.jsonl", rows)
    first, second = load_problems("custom", source=source)
    assert (first.task, first.tests) == ("mbpp", ["assert f() == 1"])
    assert (second.task, second.tests, second.problem_id) == ("humaneval", ["def check(c): ..."], "mine")
    assert [gold.gold_response for gold in gold_responses("custom", source=source)] == ["def f(): return 1", None]


# Bad input


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        ("gsm8k", "a.jsonl", '{"question": "Q"}\n', "line 1 lacks answer: expected the layout of GSM8K, which has"),
        ("gsm8k", "a.jsonl", '{"question": "Q", "answer": "7"}\n', "line 1: no gold answer after ####"),
        (
            "gsm8k",
            "a.jsonl",
            '{"question": "Q", "answer": "#### 1"}\n{"question": "Q"\n',
            "a.jsonl line 2 is not JSON (Expecting ',' delimiter at column 17): expected one object per line",
        ),
        ("custom", "a.csv", "question;answer\n1+1?;2\n", "a.csv has ';' between its names, expected commas: save it"),
        ("gsm8k", "a.jsonl", "3\n", "line 1 holds int, expected an object"),
        ("gsm8k", "a.jsonl", "\n", "holds no rows: expected one problem per row"),
        ("gsm8k", "a.xlsx", "q,a\n", "is of no known kind: expected a name ending in .jsonl"),
        ("custom", "a.csv", "", "is not a readable CSV file (empty"),
        ("custom", "a.csv", "question,answer\n1,2,3\n", "expected a line of names, and as many values in each row"),
        ("custom", "a.csv", "question,answer\n", "holds no rows: expected one problem per row"),
        ("custom", "a.csv", "question,answer\nQ,\n", "line 2 has nothing in answer: fill it in"),
        (
            "custom",
            "a.csv",
            "question,answer\n,7\n",
            "line 2 has nothing in question: fill it in, or leave the row out",
        ),
        ("custom", "a.csv", "Question,Answer\nQ,7\n", "line 2 has no column question: did you mean Question? name"),
        ("custom", "a.csv", "question,answer\nQ,nan\n", "line 2: answer holds nan, which stands for no value"),
        (
            "custom",
            "a.jsonl",
            '{"question": "Q", "answer": NaN}\n',
            "line 1: answer holds nan, expected text or a number",
        ),
        ("custom", "a.jsonl", '{"question": "Q", "answer": [1, 2]}\n', "answer holds a list of 2 values, expected one"),
        (
            "custom",
            "a.jsonl",
            '{"question": [{"role": "assistant", "content": "A"}], "answer": 1}\n',
            "line 1: question holds a chat that ends with one of assistant",
        ),
        (
            "custom",
            "a.jsonl",
            '{"prompt": "Q", "reward_model": {"ground_truth": {"target": ["1", "2"]}}}\n',
            "line 1: reward_model.ground_truth holds dict, expected text",
        ),
        ("gsm8k", "a.parquet", "PAR0", "is not a readable Parquet file"),
        ("gsm8k", "a.jsonl.gz", "plain", "cannot be read: Not a gzipped file"),
        ("mbpp", "a.jsonl", '{"task_id": "x"}\n', "line 1 lacks text, code, test_list: expected the layout of MBPP"),
        (
            "custom",
            "a.jsonl",
            '{"question": "Q", "tests": [" "]}\n',
            "line 1: tests holds no test, expected at least one",
        ),
        ("humaneval", "a.jsonl", '{"task_id": "x"}\n', "lacks prompt, entry_point, canonical_solution, test: expected"),
        ("math", "a.jsonl", '{"problem": "P", "unique_id": "train/algebra/1.json"}\n', "lacks solution: expected"),
        ("math", "a.jsonl", '{"problem": "P", "solution": "7", "unique_id": "train/a/1.json"}\n', "no solution has a"),
        ("math500", "a.jsonl", '{"problem": "P", "solution": "7", "unique_id": "train/a/1.json"}\n', "of split test"),
        ("custom", "a.jsonl", '{"problem": "P"}\n', "no column question: name the question with --question-column"),
        (
            "custom",
            "a.jsonl",
            '{"question": "P", "answer": ""}\n',
            "line 1 has nothing in answer: fill it in, or leave",
        ),
        (
            "custom",
            "a.json",
            '[{"question": "P", "answer": 1}, {"question": "P", "answer": [" "]}]',
            "row 2 has nothing",
        ),
        ("custom", "a.jsonl", '{"question": " ", "answer": "1"}\n', "line 1 has nothing in question: fill it in"),
        ("custom", "a.jsonl", '{"prompt": "P", "solution": ""}\n', "line 1 has nothing in solution: fill it in"),
        (
            "custom",
            "a.jsonl",
            '{"prompt": "P", "reward_model": {"ground_truth": ""}}\n',
            "line 1 has nothing in reward_model.ground_truth",
        ),
        ("custom", "a.jsonl", '{"question": "P"}\n', "has neither an answer (column answer) nor tests (column tests)"),
        ("custom", "a.jsonl", '{"question": ["P"], "answer": 1}\n', "line 1: question holds list, expected text"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, dataset: str, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_problems(dataset, source=str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("mat", {}, "no data set is named mat: did you mean math?"),
        ("math", {"split": "dev"}, "math has no split dev: expected train, test, official-train, official-test, all"),
        ("mbpp", {"shots": 4}, "shots is 4, expected 0 to 3"),
        ("humaneval", {"limit": 0}, "limit is 0, expected at least 1 problem"),
        ("humaneval", {"task": "math"}, "columns and task are for data set custom"),
    ],
)
def test_bad_options_are_one_line(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_problems(dataset, source=str(SAMPLES / "humaneval.jsonl"), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_blank_line_of_a_csv_file_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n1+1?,2\n\n,\n2+2?,4\n\n")
    problems = load_problems("custom", source=str(tmp_path / "a.csv"))
    assert [(each.problem_id, each.answer) for each in problems] == [("custom/a/0", "2"), ("custom/a/1", "4")]


def test_a_renamed_column_must_be_there(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"question": "Q", "answer": "1"}])
    for columns, message in (
        (Columns(level="grade"), "grade: name the level with --level-column; the columns are question, answer"),
        (
            Columns(answer="ansewr"),
            "ansewr: did you mean answer? name the answer with --answer-column; the columns are question, answer",
        ),
    ):
        with pytest.raises(UserError) as caught:
            load_problems("custom", source=source, columns=columns)
        assert str(caught.value) == f"{source} line 1 has no column {message}"


def test_a_line_of_a_csv_file_is_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\n"question",answer\n"How much\nis 1+1?",2\n\n2+2?,\n')
    with pytest.raises(UserError, match=r"a\.csv line 6 has nothing in answer"):
        load_problems("custom", source=str(path))


def test_a_blank_answer_is_none_where_tests_or_a_grader_of_ones_own_decide(tmp_path: Path) -> None:
    row = {"question": "Q", "answer": " ", "tests": ["assert f() == 1"]}
    (tested,) = load_problems("custom", source=write_lines(tmp_path / "a.jsonl", [row]))
    (own,) = load_problems("custom", source=write_lines(tmp_path / "b.jsonl", [{"question": "Q"}]), task="mine")
    assert (tested.answer, own.answer) == (None, None)


def test_one_id_twice_is_refused(tmp_path: Path) -> None:
    rows = [{"problem_id": name, "question": "Q", "answer": "1"} for name in ("p1", "p2", "p1")]
    source = write_lines(tmp_path / "mine.jsonl", rows)
    with pytest.raises(UserError) as caught:
        load_problems("custom", source=source)
    assert str(caught.value) == (
        f"{source} line 3 has the id of {source} line 1, p1, expected its own: leave one of the two out, or name "
        "another column with --id-column"
    )


def test_the_files_of_one_split_give_each_row_a_name_of_its_own(tmp_path: Path) -> None:
    for number, count in ((0, 2), (1, 1)):
        rows = [{"question": f"{number} + {row}?", "answer": number + row} for row in range(count)]
        write_lines(tmp_path / f"train-0000{number}-of-00002.jsonl", rows)
    problems = load_problems("custom", source=str(tmp_path))
    assert [(each.problem_id, each.question) for each in problems] == [
        ("custom/train/0", "0 + 0?"),
        ("custom/train/1", "0 + 1?"),
        ("custom/train/2", "1 + 0?"),
    ]


def test_a_folder_without_data_names_its_folders(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    with pytest.raises(UserError, match=r"holds no data file, expected .*: name one of its folders \(main\)"):
        load_problems("gsm8k", source=str(tmp_path))


@pytest.mark.parametrize("source", ["nowhere.jsonl", "data/nowhere.jsonl.gz", "./nowhere", "nowhere"])
def test_a_missing_path_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(UserError, match=r"does not exist: expected a file"):
        load_problems("gsm8k", source=source)


# The hub


def test_hub_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"openai/gsm8k is no file or folder here, .* pip install 'score-cli\[hub\]', or give"
    ):
        load_problems("gsm8k", source="openai/gsm8k")


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> list[str]:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\n(offline)")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(get_dataset_config_names=unreachable))
    with pytest.raises(UserError) as caught:
        load_problems("gsm8k", source="openai/gsm8k")
    assert str(caught.value) == (
        "the Hugging Face data set openai/gsm8k cannot be loaded (Couldn't reach 'openai/gsm8k' on the Hub): "
        "check the id and the network, or give the path of a downloaded copy"
    )


def test_hub_reads_the_datasets_own_configuration_and_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str) -> dict[str, list[dict[str, str]]]:
        return {part: [{"question": f"{config} {part}", "answer": "#### 1"}] for part in ("train", "test")}

    hub = SimpleNamespace(get_dataset_config_names=lambda name: ["main", "socratic"], load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    (problem,) = load_problems("gsm8k", source="openai/gsm8k", split="test")
    assert (problem.problem_id, problem.question) == ("gsm8k/test/0", "main test")
