"""A small study made by hand: two seeds, five rows, and only some of them under every condition."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from score_cli.tables.parquet import STUDY, TRAIN_METRICS, TUNING, write_table
from score_cli.tables.provenance import Footer
from tests.report_support import write_run

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
