"""Accuracy against the share of answers handed over to another policy, the least trusted first. Pure functions.

Names of the metrics table, for answers handed to a policy `stage2`:

    escalated@stage2[0.10]    accuracy where the least trusted tenth of the answers is the other policy's
    escalated@stage2[area]    mean accuracy over all shares from 0 to 1
    escalated@stage2[gain]    that minus the mean over all shares in random order: what the trust is worth

Answers that are trusted alike go over together, in random order: every value is the expectation over that order.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from score_cli.metrics import Estimate, clustered_mean

SHARES = tuple(tenth / 10 for tenth in range(11))
AREA, GAIN = "area", "gain"


class Case(NamedTuple):
    """An answer that may be handed over.

    Attributes:
        trust: the lower, the sooner it goes.
        own, other: whether the policy's own answer is right, and the other policy's.
    """

    problem_id: str
    trust: float
    own: bool
    other: bool


def escalation_curve(cases: Sequence[Case], shares: Sequence[float] = SHARES) -> dict[str, Estimate]:
    """`0.10` and so on, then `area` and `gain`, with errors clustered by problem, as if the order were given.

    Args:
        cases: one or more.
        shares: of the cases that are handed over, 0 to 1.
    """
    placed = list(_placed(cases))
    clusters = [case.problem_id for case, _, _ in placed]

    def mean(weights: Sequence[float]) -> Estimate:
        swapped = [case.own + w * (case.other - case.own) for (case, _, _), w in zip(placed, weights, strict=True)]
        return clustered_mean(swapped, clusters)

    found = {
        f"{share:.2f}": mean([min(1.0, max(0.0, (share - begin) / (end - begin))) for _, begin, end in placed])
        for share in shares
    }
    # A case that goes over at a share between begin and end, all alike, is the other policy's for the rest of them.
    rest = [1 - (begin + end) / 2 for _, begin, end in placed]
    worth = [(weight - 0.5) * (case.other - case.own) for (case, _, _), weight in zip(placed, rest, strict=True)]
    return found | {AREA: mean(rest), GAIN: clustered_mean(worth, clusters)}


def _placed(cases: Sequence[Case]) -> Iterator[tuple[Case, float, float]]:
    """Each case with the shares at which the first and the last of those trusted like it go over."""
    before = 0
    for _, group in groupby(sorted(cases, key=lambda case: case.trust), key=lambda case: case.trust):
        alike = list(group)
        for case in alike:
            yield case, before / len(cases), (before + len(alike)) / len(cases)
        before += len(alike)
