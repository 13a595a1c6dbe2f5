"""MBPP, HumanEval and their EvalPlus forms: layouts, prompts and hidden tests, by small files made here."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks.loaders import gold_responses, load_problems

HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """Twice x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mbpp_row(number: int, **fields: Any) -> dict[str, Any]:
    row = {"text": f"Task {number}.", "code": f"def f{number}():\r\n    return {number}", "task_id": number}
    tests = {"test_setup_code": "", "test_list": [f"assert f{number}() == {number}"], "challenge_test_list": []}
    return {**row, **tests, **fields}


def test_mbpp_line_ends_are_normalised_and_setup_kept(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mbpp.jsonl", [mbpp_row(601, test_setup_code="a = 1\r\nb = 2")])
    (problem,) = load_problems("mbpp", source=source, shots=0)
    assert (problem.problem_id, problem.setup, problem.tests) == ("mbpp/601", "a = 1\nb = 2", ["assert f601() == 601"])
    assert gold_responses("mbpp", source=source)[0].gold_response == "def f601():\n    return 601"


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("prompt", [2, 3, 4, 10]),
        ("test", [11, 510]),
        ("validation", [511, 600]),
        ("train", [601, 974]),
        ("all", [2, 3, 4, 10, 11, 510, 511, 600, 601, 974]),
    ],
)
def test_mbpp_splits_are_ranges_of_ids(tmp_path: Path, split: str, numbers: list[int]) -> None:
    rows = [mbpp_row(number) for number in (2, 3, 4, 10, 11, 510, 511, 600, 601, 974)]
    loaded = load_problems("mbpp", source=write_lines(tmp_path / "mbpp.jsonl", rows), split=split)
    assert [problem.problem_id for problem in loaded] == [f"mbpp/{number}" for number in numbers]


def test_mbpp_question_shows_tasks_2_3_4_of_the_same_file(tmp_path: Path) -> None:
    rows = [mbpp_row(number) for number in (4, 3, 2, 601)]
    source = write_lines(tmp_path / "mbpp.jsonl", rows)
    (problem,) = load_problems("mbpp", source=source)
    asked = "You are an expert Python programmer, and here is your task: Task {0}. Your code should pass these tests:"
    shot = asked + "\n\nassert f{0}() == {0}\n[BEGIN]\ndef f{0}():\n    return {0}\n[DONE]\n\n"
    last = asked.format(601) + "\n\nassert f601() == 601\n[BEGIN]\n"
    assert problem.question == "".join(shot.format(number) for number in (2, 3, 4)) + last
    (bare,) = load_problems("mbpp", source=source, shots=0)
    assert bare.question == last


@pytest.mark.parametrize("count", [0, 1, 2, 3, None])
def test_mbpp_may_show_fewer_tests_than_are_graded(tmp_path: Path, count: int | None) -> None:
    graded = ["assert f601() == 601", "assert f601() > 600", "assert f601() < 602"]
    helped = "def helper(x):\n    return x\ndef f601(a=1, *b):\n    return helper(601)"
    rows = [mbpp_row(number) for number in (2, 3, 4)] + [mbpp_row(601, test_list=graded, code=helped)]
    source = write_lines(tmp_path / "mbpp.jsonl", rows)
    (problem,) = load_problems("mbpp", source=source, shown_tests=count)
    assert problem.tests == graded
    shown = graded[:count]
    *shots, asked = problem.question.split("[DONE]")
    assert [line for line in asked.splitlines() if line.startswith("assert")] == shown
    assert ("def f601(a=1, *b):" in asked, "def helper" in asked) == (count == 0, False)
    assert ["assert" in shot for shot in shots] == [count != 0] * 3
    assert asked.endswith("\n[BEGIN]\n")


def test_shown_tests_are_for_mbpp_alone(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [HUMANEVAL_ROW])
    with pytest.raises(UserError, match="shown-tests is for mbpp and mbpp-sanitized, .* not humaneval"):
        load_problems("humaneval", source=source, shown_tests=1)


def test_mbpp_shot_does_not_see_its_own_solution(tmp_path: Path) -> None:
    rows = [mbpp_row(number) for number in (2, 3, 4)]
    loaded = load_problems("mbpp", source=write_lines(tmp_path / "mbpp.jsonl", rows), split="prompt")
    assert ["return 3" in problem.question for problem in loaded] == [True, False, True]


def test_mbpp_without_its_shots_says_what_to_do(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mbpp.jsonl", [mbpp_row(2), mbpp_row(601)])
    with pytest.raises(
        UserError, match=r"shows tasks 2, 3, 4, but the source lacks 3, 4: give all of it, or take 0 shot"
    ):
        load_problems("mbpp", source=source)


def test_sanitized_mbpp_takes_its_imports_as_setup(tmp_path: Path) -> None:
    row = mbpp_row(82, prompt="Task 82.", test_imports=["import math", "import re"])
    del row["text"], row["test_setup_code"], row["challenge_test_list"]
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([row]))
    write_lines(tmp_path / "mbpp.jsonl", [mbpp_row(82)])
    (problem,) = load_problems("mbpp-sanitized", source=str(tmp_path), split="test", shots=0)
    assert (problem.problem_id, problem.setup) == ("mbpp-sanitized/82", "import math\nimport re")


def test_humaneval_is_asked_by_the_functions_head(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL_ROW).encode()))
    (problem,) = load_problems("humaneval", source=str(tmp_path))
    assert problem == Problem(
        problem_id="humaneval/0",
        task="humaneval",
        question=HUMANEVAL_ROW["prompt"],
        tests=[HUMANEVAL_ROW["test"]],
        entry_point="twice",
        source="humaneval HumanEval/0",
    )
    (gold,) = gold_responses("humaneval", source=str(tmp_path))
    assert gold.gold_response == 'def twice(x):\n    """Twice x."""\n    return 2 * x\n'


def plus_block(tmp_path: Path, dataset: str = "humanevalplus", **fields: Any) -> str:
    plus = {"base_input": [[1]], "plus_input": [[3], [0]], "atol": 0, **fields}
    row = {key: value for key, value in {**HUMANEVAL_ROW, **plus}.items() if key != "test"}
    (problem,) = load_problems(dataset, source=write_lines(tmp_path / "plus.jsonl", [row]))
    assert problem.tests is not None and len(problem.tests) == 1
    return problem.tests[0]


def passes(block: str, candidate: Callable[..., Any]) -> bool:
    names: dict[str, Any] = {"check": candidate}
    exec(block, names)
    try:
        names["check"](candidate)
    except AssertionError:
        return False
    return True


def test_humanevalplus_compares_with_the_reference_on_every_input(tmp_path: Path) -> None:
    block = plus_block(tmp_path)
    assert passes(block, lambda x: x + x)
    assert not passes(block, lambda x: 2), "right on the base input alone"
    assert not passes(block, lambda x: 2 * x + 1e-7), "integers are compared exactly"


def test_humanevalplus_compares_floats_with_a_tolerance(tmp_path: Path) -> None:
    block = plus_block(tmp_path, plus_input=[[0.5]], base_input=[])
    assert passes(block, lambda x: 2 * x + 1e-7)
    assert not passes(block, lambda x: 2 * x + 1e-3)
    assert not passes(block, lambda x: None)


def test_humanevalplus_reference_is_not_disturbed_by_a_candidate_that_edits_its_input(tmp_path: Path) -> None:
    block = plus_block(tmp_path, canonical_solution="    return sorted(x)\n", base_input=[[[2, 1]]], plus_input=[])
    assert not passes(block, lambda x: x.clear() or x)
    assert passes(block, lambda x: x.sort() or x)


def test_humanevalplus_accepts_any_root(tmp_path: Path) -> None:
    fields = {"task_id": "HumanEval/32", "canonical_solution": "    return 1.0\n", "atol": 1e-4}
    block = plus_block(tmp_path, base_input=[[[-1, 0, 1]]], plus_input=[], **fields)
    assert passes(block, lambda xs: -1.0)
    assert not passes(block, lambda xs: 0.5)


def mbppplus_block(tmp_path: Path, number: int, code: str, entry_point: str, inputs: list[Any]) -> str:
    fields = {"task_id": f"Mbpp/{number}", "prompt": '"""\nDo it.\nassert f(1) == 1\n"""\n', "plus_input": {}}
    return plus_block(
        tmp_path, "mbppplus", canonical_solution=code, entry_point=entry_point, base_input=inputs, **fields
    )


def test_mbppplus_turns_lists_back_into_tuples(tmp_path: Path) -> None:
    code = "def f(a):\n    assert a == (1, 2)\n    return a\n"
    assert passes(mbppplus_block(tmp_path, 116, code, "f", [[[1, 2]]]), lambda a: a)


def test_mbppplus_compares_as_sets_where_order_is_free(tmp_path: Path) -> None:
    code = "def Diff(a):\n    return [1, 2]\n"
    assert passes(mbppplus_block(tmp_path, 769, code, "Diff", [[[0]]]), lambda a: [2, 1])


def test_mbppplus_block_leaves_the_programs_functions_alone(tmp_path: Path) -> None:
    block = mbppplus_block(tmp_path, 1, "def convert(n):\n    return n\n", "convert", [[1]])
    names: dict[str, Any] = {}
    exec(block, names)
    assert {name for name in names if not name.startswith("__")} == {"check"}


def test_mbppplus_shows_its_one_test_and_no_shots(tmp_path: Path) -> None:
    prompt = '"""\nWrite a function.\nassert f(1) == 1\n"""\n'
    row = {**HUMANEVAL_ROW, "task_id": "Mbpp/9", "prompt": prompt, "base_input": [[1]], "plus_input": []}
    (problem,) = load_problems("mbppplus", source=write_lines(tmp_path / "MbppPlus.jsonl", [row]))
    assert problem.question == (
        "You are an expert Python programmer, and here is your task: Write a function. "
        "Your code should pass these tests:\n\nassert f(1) == 1\n[BEGIN]\n"
    )
    assert (problem.problem_id, problem.task, problem.entry_point) == ("mbppplus/9", "mbpp", "twice")


def test_humaneval_tests_must_define_check(tmp_path: Path) -> None:
    row = {**HUMANEVAL_ROW, "test": "assert twice(2) == 4"}
    with pytest.raises(UserError, match=r"line 1: test does not define check"):
        load_problems("humaneval", source=write_lines(tmp_path / "HumanEval.jsonl", [row]))


def test_humanevalplus_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 has no input to test with"):
        plus_block(tmp_path, base_input=[], plus_input=[])
