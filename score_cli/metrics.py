"""What traces and their verdicts show: measures of one trace, and means over many with clustered errors.

A measure is of one attempt, or of an attempt beside the one before. An unscored attempt is never counted as wrong: a
measure that needs it is None for that trace. Nothing here reads files.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import CORRECT, UNSCORED

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


def edit_ratio(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Edit distance in characters between the attempt and the one before, over their summed length."""
    before, now = trace.attempts[attempt - 2], trace.attempts[attempt - 1]
    total = len(before) + len(now)
    return Levenshtein.distance(before, now) / total if total else 0.0


def changed_answer(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the extracted answer differs from the one before; an absent answer is an answer too."""
    return float(reward.answers[attempt - 1] != reward.answers[attempt - 2])


# Name in the metrics table -> measure; the second group needs an attempt before.
SINGLE: dict[str, Measure] = {"acc": accuracy}
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


def letters(verdict: Verdict) -> str:
    """The verdicts of a trace as letters: c correct, u unscored, i any other."""
    return "".join("c" if v == CORRECT else "u" if v == UNSCORED else "i" for v in verdict.verdicts)


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
