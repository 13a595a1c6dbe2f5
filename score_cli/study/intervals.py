"""The mean of a number over seeds with its interval, and which side of a border that puts it on. Pure functions."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from flint import arb

from score_cli.evaluation.layout import percent

CONFIDENCE = 0.95
BITS = 53


class Verdict(StrEnum):
    """What seeds say of a claim."""

    APPEARS = "appears"
    ABSENT = "does not appear"
    OPEN = "not decided"  # the interval holds the border, or one seed has none


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and Student's interval about it, of 95 percent; the seeds' values are taken for normal.

    Attributes:
        half: half its width; None of a single seed.
    """

    mean: float
    half: float | None
    seeds: int

    def above(self, border: float = 0.0) -> Verdict:
        """Whether the mean lies above a border: open while the interval holds it."""
        if self.half is None or abs(self.mean - border) <= self.half:
            return Verdict.OPEN
        return Verdict.APPEARS if self.mean > border else Verdict.ABSENT

    def below(self, border: float = 0.0) -> Verdict:
        """Whether the mean lies below a border."""
        return Interval(-self.mean, self.half, self.seeds).above(-border)

    def within(self, radius: float) -> Verdict:
        """Whether the mean lies less than `radius` from 0."""
        return every([self.below(radius), self.above(-radius)])

    def __str__(self) -> str:
        """`+1.2 [-0.3, +2.7]`, in points."""
        if self.half is None:
            return f"{percent(self.mean, signed=True)} [one seed]"
        low, high = (percent(end, signed=True) for end in (self.mean - self.half, self.mean + self.half))
        return f"{percent(self.mean, signed=True)} [{low}, {high}]"


def interval(values: Iterable[float]) -> Interval:
    """The mean of one value a seed: t x s / sqrt(n) on either side, s with divisor n - 1."""
    values = list(values)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, len(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, t_quantile(len(values) - 1) * error, len(values))


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a claim of several parts: it appears where all do, and does not where one does not."""
    found = set(verdicts)
    return next((verdict for verdict in (Verdict.ABSENT, Verdict.OPEN) if verdict in found), Verdict.APPEARS)


@cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that a Student variable of `freedom` degrees stays within with probability `confidence`, on either side.

    P(|T| > t) is the regularised incomplete beta function, of freedom / 2 and 1/2, at freedom / (freedom + t^2).
    """
    outside, low, high = 1 - confidence, 0.0, 1.0
    for _ in range(BITS):
        middle = (low + high) / 2
        beyond = float(arb(middle).beta_lower(freedom / 2, 0.5, regularized=True))
        low, high = (middle, high) if beyond < outside else (low, middle)
    return math.sqrt(freedom * (1 - high) / high)
