"""Mathematics grading beside math-verify as its README uses it: mistakes on labelled answers, then speed.

    python benchmarks/verify_math.py [--data ../shared/data] [--workers 2] [--tier core]

Prints the false positives and negatives of both graders on the same rows, every mistake of this one, and two ratios
of speed: a batch with sixteen samples per problem, and pairs of different answers of one kind, each seen once.
math-verify runs in one process, as it does where it is called from a reward function. The last line is JSON.
"""

import argparse
import gzip
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT
from score_cli.verification.math.answers import readings
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.task_grader import Item

Row = dict[str, Any]
SAMPLES = 16
REASONING = "We write the condition as an equation and simplify: $a_{n+1} = 2a_n - 3$, so that $a_5 = 17$. " * 8


def load(path: Path, tier: str) -> list[Row]:
    """Labelled rows of one tier."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows: list[Row] = [json.loads(line) for line in lines]
    return [row for row in rows if row["tier"] == tier]


def response_to(row: Row) -> str:
    """The row's response; a bare answer is put into the sentence that the paper's prompt asks for."""
    if row["form"] == "response":
        return str(row["pred"])
    return f"Final Answer: The final answer is ${row['pred']}$. I hope it is correct."


def item_of(response: str, gold: str) -> Item:
    """One attempt at a problem with this gold answer."""
    return Item(Problem(problem_id="p", task="math", question="", answer=gold, source="benchmark"), response)


def naive(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """math-verify's own extraction, parsing and comparison, with its own time limits."""
    from math_verify import parse, verify

    verdicts = []
    for response, gold in pairs:
        try:
            verdicts.append(bool(verify(parse(f"${gold}$"), parse(response))))
        except Exception:  # what its README leaves to the caller
            verdicts.append(False)
    return verdicts


def _naive_timed(pairs: Sequence[tuple[str, str]]) -> tuple[list[bool], float]:
    naive([("The answer is $\\frac{1}{2}$.", "0.5")] * 20)  # imports and first parses do not count
    begin = time.perf_counter()
    return naive(pairs), time.perf_counter() - begin


def naive_in_process(pairs: Sequence[tuple[str, str]]) -> tuple[list[bool], float]:
    """`naive` in a process of its own, with the seconds it took."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_naive_timed, (list(pairs),))


def graded(pairs: Sequence[tuple[str, str]], workers: int) -> tuple[list[bool], float]:
    """This grader on the same pairs, from an empty memo, with the seconds it took."""
    readings.cache_clear()
    with MathGrader() as grader:
        begin = time.perf_counter()
        results = grader.grade([item_of(response, gold) for response, gold in pairs])
        return [result.verdict == CORRECT for result in results], time.perf_counter() - begin


def rates(rows: list[Row], verdicts: list[bool]) -> str:
    """False positive and false negative rates."""
    wrong = [said for row, said in zip(rows, verdicts, strict=True) if not row["correct"]]
    right = [said for row, said in zip(rows, verdicts, strict=True) if row["correct"]]
    passed, refused = sum(wrong), len(right) - sum(right)
    return (
        f"FPR {passed / max(1, len(wrong)):.2%} ({passed}/{len(wrong)})   "
        f"FNR {refused / max(1, len(right)):.2%} ({refused}/{len(right)})"
    )


def repeated_batch(rows: list[Row]) -> list[tuple[str, str]]:
    """Sixteen samples per gold answer, right and wrong ones of the labelled rows, after some reasoning."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        if row["form"] == "answer" and len(row["pred"]) < 200:
            answers.setdefault(row["gold"], []).append(response_to(row))
    draw = random.Random(0)
    return [(REASONING + draw.choice(given), gold) for gold, given in answers.items() for _ in range(SAMPLES)]


def distinct_wrong_pairs(rows: list[Row], count: int) -> list[tuple[str, str]]:
    """Gold answers of one shape given as the answer to each other, no pair twice."""
    kinds: dict[str, list[str]] = {}
    for gold in dict.fromkeys(row["gold"] for row in rows):
        shapes = readings(gold)
        if shapes and len(gold) < 200:
            kinds.setdefault(type(shapes[0]).__name__, []).append(gold)
    pairs = [
        (f"Final Answer: The final answer is ${answer}$. I hope it is correct.", gold)
        for golds in kinds.values()
        for gold in golds
        for answer in golds
        if answer != gold
    ]
    random.Random(1).shuffle(pairs)
    return pairs[:count]


def speed(name: str, pairs: list[tuple[str, str]], run: Callable[[], tuple[list[bool], float]]) -> float:
    """Time both on the same pairs; how many times as fast this grader is."""
    mine, mine_seconds = run()
    theirs, their_seconds = naive_in_process(pairs)
    differ = sum(a != b for a, b in zip(mine, theirs, strict=True))
    ratio = their_seconds / mine_seconds
    print(
        f"{name}: {len(pairs)} grades, {len(pairs) / mine_seconds:,.0f}/s here, {len(pairs) / their_seconds:,.0f}/s "
        f"math-verify, {ratio:.1f} times, {differ} verdicts differ"
    )
    return ratio


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SCORE_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder that holds grading/math_dev.jsonl.gz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tier", default="core")
    options = parser.parse_args()
    rows = load(options.data / "grading" / "math_dev.jsonl.gz", options.tier)
    pairs = [(response_to(row), row["gold"]) for row in rows]
    verdicts, _ = graded(pairs, options.workers)
    print(f"{len(rows)} labelled rows, tier {options.tier}")
    print(f"score        {rates(rows, verdicts)}")
    print(f"math-verify  {rates(rows, naive_in_process(pairs)[0])}")
    for row, said in zip(rows, verdicts, strict=True):
        if said != row["correct"]:
            kind = "accepted" if said else "refused"
            print(f"  {kind} {row['id']} ({row['category']}): {row['pred']!r:.100} for {row['gold']!r:.100}")
    batch, wrong = repeated_batch(rows), distinct_wrong_pairs(rows, 1500)
    repeat = speed("repeated samples", batch, lambda: graded(batch, options.workers))
    distinct = speed("distinct wrong pairs", wrong, lambda: graded(wrong, options.workers))
    print(json.dumps({"repeat_ratio": round(repeat, 2), "distinct_ratio": round(distinct, 2)}))


if __name__ == "__main__":
    main()
