"""Whether a policy is as often right as it is sure: its own probabilities of its answers' tokens beside the verdicts.

Names of the metrics table, for solves t1, t2, ...:

    confidence@t1   mean confidence (see `tasks.confidence`), by the probabilities that the answers were sampled with
    ece@t1          expected calibration error: the gap between mean confidence and accuracy in each of ten bins of
                    equal width, weighted by how many solves lie there
    brier@t1        mean squared difference of confidence and being right, 0 or 1

An unscored solve counts nowhere.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import polars as pl

from score_cli.evaluation.measured import add_up
from score_cli.metrics import Estimate, mean_of_sums
from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tasks.confidence import MEAN, Decode, confidences

BINS = 10
_KEY = ("solve", "problem_id", "bin")


def calibration_rows(
    pieces: Iterable[Iterable[tuple[Trace, Verdict]]], decode: Decode, *, policy: str, decoding: str
) -> list[dict[str, Any]]:
    """Rows of the metrics table.

    Args:
        pieces: traces and their verdicts, some at a time.
        decode: the policy's tokens to text.
    """
    sums = add_up((sums_of_solves(_solves(piece, decode)) for piece in pieces), _KEY)
    found: dict[str, Estimate] = {}
    for (solve,), own in sums.sort("solve", maintain_order=True).group_by("solve", maintain_order=True):
        found[f"confidence@t{solve}"] = _mean(own, "confidence")
        found[f"ece@t{solve}"] = Estimate(calibration_error(own), None, int(own["count"].sum()))
        found[f"brier@t{solve}"] = _mean(own, "squared")
    return [{"policy": policy, "decoding": decoding, "name": name} | asdict(one) for name, one in found.items()]


def sums_of_solves(solves: pl.DataFrame) -> pl.DataFrame:
    """Of each problem's solves in each bin their `count`, and the sums of what is measured.

    Args:
        solves: `solve` (its number), `problem_id`, `confidence` from 0 to 1, and whether it is `right`.
    """
    gap = pl.col("confidence") - pl.col("right")
    # The last bin holds 1 as well.
    place = (pl.col("confidence") * BINS).floor().clip(upper_bound=BINS - 1).cast(pl.Int64)
    values = solves.with_columns(bin=place, gap=gap, squared=gap**2)
    return values.group_by(_KEY, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("count"), pl.col("confidence", "gap", "squared").sum()
    )


def calibration_error(sums: pl.DataFrame) -> float:
    """Expected calibration error over bins of equal width; of `sums_of_solves`.

    Source: Guo et al. 2017, Eq. 3.
    """
    gaps = sums.group_by("bin", maintain_order=True).agg(pl.col("gap").sum().abs())
    return float(gaps.select(pl.col("gap").sum()).item() / sums["count"].sum())


def _solves(graded: Iterable[tuple[Trace, Verdict]], decode: Decode) -> pl.DataFrame:
    rows = []
    for trace, verdict in graded:
        own = confidences(trace, trace.logprobs.tolist(), MEAN, decode)
        solves = [turn for turn, role in enumerate(trace.turn_roles) if role == SOLVE]
        for number, turn in enumerate(solves, start=1):
            right, confidence = verdict.correct[turn], own[turn]
            if right is not None and confidence is not None and turn >= trace.offline_attempts:
                rows.append((number, trace.problem_id, confidence, right))
    columns = {"solve": pl.Int64, "problem_id": pl.String, "confidence": pl.Float64, "right": pl.Boolean}
    return pl.DataFrame(rows, schema=columns, orient="row")


def _mean(sums: pl.DataFrame, name: str) -> Estimate:
    return mean_of_sums(
        sums.group_by("problem_id", maintain_order=True).agg(pl.col("count").sum(), sum=pl.col(name).sum())
    )
