"""Verdicts, broken golds, hostile answers, and the labelled rows where they are at hand."""

import gzip
import json
import os
from pathlib import Path

import pytest

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT, INCORRECT, NO_ANSWER, UNSCORED
from score_cli.verification.task_grader import Graded, Item
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.math.quick import quick_verdict

SHARED = Path(os.environ.get("SCORE_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
DEADLINE_SECONDS = 0.3


@pytest.fixture(scope="module")
def grader():
    with MathGrader(workers=2) as grader:
        yield grader


def item(response: str, gold: str | None) -> Item:
    return Item(Problem(problem_id="p", task="math", question="?", answer=gold, source="test"), response)


def verdicts(grader: MathGrader, *pairs: tuple[str, str | None]) -> list[str]:
    return [graded.verdict for graded in grader.grade([item(*pair) for pair in pairs])]


def test_each_item_gets_its_verdict_in_order(grader):
    pairs = [("\\boxed{5}", "5"), ("\\boxed{6}", "5"), ("no idea", "5"), ("\\boxed{\\sqrt{8}}", r"2\sqrt{2}")]
    assert verdicts(grader, *pairs) == [CORRECT, INCORRECT, NO_ANSWER, CORRECT]


def test_the_answer_is_reported_as_it_was_judged(grader):
    assert grader.grade([item("The final answer is $\\frac12$. I hope it is correct.", "0.5")]) == [
        Graded(r"\frac12", CORRECT)
    ]


@pytest.mark.parametrize("gold", [None, "", "  ", "$$", r"\frac{1}{", "}", "5\x00", "\ud800", "5" * 5000, "..."])
def test_a_broken_gold_is_unscored(grader, gold):
    assert verdicts(grader, ("\\boxed{5}", gold), ("no answer", gold)) == [UNSCORED, UNSCORED]


def test_a_gold_may_stand_in_a_box(grader):
    gold = "The answer should be \\boxed{004}. Let me check: 2,552,004."
    assert verdicts(grader, ("\\boxed{4}", gold), ("\\boxed{2552004}", gold)) == [CORRECT, INCORRECT]


def test_surrogates_do_not_reach_the_table(grader):
    (graded,) = grader.grade([item("\\boxed{\ud8005}", "5")])
    assert graded.verdict == INCORRECT
    assert graded.answer is not None and graded.answer.encode("utf-8")


def test_listing_candidates_is_not_answering(grader):
    listed = "Possible answers: \\boxed{1} \\boxed{2} \\boxed{3}"
    assert verdicts(grader, *[(listed, gold) for gold in "123"]) == [INCORRECT] * 3


@pytest.mark.parametrize(
    ("answer", "gold", "said"),
    [
        ("5", "5", True),
        ("5.0", "5", True),
        ("5", "6", False),
        (r"\frac{2}{4}", "0.5", True),
        (r"\sqrt{2}", "1.41421356", False),
        (r"\sqrt{2}", r"\sqrt{3}", False),
        (r"\sqrt{8}", r"2\sqrt{2}", None),
        ("x+1", "x+2", False),
        ("(1,2)", "(1,3)", False),
    ],
)
def test_the_quick_comparison_speaks_only_when_sure(answer, gold, said):
    assert quick_verdict(answer, gold) is said


HANGS = [
    "9^{9^{9^{9}}}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "9!!!!!!",
    "((((9!)!)!)!)!",
    "100000000!",
    r"\binom{10^{9}}{5\cdot 10^8}",
    "(" * 20_000 + "5" + ")" * 20_000,
    "(" * 1500 + "5" + ")" * 1500,
    "{" * 1500 + "5" + "}" * 1500,
    "1+" * 1900 + "1",
    "1*" * 1900 + "5",
    "x^" * 1000 + "2",
    r"\sqrt{" * 500 + "2" + "}" * 500,
    r"\frac{1}{" * 400 + "2" + "}" * 400,
    "5" * 1_000_000,
    "a" * 1_000_000,
    "\x00",
    "5\x00",
    "\ud800",
    "5\ud800",
    "|" * 2000,
    "$" * 3000,
    r"\left(" * 600,
    "-" * 4000 + "5",
    "5" + "!" * 2000,
    r"\pm " * 300 + "1",
    "1," * 2000,
    "1/" * 2000 + "1",
    r"\sin " * 1000 + "x",
    r"\int_0^\infty e^{-x^{x^{x}}}\,dx",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^{2}+\sin n}",
    r"\prod_{k=1}^{10000000} k",
    r"\lim_{x\to 0} \frac{\sin(x^{x^x})}{x^{100}}",
    r"(1+x)^{100000}",
    "1e999999999",
    r"e^{e^{e^{e^{e}}}}",
    r"\cot(10^{1000})",
    r"\lfloor 10^{10^7}\pi \rfloor",
    r"\frac{10000000!}{9999999!}",
    r"\sqrt[1000000007]{10^{1000000}}",
    r"\boxed{" * 3000,
    r"\text{" * 1000 + "5" + "}" * 1000,
    "0." + "3" * 3000,
    r"(1,2)\cup" * 300 + "(1,2)",
    r"e^{-100000}+5",
    r"5+10^{-400}",
]


def test_no_hanging_answer_is_believed():
    items = [item(f"The final answer is ${answer}$. I hope it is correct.", "5") for answer in HANGS]
    items += [item(f"So $\\boxed{{{answer}}}$.", r"\sqrt{2}+x") for answer in HANGS]
    with MathGrader(workers=2, timeout_seconds=DEADLINE_SECONDS) as grader:
        believed = [graded for graded in grader.grade(items) if graded.verdict in (CORRECT, UNSCORED)]
    assert believed == []


def labelled(tier: str) -> list[dict[str, str | bool]]:
    path = SHARED / "grading" / "math_dev.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: set SCORE_SHARED_DATA to the folder that holds grading/")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["tier"] == tier]


@pytest.mark.parametrize("wrapping", ["The final answer is ${}$. I hope it is correct.", "So $\\boxed{{{}}}$."])
def test_labelled_answers_are_graded_as_labelled(grader, wrapping):
    rows = labelled("core")
    responses = [row["pred"] if row["form"] == "response" else wrapping.format(row["pred"]) for row in rows]
    said = [
        verdict == CORRECT for verdict in verdicts(grader, *zip(responses, [row["gold"] for row in rows], strict=True))
    ]
    wrong = [passed for row, passed in zip(rows, said, strict=True) if not row["correct"]]
    right = [passed for row, passed in zip(rows, said, strict=True) if row["correct"]]
    assert sum(wrong) <= 0.005 * len(wrong)
    assert len(right) - sum(right) <= 0.06 * len(right)
