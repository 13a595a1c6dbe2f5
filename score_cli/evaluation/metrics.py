"""Means over traces with standard errors clustered by problem. Pure functions."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None with fewer than two problems), and the traces it is over."""

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
    groups = len(residuals)
    if groups < 2:
        return Estimate(mean, None, len(values))
    variance = math.fsum(math.fsum(part) ** 2 for part in residuals.values()) * groups / (groups - 1)
    return Estimate(mean, math.sqrt(variance) / len(values), len(values))
