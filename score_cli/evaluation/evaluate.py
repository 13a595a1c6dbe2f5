"""Traces and rewards to metrics: what the paper's tables show, with standard errors."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from score_cli.evaluation.metrics import clustered_mean
from score_cli.tables.measures import measures_of
from score_cli.tables.traces import Reward, Trace, check_pairs, read_rewards, read_traces

GREEDY = "greedy"
SAMPLED = "sampled"


def evaluate(traces: Path, rewards: Path, *, policy: str, decoding: str) -> list[dict[str, Any]]:
    """Rows of the metrics table for one policy and one decoding.

    Raises:
        UserError: the files do not belong together.
    """
    found, judged = read_traces(traces), read_rewards(rewards)
    check_pairs(found, judged, traces, rewards)
    return metric_rows(found, judged, policy=policy, decoding=decoding)


def metric_rows(
    traces: Sequence[Trace], rewards: Sequence[Reward], *, policy: str, decoding: str
) -> list[dict[str, Any]]:
    """As `evaluate`, for traces and rewards in memory that stand row by row.

    An unscored attempt counts nowhere: `count` says how many traces a value is over.
    """
    rows = []
    for name, measure, attempt in measures_of(max(len(trace.attempts) for trace in traces)):
        values, problems = [], []
        for trace, reward in zip(traces, rewards, strict=True):
            if len(trace.attempts) >= attempt and (value := measure(trace, reward, attempt)) is not None:
                values.append(value)
                problems.append(trace.problem_id)
        if values:
            estimate = clustered_mean(values, problems)
            rows.append({"policy": policy, "decoding": decoding, "name": name} | asdict(estimate))
    return rows


def paper_table(rows: Iterable[dict[str, Any]], attempts: int = 2) -> tuple[list[str], list[list[str]]]:
    """Metrics rows as the paper prints them: percent, one line a policy and decoding.

    Returns:
        Column titles, and cells like `54.2 ±1.3`.
    """
    columns = [(f"acc@t{a}", f"acc@t{a}") for a in range(1, attempts + 1)]
    columns += [
        (f"{title}", f"{name}@t{attempts}")
        for title, name in [("delta", "delta"), ("i->c", "i_to_c"), ("c->i", "c_to_i"), ("edit ratio", "edit_ratio")]
    ]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        line = cells.setdefault((row["policy"], row["decoding"]), {})
        sign = "+" if row["name"].startswith("delta") else ""
        spread = "" if row["stderr"] is None else f" ±{100 * row['stderr']:.1f}"
        line[row["name"]] = f"{100 * row['value']:{sign}.1f}{spread}"
    titles = ["policy", "decoding", *(title for title, _ in columns)]
    return titles, [[*key, *(line.get(name, "") for _, name in columns)] for key, line in cells.items()]
