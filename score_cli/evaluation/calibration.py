"""Whether a policy is as often right as it is sure: its own probabilities of its answers' tokens beside the verdicts.

Names of the metrics table, for solves t1, t2, ...:

    confidence@t1   mean confidence (see `tasks.confidence`), by the probabilities that the answers were sampled with
    ece@t1          expected calibration error: the gap between mean confidence and accuracy in each of ten bins of
                    equal width, weighted by how many solves lie there
    brier@t1        mean squared difference of confidence and being right, 0 or 1

An unscored solve counts nowhere.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from score_cli.metrics import Estimate, Values, clustered_mean
from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tasks.confidence import MEAN, Decode, confidences

BINS = 10


def calibration_rows(
    traces: Sequence[Trace], verdicts: Sequence[Verdict], decode: Decode, *, policy: str, decoding: str
) -> list[dict[str, Any]]:
    """Rows of the metrics table.

    Args:
        decode: the policy's tokens to text.
    """
    by_solve: dict[int, list[tuple[str, float, bool]]] = {}
    for trace, verdict in zip(traces, verdicts, strict=True):
        own = confidences(trace, trace.logprobs.tolist(), MEAN, decode)
        solves = [turn for turn, role in enumerate(trace.turn_roles) if role == SOLVE]
        for number, turn in enumerate(solves, start=1):
            right, confidence = verdict.correct[turn], own[turn]
            if right is not None and confidence is not None and turn >= trace.offline_attempts:
                by_solve.setdefault(number, []).append((trace.problem_id, confidence, right))
    found: dict[str, Estimate] = {}
    for number, rows in sorted(by_solve.items()):
        found[f"confidence@t{number}"] = _mean([(problem, confidence) for problem, confidence, _ in rows])
        error = calibration_error([confidence for _, confidence, _ in rows], [right for *_, right in rows])
        found[f"ece@t{number}"] = Estimate(error, None, len(rows))
        found[f"brier@t{number}"] = _mean([(problem, (confidence - right) ** 2) for problem, confidence, right in rows])
    return [{"policy": policy, "decoding": decoding, "name": name} | asdict(one) for name, one in found.items()]


def calibration_error(confidences: Sequence[float], right: Sequence[bool], *, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width, the last of which holds 1 as well.

    Source: Guo et al. 2017, Eq. 3.
    """
    gaps: dict[int, list[float]] = {}
    for confidence, is_right in zip(confidences, right, strict=True):
        gaps.setdefault(min(math.floor(confidence * bins), bins - 1), []).append(confidence - is_right)
    return math.fsum(abs(math.fsum(gap)) for gap in gaps.values()) / len(confidences)


def _mean(pairs: Values) -> Estimate:
    return clustered_mean([value for _, value in pairs], [problem for problem, _ in pairs])
