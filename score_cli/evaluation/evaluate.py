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

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from score_cli.evaluation.votes import pass_at_k
from score_cli.metrics import (
    Estimate,
    Values,
    clustered_mean,
    measure_dialogues,
    measures_of,
    paired_difference,
    solves_of,
)
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tables.traces import read_pair

GREEDY = "greedy"
SAMPLED = "sampled"
BINS = 20
# A row whose policy is `stage2 - base` holds a difference of the two policies' figures.
MINUS = " - "

Row = dict[str, Any]


def evaluate(
    traces: Path,
    rewards: Path,
    *,
    policy: str,
    decoding: str,
    problems: Path | None = None,
    pass_at: Sequence[int] = (),
) -> list[Row]:
    """Rows of the metrics table for one policy and one decoding.

    Args:
        problems: the problems answered; with them, figures by level and by subject.
        pass_at: k of each pass@k.
    Raises:
        UserError: the files do not belong together.
    """
    found, judged = read_pair(traces, rewards)
    known = read_problems(problems) if problems is not None else []
    return metric_rows(found, judged, policy=policy, decoding=decoding, problems=known, pass_at=pass_at)


def metric_rows(
    traces: Sequence[Trace],
    rewards: Sequence[Verdict],
    *,
    policy: str,
    decoding: str,
    problems: Sequence[Problem] = (),
    pass_at: Sequence[int] = (),
) -> list[Row]:
    """As `evaluate`, for traces and rewards in memory that stand row by row.

    An unscored attempt counts nowhere: `count` says how many traces a value is over (how many problems,
    for pass@k).
    """
    measured = measure_traces(traces, rewards)
    estimates = {name: _mean(pairs) for name, pairs in measured.items()}
    for name, pairs in measured.items():
        if name.startswith("edit_ratio@"):
            estimates |= _histogram(name, pairs)
    for label, members in _groups(problems).items():
        for name, pairs in measured.items():
            chosen = [(problem, value) for problem, value in pairs if problem in members]
            if chosen:
                estimates[f"{name}|{label}"] = _mean(chosen)
    for k in pass_at:
        estimates |= _pass_at(measured, k)
    return _rows(estimates, policy, decoding)


def value_rows(measured: Mapping[str, Values], *, policy: str, decoding: str) -> list[Row]:
    """Rows of the metrics table for measures whose values are known."""
    return _rows({name: _mean(pairs) for name, pairs in measured.items()}, policy, decoding)


def measure_traces(traces: Sequence[Trace], rewards: Sequence[Verdict]) -> dict[str, Values]:
    """Every measure's name with its values, trace by trace; traces that it cannot be taken of are left out."""
    measured: dict[str, Values] = {}
    rows = [solves_of(trace, reward) for trace, reward in zip(traces, rewards, strict=True)]
    for name, measure, attempt in measures_of(max(len(trace.attempts) for trace, _ in rows)):
        pairs = [
            (trace.problem_id, value)
            for trace, reward in rows
            if len(trace.attempts) >= attempt and (value := measure(trace, reward, attempt)) is not None
        ]
        if pairs:
            measured[name] = pairs
    return measured | measure_dialogues(traces, rewards)


def comparison_rows(policies: Mapping[str, Mapping[str, Values]], *, decoding: str) -> list[Row]:
    """Every policy against every policy before it, on the same problems.

    A row's `stderr` is paired and clustered by problem, its `count` the number of problems compared.

    Args:
        policies: policy -> measure -> scored traces (see `measure_traces`), in the order of evaluation.
    """
    rows = []
    for (before, theirs), (policy, ours) in combinations(policies.items(), 2):
        for name in ours:
            if name not in theirs:
                continue
            found = paired_difference(by_problem(ours[name]), by_problem(theirs[name]))
            if found is not None:
                row = {"policy": f"{policy}{MINUS}{before}", "decoding": decoding, "name": name}
                rows.append(row | asdict(found))
    return rows


def by_problem(pairs: Values) -> dict[str, list[float]]:
    """The values of each problem's traces."""
    grouped: dict[str, list[float]] = {}
    for problem, value in pairs:
        grouped.setdefault(problem, []).append(value)
    return grouped


def _rows(estimates: Mapping[str, Estimate], policy: str, decoding: str) -> list[Row]:
    return [{"policy": policy, "decoding": decoding, "name": name} | asdict(found) for name, found in estimates.items()]


def _mean(pairs: Values) -> Estimate:
    return clustered_mean([value for _, value in pairs], [problem for problem, _ in pairs])


def _histogram(name: str, pairs: Values) -> dict[str, Estimate]:
    """Share of traces in each bin of width 1 / BINS; the last bin holds 1 as well."""
    bins = [(problem, min(math.floor(value * BINS), BINS - 1)) for problem, value in pairs]
    attempt = name.split("@")[1]
    return {
        f"edit_ratio_hist@{attempt}[{b / BINS:.2f},{(b + 1) / BINS:.2f}{']' if b == BINS - 1 else ')'}": _mean(
            [(problem, float(own == b)) for problem, own in bins]
        )
        for b in range(BINS)
    }


def _groups(problems: Sequence[Problem]) -> dict[str, set[str]]:
    """`level=5` -> the ids of its problems, and so on; a column that holds one value says nothing."""
    groups: dict[str, set[str]] = {}
    for column in ("level", "subject"):
        values = sorted({value for problem in problems if (value := getattr(problem, column)) is not None})
        for value in values if len(values) > 1 else []:
            groups[f"{column}={value}"] = {p.problem_id for p in problems if getattr(p, column) == value}
    return groups


def _pass_at(measured: Mapping[str, Values], k: int) -> dict[str, Estimate]:
    """pass@k at each attempt, over the problems with at least k scored samples."""
    found = {}
    for name, pairs in measured.items():
        if not name.startswith("acc@"):
            continue
        values = {
            problem: pass_at_k(len(samples), round(sum(samples)), k)
            for problem, samples in by_problem(pairs).items()
            if len(samples) >= k
        }
        if values:
            found[f"pass@{k}@{name.split('@')[1]}"] = clustered_mean(list(values.values()), list(values))
    return found
