"""Means over traces with standard errors clustered by problem, and paired differences. Pure functions."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


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
