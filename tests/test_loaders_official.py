"""The samples of this repository and, where a copy is present, the official files: every problem, by count."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from score_cli.tasks.datasets_math import math500_ids
from score_cli.tasks.loaders import gold_responses, load_problems

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SCORE_SHARED_DATA", ROOT.parent / "shared" / "data"))
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no copies of the data sets: set SCORE_SHARED_DATA")


def run_gold(tests: list[str], setup: str | None, entry_point: str | None, program: str) -> None:
    """Run a trusted program against its own tests, the way a verifier does."""
    names: dict[str, Any] = {}
    exec("\n\n".join([program, setup or "", *tests]), names)
    if entry_point:
        names["check"](names[entry_point])


@pytest.mark.parametrize(
    ("dataset", "split", "count"),
    [("math", None, 10), ("mbpp", None, 2), ("mbpp", "all", 6), ("mbpp", "test", 1), ("humaneval", None, 4)],
)
def test_samples_load(dataset: str, split: str | None, count: int) -> None:
    assert len(load_problems(dataset, source=str(ROOT / "data" / f"{dataset}.jsonl"), split=split)) == count


@pytest.mark.parametrize("dataset", ["mbpp", "humaneval"])
def test_sample_programs_pass_their_own_tests(dataset: str) -> None:
    split = "all" if dataset == "mbpp" else None
    for problem, response in gold_responses(dataset, source=str(ROOT / "data" / f"{dataset}.jsonl"), split=split):
        assert problem.tests is not None and response is not None
        run_gold(problem.tests, problem.setup, problem.entry_point, response)


@real_data
@pytest.mark.parametrize(
    ("dataset", "folder", "split", "count"),
    [
        ("gsm8k", "gsm8k", "train", 7473),
        ("gsm8k", "gsm8k", "test", 1319),
        ("mbpp", "mbpp", "train", 374),
        ("mbpp", "mbpp", "test", 500),
        ("mbpp", "mbpp", "validation", 90),
        ("mbpp", "mbpp", "prompt", 10),
        ("mbpp", "mbpp", "all", 974),
        ("mbpp-sanitized", "mbpp", "train", 120),
        ("mbpp-sanitized", "mbpp", "test", 257),
        ("mbpp-sanitized", "mbpp", "validation", 43),
        ("mbpp-sanitized", "mbpp", "prompt", 7),
        ("mbpp-sanitized", "mbpp", "all", 427),
        ("humaneval", "humaneval", None, 164),
        ("humanevalplus", "evalplus", None, 164),
        ("mbppplus", "evalplus", None, 378),
    ],
)
def test_official_files_give_every_problem(dataset: str, folder: str, split: str | None, count: int) -> None:
    loaded = load_problems(dataset, source=str(SHARED / folder), split=split)
    assert len(loaded) == count
    assert all("\r" not in problem.question for problem in loaded)
    assert all(problem.answer or problem.tests for problem in loaded)


@real_data
def test_math_split_of_the_official_ids_is_the_papers() -> None:
    split = json.loads((SHARED / "math" / "split_ids.json").read_text())
    assert frozenset(split["test_math500"]) == math500_ids()
    assert not math500_ids() & {*split["train_official"], *split["train_from_test"]}


@real_data
@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 12000), ("test", 500), ("official-train", 7500), ("official-test", 5000), ("all", 12500)],
)
def test_math_splits_have_the_papers_sizes(tmp_path: Path, split: str, count: int) -> None:
    ids = [name for part in json.loads((SHARED / "math" / "split_ids.json").read_text()).values() for name in part]
    lines = [json.dumps({"problem": name, "solution": r"\boxed{1}", "unique_id": name}) for name in ids]
    (tmp_path / "math.jsonl").write_text("\n".join(lines))
    assert len(load_problems("math", source=str(tmp_path), split=split)) == count


@real_data
def test_mbpp_setup_is_kept_for_the_two_tasks_that_have_one() -> None:
    loaded = load_problems("mbpp", source=str(SHARED / "mbpp"), split="all")
    assert [problem.problem_id for problem in loaded if problem.setup] == ["mbpp/367", "mbpp/927"]


@real_data
def test_humanevalplus_references_pass_their_own_blocks() -> None:
    # The first twelve: all 164 take three seconds, and every problem is checked by the product's own gold check.
    for problem, response in gold_responses("humanevalplus", source=str(SHARED / "evalplus"))[:12]:
        assert problem.tests is not None and response is not None
        run_gold(problem.tests, problem.setup, problem.entry_point, response)
