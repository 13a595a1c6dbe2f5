"""Traces and rewards to metrics: what the paper's tables show, with standard errors.

Names of the metrics table, for attempts t1, t2, ... and their neighbours:

    acc@t1  truncated@t1  length@t1  delta@t2  i_to_c@t2  c_to_i@t2      see `metrics.measures_of`
    edit_ratio@t2  changed@t2
    acc@t1|level=5  delta@t2|subject=Algebra                             the same, over the problems of one level
                                                                         or subject, where there are several
    edit_ratio_hist@t2[0.10,0.15)                                        share of traces whose ratio lies there
    pass@4@t2                                                            see `votes.pass_at_k`
    escalated@stage2[0.10]                                               see `escalation`
    verify_acc  error_recall  acc@final  mean_trials                     of scripts: see `metrics.measure_dialogues`
    f1_correct  holds_answer  acc@round2                                 of critics: see `critics`

t1, t2, ... count a trace's solves, whatever turns stand between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import polars as pl

from score_cli.evaluation.measured import HISTOGRAM, Measured
from score_cli.evaluation.votes import pass_at_k
from score_cli.metrics import Estimate, clustered_mean, mean_of_sums, paired_difference
from score_cli.tables.records import Problem

GREEDY = "greedy"
SAMPLED = "sampled"
# A row whose policy is `stage2 - base` holds a difference of the two policies' figures.
MINUS = " - "

Row = dict[str, Any]


def metric_rows(
    measured: Measured,
    *,
    policy: str,
    decoding: str,
    problems: Sequence[Problem] = (),
    pass_at: Sequence[int] = (),
) -> list[Row]:
    """Rows of the metrics table for one policy and one decoding.

    An unscored attempt counts nowhere: `count` says how many traces a value is over (how many problems,
    for pass@k).

    Args:
        problems: the problems answered; with them, figures by level and by subject.
        pass_at: k of each pass@k.
    """
    estimates = {name: mean_of_sums(sums) for name, sums in measured.items()}
    for label, members in _groups(problems).items():
        for name, sums in measured.items():
            chosen = sums.join(members, on="problem_id", how="semi")
            if not name.startswith(HISTOGRAM) and chosen["count"].sum():
                estimates[f"{name}|{label}"] = mean_of_sums(chosen)
    for k in pass_at:
        estimates |= _pass_at(measured, k)
    return [{"policy": policy, "decoding": decoding, "name": name} | asdict(found) for name, found in estimates.items()]


def comparison_rows(policies: Mapping[str, Measured], *, decoding: str) -> list[Row]:
    """Every policy against every policy before it, on the same problems.

    A row's `stderr` is paired and clustered by problem, its `count` the number of problems compared.

    Args:
        policies: in the order of evaluation.
    """
    rows = []
    for (before, theirs), (policy, ours) in combinations(policies.items(), 2):
        for name in ours:
            if name not in theirs or name.startswith(HISTOGRAM):
                continue
            found = paired_difference(ours[name], theirs[name])
            if found is not None:
                row = {"policy": f"{policy}{MINUS}{before}", "decoding": decoding, "name": name}
                rows.append(row | asdict(found))
    return rows


def _groups(problems: Sequence[Problem]) -> dict[str, pl.DataFrame]:
    """`level=5` -> the ids of its problems, and so on; a column that holds one value says nothing."""
    groups: dict[str, pl.DataFrame] = {}
    for column in ("level", "subject"):
        values = sorted({value for problem in problems if (value := getattr(problem, column)) is not None})
        for value in values if len(values) > 1 else []:
            members = [problem.problem_id for problem in problems if getattr(problem, column) == value]
            groups[f"{column}={value}"] = pl.DataFrame({"problem_id": members})
    return groups


def _pass_at(measured: Measured, k: int) -> dict[str, Estimate]:
    """pass@k at each attempt, over the problems with at least k scored samples."""
    found = {}
    for name, sums in measured.items():
        problems = sums.filter(pl.col("count") >= k)
        if name.startswith("acc@") and problems.height:
            values = [
                pass_at_k(samples, round(right), k) for samples, right in problems.select("count", "sum").iter_rows()
            ]
            found[f"pass@{k}@{name.split('@')[1]}"] = clustered_mean(values, problems["problem_id"].to_list())
    return found
