"""A small run folder made by hand, whose numbers the tests work out on paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_cli.tables.parquet import METRICS, PROBLEMS, REWARDS, TRACES, TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256

HOSTILE = (
    "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\"> & <b>bold</b>"
)
VERDICTS = {"c": "correct", "i": "incorrect", "u": "unscored", "n": "no_answer"}

Row = tuple[str, int, Sequence[str], str, Sequence[str | None], float]

# problem, sample, texts, verdicts, answers, logprob of every token of the first attempt
ROWS: list[Row] = [
    ("a", 0, ("so x is 1", "so x is 1"), "cc", ("1", "1"), -0.1),
    ("a", 1, ("so x is 2", "so x is 1"), "ic", ("2", "1"), -0.5),
    ("b", 0, ("so x is 1", "so y is 2"), "ci", ("1", "2"), -0.2),
    ("b", 1, (HOSTILE, "three"), "ii", ("2", "3"), -0.6),
    ("c", 0, ("done", "done"), "cc", ("1", "1"), -0.1),
    ("c", 1, ("late", "late"), "uc", (None, "1"), -0.1),
]


def write_run(folder: Path, *, policies: Sequence[str] = ("base", "score"), rows: Sequence[Row] = ROWS) -> Path:
    """A run of two policies that behave alike, one problem of which tries to break the page."""
    write_problems(folder / "test.parquet", rows)
    rewards = {policy: write_traces(folder / "eval", f"{policy}-sampled", rows) for policy in policies}
    inputs = {f"{policy}-sampled-rewards": file_sha256(path) for policy, path in rewards.items()}
    write_table(
        folder / "metrics.parquet", METRICS, metrics_of(policies), Footer(table="metrics", stage="eval", inputs=inputs)
    )
    return folder


def metrics_of(policies: Sequence[str]) -> list[dict[str, Any]]:
    values = {"acc@t1": (0.6, 0.2449), "acc@t2": (4 / 6, 0.1667), "delta@t2": (0.0, None), "i_to_c@t2": (0.2, 0.1833)}
    return [
        {"policy": policy, "decoding": "sampled", "name": name, "value": value + 0.125 * place, "stderr": stderr}
        | {"count": 5}
        for place, policy in enumerate(policies)
        for name, (value, stderr) in values.items()
    ]


def write_problems(path: Path, rows: Sequence[Row]) -> None:
    names = sorted({row[0] for row in rows})
    blank = dict.fromkeys(("tests", "entry_point", "setup", "level", "subject"))
    content = [
        {"problem_id": name, "task": "division", "question": f"{name}? {HOSTILE}", "answer": "1", "source": "hand"}
        | blank
        for name in names
    ]
    write_table(path, PROBLEMS, content, Footer(table="problems", stage="data"))


def write_traces(folder: Path, name: str, rows: Sequence[Row], *, policy: str = "f00d") -> Path:
    """Two sampled tokens an attempt, after a prompt of two and a bridge of one; returns the path of the rewards."""
    traces, rewards = [], []
    for problem, sample, texts, verdicts, answers, logprob in rows:
        owners = [0] + [owner for attempt in range(1, len(texts) + 1) for owner in (0, attempt, attempt)]
        traces.append(
            {
                "problem_id": problem,
                "sample_index": sample,
                "attempts": list(texts),
                "finish_reasons": ["stop"] * len(texts),
                "token_ids": list(range(len(owners))),
                "attempt_ids": owners,
                "logprobs": [logprob * owner for owner in owners],
                "offline_attempts": 0,
            }
        )
        graded = [None if letter == "u" else float(letter == "c") for letter in verdicts]
        rewards.append(
            {
                "problem_id": problem,
                "sample_index": sample,
                "answers": list(answers),
                "verdicts": [VERDICTS[letter] for letter in verdicts],
                "rewards": graded,
            }
        )
    write_table(
        folder / f"{name}.traces.parquet", TRACES, traces, Footer(table="traces", stage="sample", policy=policy)
    )
    path = folder / f"{name}.rewards.parquet"
    write_table(path, REWARDS, rewards, Footer(table="rewards", stage="verify"))
    return path


def write_updates(folder: Path, count: int, *, rows: Sequence[Row] = ROWS) -> None:
    """Updates of Stage I: traces, rewards and what was logged; the accuracy of attempt 2 rises by a tenth each."""
    for number in range(count):
        place = folder / "iterations" / f"{number:04d}"
        write_traces(place, "x", rows)
        (place / "x.traces.parquet").rename(place / "traces.parquet")
        (place / "x.rewards.parquet").rename(place / "rewards.parquet")
        write_table(
            place / "metrics.parquet",
            TRAIN_METRICS,
            curve_of(number, "stage1"),
            Footer(table="train_metrics", stage="train-stage1"),
        )


def curve_of(number: int, stage: str) -> list[dict[str, Any]]:
    values = [("accuracy", 1, 0.5), ("accuracy", 2, 0.5 + number / 10), ("grad_norm", None, 2.0 + number)]
    return [
        {"stage": stage, "iteration": number, "name": name, "attempt": attempt, "value": value}
        for name, attempt, value in values
    ]
