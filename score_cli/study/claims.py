"""What the paper claims, and whether it appears in a study: a criterion on the figures for each claim. Pure functions.

Every figure is of sampled traces (T = 1) and a mean over seeds, unless the criterion says otherwise.
"""

from collections.abc import Iterator

from score_cli.evaluation.layout import percent
from score_cli.evaluation.votes import GAIN
from score_cli.study.neighbour_claims import neighbour_claims
from score_cli.study.results import BASE_FIRST, VOTED, Claim, Results

BASE, SCORE = "base", "score"
SFT_ROWS = ("star", "star-plus", "pair-sft", "pair-sft-plus")
RIVALS = {
    "baselines": (BASE, "self-refine", *SFT_ROWS),
    "ablations": (
        "single-turn",
        "naive-multi-turn",
        "no-stage1",
        "no-shaping",
        "star-for-stage2",
        "no-online-first-attempts",
    ),
}


def judge_claims(results: Results) -> list[Claim]:
    """The claims that a study has the rows for, in the order of the paper; then those of its neighbours."""
    return [
        *_base_does_not_correct(results),
        *_sft_falls_short(results),
        *_largest(results),
        *_collapses(results),
        *_bonus_to_first(results),
        *_sequential_beats_parallel(results),
        *_shift(results),
        *neighbour_claims(results),
    ]


def _base_does_not_correct(results: Results) -> Iterator[Claim]:
    delta = results.mean(BASE, "delta@t2")
    if delta is not None:
        yield Claim("the base loses by correcting itself", "delta of base below 0", _points(delta), delta < 0)


def _sft_falls_short(results: Results) -> Iterator[Claim]:
    ours = results.mean(SCORE, "delta@t2")
    for row in SFT_ROWS:
        theirs = results.find(row, "delta@t2")
        if ours is None or theirs is None:
            continue
        deltas = theirs.values.values()
        yield Claim(
            f"supervised training falls short: {row}",
            "delta below SCoRe's, or of both signs over the seeds",
            f"{', '.join(map(_points, deltas))} (mean {_points(theirs.mean)}) against {_points(ours)}",
            theirs.mean < ours or min(deltas) < 0 < max(deltas),
        )


def _largest(results: Results) -> Iterator[Claim]:
    """One claim a kind and measure: SCoRe's is above that of every row named."""
    for kind, rows in RIVALS.items():
        for name, title, show in (
            ("acc@t2", "accuracy at the second attempt", percent),
            ("delta@t2", "delta", _points),
        ):
            ours = results.mean(SCORE, name)
            theirs = {row: value for row in rows if (value := results.mean(row, name)) is not None}
            if ours is None or not theirs:
                continue
            best = max(theirs, key=theirs.__getitem__)
            yield Claim(
                f"SCoRe has the largest {title}, of the {kind}",
                f"{name} of score above those of {', '.join(theirs)}",
                f"{show(ours)} against {show(theirs[best])} of {best}",
                ours > theirs[best],
            )


def _collapses(results: Results) -> Iterator[Claim]:
    for row in ("naive-multi-turn", "no-stage1"):
        changed, before = results.mean(row, "changed@t2"), results.mean(BASE, "changed@t2")
        delta, ours = results.mean(row, "delta@t2"), results.mean(SCORE, "delta@t2")
        if changed is None or before is None or delta is None or ours is None:
            continue
        yield Claim(
            f"{row} collapses to answering the same twice",
            "share of changed answers below base's, and delta below SCoRe's",
            f"changed {percent(changed)} against {percent(before)}; delta {_points(delta)} against {_points(ours)}",
            changed < before and delta < ours,
        )


def _bonus_to_first(results: Results) -> Iterator[Claim]:
    for row in ("discount", "bonus-to-first"):
        first, ours = results.mean(row, "acc@t1"), results.mean(SCORE, "acc@t1")
        if first is not None and ours is not None:
            yield Claim(
                f"{row}: a first attempt that sees the bonus learns to be wrong",
                "acc@t1 below SCoRe's",
                f"{percent(first)} against {percent(ours)}",
                first < ours,
            )


def _sequential_beats_parallel(results: Results) -> Iterator[Claim]:
    for match, gain in results.matching(SCORE, rf"majority@{GAIN}\[(\d+)\]", condition=VOTED):
        yield Claim(
            f"correcting beats sampling more, with {match[1]} responses",
            "votes of half as many corrected attempts above votes of first attempts",
            f"{_points(gain.mean)} points",
            gain.mean > 0,
        )


def _shift(results: Results) -> Iterator[Claim]:
    for row in ("star", "pair-sft"):
        own, given = results.correction_rate(row), results.correction_rate(row, condition=BASE_FIRST)
        if own and given:
            yield Claim(
                f"{row} corrects the base's first attempts better than its own",
                "share of wrong first attempts put right, higher after the base's",
                f"{percent(given.mean)} against {percent(own.mean)} after its own",
                given.mean > own.mean,
            )


def _points(value: float) -> str:
    return percent(value, signed=True)
