"""reasoning-gym: problems that train and test never share, graded by the package's own scoring from a stored entry."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from score_cli.cli import run_command
from score_cli.config import VerifyConfig
from score_cli.errors import UserError
from score_cli.tables.parquet import PROBLEMS, read_footer
from score_cli.tables.problems import question_key, read_problems, write_problems_table
from score_cli.tables.provenance import Footer
from score_cli.tasks.datasets_reasoning_gym import make, make_problems, package, read_config
from score_cli.verification import reasoning_gym
from score_cli.verification.grader import make_graders
from score_cli.verification.reasoning_gym import find_answer, grade, is_arithmetic
from score_cli.verification.task_grader import Graded, Item

# Of every kind the package has: what is compared as text, as numbers, by rules, by tuples, by SymPy, by eval.
TRIED = (
    "chain_sum",
    "base_conversion",
    "fraction_simplification",
    "polynomial_multiplication",
    "simple_integration",
    "countdown",
    "puzzle24",
    "number_sorting",
    "spiral_matrix",
    "string_insertion",
    "binary_matrix",
    "n_queens",
    "knights_knaves",
    "mini_sudoku",
    "tower_of_hanoi",
    "arc_agi",
    "rearc",
    "word_ladder",
    "family_relationships",
    "time_intervals",
)


@pytest.mark.parametrize("name", TRIED)
def test_every_gold_answer_is_worth_one_by_the_entry_that_the_table_keeps(tmp_path: Path, name: str) -> None:
    loaded = make_problems(name, split="test", size=5)
    write_problems_table(
        tmp_path / "p.parquet", [one.problem for one in loaded], Footer(table="problems", stage="data")
    )
    problems = read_problems(tmp_path / "p.parquet")
    assert problems == [one.problem for one in loaded]
    assert [grade(problem.row(), str(one.gold_response)) for problem, one in zip(problems, loaded, strict=True)] == [
        1
    ] * 5
    assert [grade(problem.row(), "<answer>no such thing</answer>") < 0.2 for problem in problems] == [True] * 5
    as_text = problems[0].row() | {name: json.dumps(problems[0].extra[name]) for name in ("entry", "config")}
    assert grade(as_text, str(loaded[0].gold_response)) == 1


def test_the_same_arguments_make_the_same_problems_and_another_seed_others() -> None:
    first, again, other = (make_problems("chain_sum", split="train", size=50, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert not {one.problem.question for one in first} & {one.problem.question for one in other}
    assert not {one.problem.problem_id for one in first} & {one.problem.problem_id for one in other}


def test_splits_of_any_seeds_share_no_question_even_where_questions_are_few() -> None:
    """Sums of two numbers from 0 to 9 are some 200 questions: two draws of 40 would share some without the hash."""
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    keys = {
        (split, seed): {
            question_key(one.problem.question)
            for one in make_problems("chain_sum", split=split, size=size, seed=seed, config=small)
        }
        for split, size in (("train", 60), ("test", 25), ("validation", 10))
        for seed in (0, 1)
    }
    assert all(len(found) == {"train": 60, "test": 25, "validation": 10}[split] for (split, _), found in keys.items())
    for (split, _), found in keys.items():
        for (other, _), others in keys.items():
            assert split == other or not found & others
    assert keys["train", 0] & keys["train", 1], "or the space would not be small"


def test_a_configuration_with_too_few_questions_says_how_many() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(UserError, match=r"chain_sum has only \d+ different questions for split test in this config"):
        make_problems("chain_sum", split="test", size=1000, config=tiny)


def test_a_seed_that_the_package_has_no_problem_for_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_problems("chain_sum", split="train", size=30)
    kind = package().factory.DATASETS["chain_sum"][0]
    whole = kind.__getitem__

    def failing(self: Any, place: int) -> Any:
        if place % 2:
            raise RuntimeError("found none")
        print("noise")
        return whole(self, place)

    monkeypatch.setattr(kind, "__getitem__", failing)
    fewer = make_problems("chain_sum", split="train", size=15)
    assert [one.problem.problem_id for one in fewer[:5]] == [
        one.problem.problem_id for one in made if one.problem.extra["entry"]["metadata"]["source_index"] % 2 == 0
    ][:5]


def test_a_configuration_changes_the_problems_and_stands_with_them() -> None:
    loaded = make_problems("chain_sum", split="train", size=20, config={"min_terms": 6})
    for one in loaded:
        assert len(one.problem.extra["entry"]["metadata"]["expression"].split()) == 11
        assert one.problem.extra["config"] == {"min_terms": 6}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>3</answer>", "3"),
        ("First <answer>2</answer>, no: <answer>\n3\n</answer>.", "3"),
        ("3", None),
        ("<answer>3", None),
        ("<think><answer>2</answer></think>It is <answer>3</answer>.", "3"),
        ("<think>So <answer>2</answer>", None),
        ("<answer>2</answer></think>", None),
        ("<answer></answer>", ""),
    ],
)
def test_the_answer_is_the_last_one_outside_of_thinking(response: str, answer: str | None) -> None:
    assert find_answer(response) == answer


def test_a_response_without_an_answer_is_worth_nothing() -> None:
    (one,) = make_problems("countdown", split="train", size=1)
    assert grade(one.problem.row(), str(one.problem.answer)) == 0


def test_scores_between_are_those_of_the_package() -> None:
    (one,) = make_problems("spiral_matrix", split="train", size=1)
    as_list = str([int(number) for number in str(one.problem.answer).split()])
    assert grade(one.problem.row(), f"<answer>{as_list}</answer>") == 0.1


def test_verify_grades_by_the_entry_in_processes_of_its_own() -> None:
    """Right, half right, wrong, nothing, and an answer that SymPy would take years over."""
    (spiral,) = make_problems("spiral_matrix", split="train", size=1)
    (sum24,) = make_problems("puzzle24", split="train", size=1)
    numbers = f"[{', '.join(str(spiral.problem.answer).split())}]"
    items = [
        Item(spiral.problem, str(spiral.gold_response)),
        Item(spiral.problem, f"<answer>{numbers}</answer>"),
        Item(sum24.problem, "It is <answer>1</answer>"),
        Item(sum24.problem, f"It is {sum24.problem.answer}."),
        Item(sum24.problem, "<answer>9**9**9**9</answer>"),
        Item(sum24.problem, str(sum24.gold_response)),
    ]
    config = VerifyConfig(workers=1, grader_timeout_seconds=8.0)
    grader = make_graders({"reasoning-gym"}, config)["reasoning-gym"]
    try:
        graded = grader.grade(items)
        assert grader.describe()["reasoning_gym"] == package().__version__
    finally:
        grader.close()
    assert [each.verdict for each in graded[:4]] == ["correct", "incorrect", "incorrect", "no_answer"]
    assert [each.reward for each in graded[:4]] == [1.0, 0.1, 0.01, None]
    assert graded[4].verdict in ("timeout", "out_of_memory", "crashed") and graded[4].reason is None
    assert graded[5] == Graded(sum24.problem.answer, "correct", 1.0)


HOSTILE = "__import__('pathlib').Path({path!r}).touch()"


@pytest.mark.parametrize("name", sorted(name for name in TRIED if name not in ("arc_agi", "rearc")))
def test_no_answer_is_run(tmp_path: Path, name: str) -> None:
    (one,) = make_problems(name, split="train", size=1)
    path = tmp_path / "run"
    attack = HOSTILE.format(path=str(path))
    for answer in (attack, f"[{attack}]", f"{attack} or {one.problem.answer}", f"str({attack})", f"x + {attack}"):
        grade(one.problem.row(), f"<answer>{answer}</answer>")
    assert not path.exists()


def test_the_attack_would_work_on_the_package_alone(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    from sympy import parse_expr

    path = tmp_path / "run"
    with pytest.raises(Exception):  # noqa: B017
        parse_expr(HOSTILE.format(path=str(path)) + ".x")
    assert path.exists()


def test_every_score_that_evaluates_its_answer_is_known() -> None:
    """All data sets of the installed package: what is guarded by reading its source, and nothing else evaluates."""
    evaluating, parsing = set(), set()
    for name, (kind, _) in package().factory.DATASETS.items():
        source = inspect.getsource(kind.score_answer)
        if reasoning_gym._EVALUATES.search(source):
            evaluating.add(name)
        if reasoning_gym._PARSES.search(source):
            parsing.add(name)
        assert not any(word in source for word in ("exec(", "sympify(", "parse_latex(", "pickle", "subprocess")), name
    assert evaluating == {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting"}
    assert parsing == {
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
        "puzzle24",
        "countdown",
    }


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("3*x**2 + sin(x)/2 - C", True),
        ("(1 + 2)*3.5", True),
        ("exp(2*x)", True),
        ("x.__class__", False),
        ("x . y", False),
        ("(1).real", False),
        ("1 .real", False),
        ("open('a')", False),
        ("Integral(x, x)", False),
        ("eval(x)", False),
        ("_", False),
        ("x[0]", False),
        ("lambda: 1", False),
        ("ⅹ", False),
    ],
)
def test_arithmetic_holds_no_code(text: str, holds: bool) -> None:
    assert is_arithmetic(text) is holds


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, r"reasoning-gym has no data set chain_sums: did you mean chain_sum\? it has ab, acre"),
        ("chain_sum", {"config": {"terms": 2}}, r"chain_sum has no setting terms: it has allow_negation, max_digits"),
        ("chain_sum", {"config": {"seed": 2}}, r"chain_sum has no setting seed"),
        ("chain_sum", {"config": {"min_terms": 0}}, r"chain_sum does not take this configuration \(min_terms must be"),
        ("chain_sum", {"split": "dev"}, r"reasoning-gym has no split dev: expected train, validation, test"),
        (
            "chain_sum",
            {"config": {"min_terms": "a"}},
            r"chain_sum does not take this configuration \('>' not supported",
        ),
    ],
)
def test_what_the_package_does_not_have_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_problems(name, **({"split": "train", "size": 1} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "2"])
def test_a_configuration_is_an_object(text: str) -> None:
    with pytest.raises(UserError, match=r"configuration is .*, expected JSON such as '\{\"min_terms\": 2\}'"):
        read_config(text)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"needs? the package reasoning-gym .*pip install 'score-cli\[reasoning-gym\]'"):
        make("chain_sum", {}, seed=0, size=1)


@pytest.mark.parametrize("option", ["--config", "--dataset-config"])
def test_the_command_takes_the_configuration_and_records_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    out = tmp_path / "p.parquet"
    made = ["data", "reasoning-gym", "--from", "chain_sum", "--size", "12", "--seed", "5", option, '{"min_terms": 6}']
    assert run_command([*made, "--out", str(out)]) == 0
    assert "all 12 gold answers pass their own verifier" in capsys.readouterr().err
    problems = read_problems(out)
    assert [problem.task for problem in problems] == ["reasoning-gym"] * 12
    footer = read_footer(out, PROBLEMS)
    assert footer is not None
    assert {name: footer.config[name] for name in ("dataset", "from", "size", "seed", "dataset_config")} == {
        "dataset": "reasoning-gym",
        "from": "chain_sum",
        "size": 12,
        "seed": 5,
        "dataset_config": '{"min_terms": 6}',
    }
    assert run_command(["data", "reasoning-gym", "--out", str(tmp_path / "q.parquet")]) == 2
    assert "pass --from with the name of one, such as chain_sum" in capsys.readouterr().err
