"""What the paper claims, and whether it appears in a study: a criterion on the figures for each claim. Pure functions.

Every figure is of sampled traces (T = 1) and a mean over seeds, unless the criterion says otherwise. What two rows, or
a row before and after, differ by is paired by seed. Its interval decides: where it holds the border, nothing is.
"""

import itertools
from collections.abc import Iterator

from score_cli.evaluation.evaluate import GREEDY, SAMPLED
from score_cli.evaluation.layout import percent
from score_cli.evaluation.votes import GAIN
from score_cli.study.intervals import Verdict, every
from score_cli.study.neighbour_claims import neighbour_claims
from score_cli.study.results import BASE_FIRST, SCORE, VOTED, Claim, Results

BASE = "base"
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
    if delta := results.find(BASE, "delta@t2"):
        verdict = delta.interval.below()
        yield Claim("the base loses by correcting itself", "delta of base below 0", str(delta.interval), verdict)


def _sft_falls_short(results: Results) -> Iterator[Claim]:
    for row in SFT_ROWS:
        theirs, ours = results.find(row, "delta@t2"), results.find(SCORE, "delta@t2")
        if theirs and ours and (less := theirs.minus(ours)):
            figures = f"{_points(theirs.mean)} against {_points(ours.mean)}: {less}"
            yield Claim(f"supervised training falls short: {row}", "delta below SCoRe's", figures, less.below())


def _largest(results: Results) -> Iterator[Claim]:
    """One claim a kind, measure and decoding: SCoRe's is above that of every row named. The paper decodes greedily."""
    for kind, rows in RIVALS.items():
        for (name, title, show), (decoding, how) in itertools.product(
            (
                ("acc@t2", "accuracy at the second attempt", percent),
                ("delta@t2", "delta", _points),
            ),
            ((SAMPLED, ""), (GREEDY, ", decoded greedily")),
        ):
            ours = results.find(SCORE, name, decoding)
            theirs = {row: found for row in rows if (found := results.find(row, name, decoding))}
            leads = {row: lead for row, found in theirs.items() if ours and (lead := ours.minus(found))}
            if ours is None or not leads:
                continue
            best = min(leads, key=lambda row: leads[row].mean)
            undecided = [row for row in leads if row != best and leads[row].above() is Verdict.OPEN]
            yield Claim(
                f"SCoRe has the largest {title}, of the {kind}{how}",
                f"{name} of score above those of {', '.join(leads)}",
                f"{show(ours.mean)} against {show(theirs[best].mean)} of {best}: {leads[best]}"
                + (f"; nor decided against {', '.join(undecided)}" if undecided else ""),
                every(lead.above() for lead in leads.values()),
            )


def _collapses(results: Results) -> Iterator[Claim]:
    for row in ("naive-multi-turn", "no-stage1"):
        changed, before = results.find(row, "changed@t2"), results.find(BASE, "changed@t2")
        delta, ours = results.find(row, "delta@t2"), results.find(SCORE, "delta@t2")
        if not (changed and delta):
            continue
        fewer, less = changed.minus(before), delta.minus(ours)
        if fewer and less:
            yield Claim(
                f"{row} collapses to answering the same twice",
                "share of changed answers below base's, and delta below SCoRe's",
                f"changed, less base's: {fewer}; delta, less SCoRe's: {less}",
                every([fewer.below(), less.below()]),
            )


def _bonus_to_first(results: Results) -> Iterator[Claim]:
    for row in ("discount", "bonus-to-first"):
        first, ours = results.find(row, "acc@t1"), results.find(SCORE, "acc@t1")
        if first and ours and (less := first.minus(ours)):
            yield Claim(
                f"{row}: a first attempt that sees the bonus learns to be wrong",
                "acc@t1 below SCoRe's",
                f"{percent(first.mean)} against {percent(ours.mean)}: {less}",
                less.below(),
            )


def _sequential_beats_parallel(results: Results) -> Iterator[Claim]:
    for match, gain in results.matching(SCORE, rf"majority@{GAIN}\[(\d+)\]", condition=VOTED):
        yield Claim(
            f"correcting beats sampling more, with {match[1]} responses",
            "votes of half as many corrected attempts above votes of first attempts",
            f"{gain.interval} points",
            gain.interval.above(),
        )


def _shift(results: Results) -> Iterator[Claim]:
    for row in ("star", "pair-sft"):
        own, given = results.correction_rate(row), results.correction_rate(row, condition=BASE_FIRST)
        if own and given and (more := given.minus(own)):
            yield Claim(
                f"{row} corrects the base's first attempts better than its own",
                "share of wrong first attempts put right, higher after the base's",
                f"{percent(given.mean)} against {percent(own.mean)} after its own: {more}",
                more.above(),
            )


def _points(value: float) -> str:
    return percent(value, signed=True)
