"""A small run folder and a small study made by hand, whose numbers the tests work out on paper."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from score_cli.tables.parquet import METRICS, PROBLEMS, REWARDS, STUDY, TRACES, TRAIN_METRICS, TUNING, write_table
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


def write_updates(folder: Path, count: int, *, rows: Sequence[Row] = ROWS, stage: str = "stage1") -> None:
    """Updates: traces, rewards and what was logged; the accuracy of attempt 2 rises by a tenth each."""
    for number in range(count):
        place = folder / "iterations" / f"{number:04d}"
        write_traces(place, "x", rows)
        (place / "x.traces.parquet").rename(place / "traces.parquet")
        (place / "x.rewards.parquet").rename(place / "rewards.parquet")
        write_table(
            place / "metrics.parquet",
            TRAIN_METRICS,
            curve_of(number, stage),
            Footer(table="train_metrics", stage=f"train-{stage}"),
        )


def curve_of(number: int, stage: str) -> list[dict[str, Any]]:
    values = [("accuracy", 1, 0.5), ("accuracy", 2, 0.5 + number / 10), ("grad_norm", None, 2.0 + number)]
    return [
        {"stage": stage, "iteration": number, "name": name, "attempt": attempt, "value": value}
        for name, attempt, value in values
    ]


# A small study made by hand: two seeds, and only some of the rows under every condition.
SEEDS = (0, 1)
# Row -> metric -> the two seeds' values.
OWN: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "base": {
        "acc@t1": (0.50, 0.54),
        "acc@t2": (0.48, 0.50),
        "delta@t2": (-0.02, -0.04),
        "i_to_c@t2": (0.05, 0.07),
        "c_to_i@t2": (0.07, 0.11),
        "edit_ratio_hist@t2[0.00,0.50)": (0.90, 0.80),
        "edit_ratio_hist@t2[0.50,1.00]": (0.10, 0.20),
    },
    "pair-sft": {
        "acc@t1": (0.51, 0.51),
        "acc@t2": (0.52, 0.56),
        "delta@t2": (0.01, 0.05),
        "i_to_c@t2": (0.06, 0.10),
        "edit_ratio_hist@t2[0.00,0.50)": (1.0, 1.0),
        "edit_ratio_hist@t2[0.50,1.00]": (0.0, 0.0),
    },
    "score": {
        "acc@t1": (0.60, 0.64),
        "acc@t2": (0.76, 0.80),
        "delta@t2": (0.16, 0.16),
        "i_to_c@t2": (0.20, 0.24),
        "edit_ratio_hist@t2[0.00,0.50)": (0.70, 0.76),
        "edit_ratio_hist@t2[0.50,1.00]": (0.30, 0.24),
    },
    "naive-multi-turn": {"acc@t1": (0.70, 0.72), "acc@t2": (0.70, 0.74)},
}
GIVEN = {
    "pair-sft": {"acc@t1": (0.50, 0.60), "i_to_c@t2": (0.16, 0.20)},
    "score": {"acc@t1": (0.50, 0.60), "i_to_c@t2": (0.18, 0.20)},
}
VOTES = {
    "score": {
        "majority@parallel[2]": (0.60, 0.64),
        "majority@parallel[4]": (0.66, 0.70),
        "majority@sequential[2]": (0.76, 0.80),
        "majority@sequential[4]": (0.80, 0.90),
    }
}
MORE = {
    "base": {"acc@t1": (0.5, 0.5), "acc@t2": (0.5, 0.4), "acc@t3": (0.4, 0.4)},
    "score": {"acc@t1": (0.6, 0.6), "acc@t2": (0.7, 0.8), "acc@t3": (0.8, 0.9)},
}
CONDITIONS = {"own": OWN, "base-first-attempts": GIVEN, "more-attempts": MORE, "votes": VOTES}
# Row -> accuracy of the second attempt, by seed and update.
CURVES = {"score": [[0.5, 0.6, 0.9], [0.7, 0.6, 0.7, 0.1]], "naive-multi-turn": [[0.5, 0.5, 0.6], [0.5, 0.7, 0.6]]}


def study_rows(*, differences: bool = False) -> list[dict[str, Any]]:
    """Beside the policies that the rows are about, one of before the last stage, and differences."""
    rows = []
    for condition, measured in CONDITIONS.items():
        for row, metrics in measured.items():
            for seed in SEEDS:
                policy = "base" if row == "base" else "trained"
                others = [] if row == "base" else ["stage1"]
                for name, values in metrics.items():
                    common = {"row": row, "seed": seed, "condition": condition, "decoding": "sampled", "name": name}
                    common |= {"stderr": 0.01, "count": 8}
                    rows += [common | {"policy": other, "value": 0.99} for other in others]
                    rows.append(common | {"policy": policy, "value": values[seed]})
                    if differences:
                        rows += [common | {"policy": f"{policy} - {other}", "value": 0.77} for other in others]
    return rows


def write_study(folder: Path, *, conditions: Iterable[str] = CONDITIONS) -> Path:
    rows = [row for row in study_rows() if row["condition"] in conditions]
    write_table(folder / "study.parquet", STUDY, rows, Footer(table=STUDY.name, stage="study"))
    tried = {"row": "star", "stderr": 0.01, "count": 8}
    tuning = [
        tried | {"number": 0, "settings": "train-sft.epochs=1", "value": 0.5, "chosen": False},
        tried | {"number": 1, "settings": "train-sft.epochs=3", "value": 0.625, "chosen": True},
    ]
    write_table(folder / "tuning.parquet", TUNING, tuning, Footer(table=TUNING.name, stage="study"))
    (folder / "config.json").write_text(json.dumps({"study": {"seeds": [0, 1]}}))
    return folder


def write_runs(folder: Path) -> Path:
    """The rows' run folders: traces of the policies of each, and curves where CURVES has some."""
    for row in OWN:
        for seed in SEEDS:
            run = folder / f"seed-{seed}" / row
            write_run(run, policies=("base",) if row == "base" else ("stage1", "trained"))
            if row in CURVES:
                write_table(
                    run / "train_metrics.parquet",
                    TRAIN_METRICS,
                    curve(CURVES[row][seed]),
                    Footer(table="train_metrics", stage="run"),
                )
    return folder


def curve(second: list[float]) -> list[dict[str, Any]]:
    """Stage II begins at update 1; the first attempt's accuracy is a tenth below the second's."""
    rows = []
    for update, value in enumerate(second):
        common = {"stage": "stage1" if update == 0 else "stage2", "iteration": update}
        rows.append(common | {"name": "accuracy", "attempt": 1, "value": value - 0.1})
        rows.append(common | {"name": "accuracy", "attempt": 2, "value": value})
        rows.append(common | {"name": "changed@t2", "attempt": None, "value": value / 2})
    return rows
