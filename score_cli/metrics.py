"""What traces and their verdicts show: measures of one trace, and means over many with clustered errors.

A measure is of one attempt, or of an attempt beside the one before; of a script's traces, the solves are the attempts.
An unscored attempt is never counted as wrong: a measure that needs it is None for that trace. Nothing here reads files.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rapidfuzz.distance import Levenshtein

from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tables.schemas import CORRECT, LENGTH, UNGRADED, UNSCORED

Values = list[tuple[str, float]]  # (problem_id, value) of each trace, or each turn, that could be scored
Measure = Callable[[Trace, Verdict, int], float | None]


def accuracy(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt (counted from 1) was judged correct."""
    right = reward.correct[attempt - 1]
    return None if right is None else float(right)


def delta(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Accuracy of the attempt minus that of the one before."""
    now, before = accuracy(trace, reward, attempt), accuracy(trace, reward, attempt - 1)
    return None if now is None or before is None else now - before


def incorrect_to_correct(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt put right what the one before had wrong."""
    change = delta(trace, reward, attempt)
    return None if change is None else float(change > 0)


def correct_to_incorrect(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt broke what the one before had right."""
    change = delta(trace, reward, attempt)
    return None if change is None else float(change < 0)


def truncated(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt was cut off; None for one that was given, not sampled."""
    return None if attempt <= trace.offline_attempts else float(trace.finish_reasons[attempt - 1] == LENGTH)


def length(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Tokens sampled in the attempt; None for one that was given."""
    return None if attempt <= trace.offline_attempts else float((trace.attempt_ids == attempt).sum())


def edit_ratio(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Edit distance in characters between the attempt and the one before, over their summed length."""
    before, now = trace.attempts[attempt - 2], trace.attempts[attempt - 1]
    total = len(before) + len(now)
    return Levenshtein.distance(before, now) / total if total else 0.0


def changed_answer(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the extracted answer differs from the one before; an absent answer is an answer too."""
    return float(reward.answers[attempt - 1] != reward.answers[attempt - 2])


# Name in the metrics table -> measure; the second group needs an attempt before.
SINGLE: dict[str, Measure] = {"acc": accuracy, "truncated": truncated, "length": length}
PAIRED: dict[str, Measure] = {
    "delta": delta,
    "i_to_c": incorrect_to_correct,
    "c_to_i": correct_to_incorrect,
    "edit_ratio": edit_ratio,
    "changed": changed_answer,
}


def measures_of(attempts: int) -> list[tuple[str, Measure, int]]:
    """(`acc@t1`, measure, attempt), ... for traces of that many attempts."""
    single = [(f"{name}@t{a}", measure, a) for a in range(1, attempts + 1) for name, measure in SINGLE.items()]
    paired = [(f"{name}@t{a}", measure, a) for a in range(2, attempts + 1) for name, measure in PAIRED.items()]
    return single + paired


def solves_of(trace: Trace, verdict: Verdict) -> tuple[Trace, Verdict]:
    """A trace and its verdict with nothing but its solves, counted anew; as they are where all turns are solves."""
    if trace.roles is None:
        return trace, verdict
    turns = [turn for turn, role in enumerate(trace.roles) if role == SOLVE]
    numbers = [0] * (len(trace.roles) + 1)
    for number, turn in enumerate(turns, start=1):
        numbers[turn + 1] = number
    kept = replace(
        trace,
        attempts=[trace.attempts[turn] for turn in turns],
        finish_reasons=[trace.finish_reasons[turn] for turn in turns],
        attempt_ids=np.array(numbers, dtype=np.int8)[trace.attempt_ids],
        offline_attempts=sum(turn < trace.offline_attempts for turn in turns),
        roles=None,
    )
    judged = replace(
        verdict,
        answers=[verdict.answers[turn] for turn in turns],
        verdicts=[verdict.verdicts[turn] for turn in turns],
        rewards=[verdict.rewards[turn] for turn in turns],
    )
    return kept, judged


def letters(verdict: Verdict) -> str:
    """The verdicts of a trace as letters: c correct, u unscored or ungraded, i any other."""
    return "".join("c" if v == CORRECT else "u" if v in (UNSCORED, UNGRADED) else "i" for v in verdict.verdicts)


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None with fewer than two problems), and how many things it is over."""

    value: float
    stderr: float | None
    count: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Mean of values whose errors are independent between clusters, not within them.

    Samples of one problem share its difficulty; treating them as independent would make the
    standard error too small.

    Args:
        values: [M]; clusters: [M] problem ids.
    Returns:
        The mean over traces; its standard error by the cluster-robust (sandwich) formula with
        the factor G / (G - 1) for G clusters.
    Raises:
        ValueError: no values, or lengths that differ.
    """
    if not values:
        raise ValueError("clustered_mean needs at least one value")
    mean = math.fsum(values) / len(values)
    residuals: defaultdict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster].append(value - mean)
    return Estimate(mean, _spread(math.fsum(part) / len(values) for part in residuals.values()), len(values))


def paired_difference(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Estimate | None:
    """Mean of our values minus mean of theirs, over the clusters that both have values of.

    A hard problem is hard for both, so the noise that they share cancels: each cluster enters the standard
    error with the difference of its two deviations, not with their squares added.

    Args:
        ours, theirs: problem id -> the values of its traces; the two may hold different numbers of traces.
    Returns:
        The difference of the means over traces; its standard error by the formula of `clustered_mean`, which
        with one trace a problem is that of the paired t-test; the number of clusters compared.
        None where the two share no cluster.
    """
    shared = [name for name in ours if ours[name] and theirs.get(name)]
    if not shared:
        return None
    sums, pulls = [], [0.0] * len(shared)
    for side, sign in ((ours, 1), (theirs, -1)):
        count = sum(len(side[name]) for name in shared)
        mean = math.fsum(value for name in shared for value in side[name]) / count
        sums.append(sign * mean)
        for row, name in enumerate(shared):
            pulls[row] += sign * math.fsum(value - mean for value in side[name]) / count
    return Estimate(math.fsum(sums), _spread(pulls), len(shared))


def two_sided_p(value: float, stderr: float | None) -> float | None:
    """Probability of a difference at least this large, were there none: the normal approximation.

    Returns:
        None where the standard error is unknown, or 0 beside a difference that is not: a handful of problems
        that all moved alike show no spread to judge by.
    """
    if stderr is None:
        return None
    if stderr == 0:
        return 1.0 if value == 0 else None
    return math.erfc(abs(value) / stderr / math.sqrt(2))


def _spread(pulls: Iterable[float]) -> float | None:
    """Standard error from each cluster's pull on the estimate (the pulls sum to 0)."""
    squares = [pull**2 for pull in pulls]
    groups = len(squares)
    return None if groups < 2 else math.sqrt(math.fsum(squares) * groups / (groups - 1))


def measure_dialogues(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> dict[str, Values]:
    """What a script's dialogues show beside the accuracy of their solves; nothing for traces of solves alone.

        verify_acc                  share of claims that tell what the solve is
        error_recall                of the claims on wrong solves, the share that says so
        correct_precision           of the claims that a solve is correct, the share that is right to
        unreadable                  share of turns that judge in which no claim could be read
        acc@final                   accuracy of the last solve
        delta@final, i_to_c@final, c_to_i@final    from the first solve to the last
        mean_trials                 solves a trace

    Of traces without a solve, critiques of one that is given, only `verify_acc` and `unreadable` are known; see
    `evaluation.critics`. A claim on a solve that nobody could score counts nowhere. One that cannot be read is wrong in
    `verify_acc` and finds no error in `error_recall`. S2R (arXiv 2502.12853) calls the first three VA, ER and CP.
    """
    if all(trace.roles is None for trace in traces):
        return {}
    rows = list(zip(traces, verdicts, strict=True))
    found: dict[str, Values] = {}

    def note(name: str, problem: str, value: float) -> None:
        found.setdefault(name, []).append((problem, value))

    for trace, verdict in rows:
        for right, agrees, readable in _claims(trace, verdict):
            note("verify_acc", trace.problem_id, float(agrees))
            note("unreadable", trace.problem_id, float(not readable))
            if right is None:
                continue
            if not right:
                note("error_recall", trace.problem_id, float(agrees))
            if readable and agrees == right:  # it says correct
                note("correct_precision", trace.problem_id, float(agrees))
        _, solves = solves_of(trace, verdict)
        if not solves.verdicts:
            continue
        first, last = solves.correct[0], solves.correct[-1]
        if last is not None:
            note("acc@final", trace.problem_id, float(last))
        if first is not None and last is not None:
            note("delta@final", trace.problem_id, float(last) - float(first))
            note("i_to_c@final", trace.problem_id, float(last and not first))
            note("c_to_i@final", trace.problem_id, float(first and not last))
        note("mean_trials", trace.problem_id, float(len(solves.verdicts)))
    return found


def _claims(trace: Trace, verdict: Verdict) -> Iterator[tuple[bool | None, bool, bool]]:
    """Of each turn that judges a scored solve: whether the solve is right, the claim agrees, and could be read.

    Whether a solve is right that stands in another trace is unknown.
    """
    right: bool | None = None
    elsewhere = SOLVE not in trace.turn_roles
    for turn, role in enumerate(trace.turn_roles):
        if role == SOLVE:
            right = verdict.correct[turn]
        elif verdict.verdicts[turn] not in (UNGRADED, UNSCORED) and (elsewhere or right is not None):
            yield right, verdict.verdicts[turn] == CORRECT, verdict.answers[turn] is not None
