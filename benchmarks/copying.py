"""What a policy earns that only copies: is some number or expression of the question graded correct?

    python benchmarks/copying.py --data ../shared/data/gsm8k/test.jsonl

Takes the problems that `score data` would read (GSM8K's layout, or MATH's with --dataset math), gives every number,
calculation and formula of each question as its answer, and counts the problems where one of them is correct: with the
rules on restatement and form off, with them on, and by math-verify. What is left with the rules on is told by kind.
The last line is JSON.
"""

import argparse
import json
import os
import re
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT
from score_cli.tasks.loaders import load_problems
from score_cli.verification.math.answers import readings
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.math.restatement import texts_of
from score_cli.verification.task_grader import Item

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")


def copies_of(problem: Problem) -> list[str]:
    """All that may be copied out of a question: formulas, calculations, numbers."""
    found = [*texts_of(problem.question), *(number[0].rstrip(",") for number in _NUMBER.finditer(problem.question))]
    return list(dict.fromkeys(text for text in found if text))


def response_to(answer: str) -> str:
    return f"Final Answer: The final answer is ${answer}$. I hope it is correct."


def accepted_here(problems: list[Problem], *, rules: bool) -> list[list[str]]:
    """The copies that are correct, for each problem."""
    with MathGrader(refuse_restatements=rules, require_finished=rules) as grader:
        copies = [copies_of(problem) for problem in problems]
        items = [
            Item(problem, response_to(text)) for problem, texts in zip(problems, copies, strict=True) for text in texts
        ]
        verdicts = iter(grader.grade(items))
        return [[text for text in texts if next(verdicts).verdict == CORRECT] for texts in copies]


def accepted_by_math_verify(problems: list[Problem]) -> list[list[str]]:
    from math_verify import parse, verify

    def correct(problem: Problem, text: str) -> bool:
        try:
            return bool(verify(parse(f"${problem.answer}$"), parse(response_to(text))))
        except Exception:  # what its README leaves to the caller
            return False

    return [[text for text in copies_of(problem) if correct(problem, text)] for problem in problems]


def kind_of(problem: Problem, accepted: list[str]) -> str:
    """Why copying still pays: the gold answer's own text stands there, or its number in another dress."""
    gold = problem.answer or ""
    if any(text.replace(",", "") == gold.replace(",", "") for text in accepted):
        return "the gold answer itself stands in the question"
    if any(shape in readings(gold) for text in accepted for shape in readings(text)):
        return "the same number written otherwise (5.0, $5)"
    if any(text.endswith("%") for text in accepted):
        return "the number with a percent sign"
    return "other"


def share(problems: list[Problem], accepted: list[list[str]]) -> str:
    paid = sum(map(bool, accepted))
    foreign = sum(
        bool(texts) and problem.answer not in texts for problem, texts in zip(problems, accepted, strict=True)
    )
    own = foreign / len(problems)
    return f"{paid / len(problems):6.2%} ({paid} of {len(problems)}), in {own:.2%} not the gold's own text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SCORE_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default) / "gsm8k" / "test.jsonl")
    parser.add_argument("--dataset", default="gsm8k")
    parser.add_argument("--split")
    options = parser.parse_args()
    problems = load_problems(options.dataset, source=str(options.data), split=options.split)
    with get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(accepted_by_math_verify, (problems,))
    rows: dict[str, list[list[str]]] = {
        "rules off": accepted_here(problems, rules=False),
        "rules on": accepted_here(problems, rules=True),
        "math-verify": theirs,
    }
    for name, accepted in rows.items():
        print(f"{name:12} {share(problems, accepted)}")
    left = Counter(kind_of(problem, texts) for problem, texts in zip(problems, rows["rules on"], strict=True) if texts)
    for kind, count in left.most_common():
        print(f"  left: {count:4} {kind}")
    print(json.dumps({name: sum(map(bool, accepted)) / len(problems) for name, accepted in rows.items()}))


if __name__ == "__main__":
    main()
