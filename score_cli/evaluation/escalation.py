"""Accuracy against the share of answers handed over to another policy, the least trusted first. Pure functions.

Names of the metrics table, for answers handed to a policy `stage2`:

    escalated@stage2[0.10]    accuracy where the least trusted tenth of the answers is the other policy's
    escalated@stage2[area]    mean accuracy over all shares from 0 to 1
    escalated@stage2[gain]    that minus the mean over all shares in random order: what the trust is worth

Answers that are trusted alike go over together, in random order: every value is the expectation over that order.
"""

from collections.abc import Sequence

import polars as pl

from score_cli.metrics import Estimate, mean_of_sums

SHARES = tuple(tenth / 10 for tenth in range(11))
AREA, GAIN = "area", "gain"


def escalation_curve(cases: pl.DataFrame, shares: Sequence[float] = SHARES) -> dict[str, Estimate]:
    """`0.10` and so on, then `area` and `gain`, with errors clustered by problem, as if the order were given.

    Args:
        cases: one or more answers that may be handed over. `problem_id`, or a number for it; `trust`: the lower, the
            sooner it goes; `own` and `other`: 1 where the policy's own answer is right, and where the other policy's
            is, else 0.
        shares: of the cases that are handed over, 0 to 1.
    """
    # The shares at which the first and the last of those that are trusted like a case go over.
    begin = (pl.col("trust").rank("min") - 1) / cases.height
    end = pl.col("trust").rank("max") / cases.height
    gained = pl.col("other").cast(pl.Float64) - pl.col("own")

    def mean(value: pl.Expr) -> Estimate:
        sums = cases.group_by("problem_id", maintain_order=True).agg(count=pl.len(), sum=value.sum())
        return mean_of_sums(sums)

    cases = cases.select("problem_id", "own", begin=begin, end=end, gained=gained)
    found = {
        f"{share:.2f}": mean(
            pl.col("own")
            + pl.col("gained") * ((share - pl.col("begin")) / (pl.col("end") - pl.col("begin"))).clip(0, 1)
        )
        for share in shares
    }
    # A case that goes over at a share between begin and end, all alike, is the other policy's for the rest of them.
    rest = 1 - (pl.col("begin") + pl.col("end")) / 2
    worth = mean((rest - 0.5) * pl.col("gained"))
    return found | {AREA: mean(pl.col("own") + pl.col("gained") * rest), GAIN: worth}
