"""What the paper claims, and whether it appears in a study: a criterion on the figures for each claim. Pure functions.

Every figure is of sampled traces (T = 1) and a mean over seeds, unless the criterion says otherwise.
"""

from collections.abc import Iterator
from typing import NamedTuple

from score_cli.evaluation.votes import GAIN
from score_cli.study.results import BASE_FIRST, OWN, VOTED, Figures

SFT_ROWS = ("star", "star-plus", "pair-sft", "pair-sft-plus")
BASELINES = ("base", "self-refine", *SFT_ROWS)
ABLATIONS = (
    "single-turn",
    "naive-multi-turn",
    "no-stage1",
    "no-shaping",
    "star-for-stage2",
    "no-online-first-attempts",
)
COLLAPSED = ("naive-multi-turn", "no-stage1")
SHIFTED = ("star", "pair-sft")
SCORE, BASE = "score", "base"


class Claim(NamedTuple):
    """A claim, the criterion in words, the figures it was judged by, and the verdict."""

    text: str
    criterion: str
    figures: str
    appears: bool

    def __str__(self) -> str:
        verdict = "appears" if self.appears else "does not appear"
        return f"{verdict}: {self.text} ({self.criterion}): {self.figures}"


def judge_claims(found: Figures) -> list[Claim]:
    """The claims that a study has the rows for, in the order of the paper."""
    return [
        *_base_does_not_correct(found),
        *_sft_falls_short(found),
        *_largest(found, BASELINES, "baselines"),
        *_largest(found, ABLATIONS, "ablations"),
        *_collapses(found),
        *_bonus_to_first(found),
        *_sequential_beats_parallel(found),
        *_shift(found),
    ]


def correction_rate(found: Figures, row: str, condition: str) -> list[float]:
    """Of the first attempts that were wrong, the share put right, seed by seed; empty where not measured."""
    first = found.values(row, "acc@t1", condition=condition)
    fixed = found.values(row, "i_to_c@t2", condition=condition)
    return [share / (1 - right) for share, right in zip(fixed, first, strict=True) if right < 1]


def _base_does_not_correct(found: Figures) -> Iterator[Claim]:
    delta = found.mean(BASE, "delta@t2")
    if delta is not None:
        text = "the base loses by correcting itself"
        yield Claim(text, "delta of base below 0", _points(delta), delta < 0)


def _sft_falls_short(found: Figures) -> Iterator[Claim]:
    ours = found.mean(SCORE, "delta@t2")
    for row in SFT_ROWS:
        deltas = found.values(row, "delta@t2")
        if ours is None or not deltas:
            continue
        mean = sum(deltas) / len(deltas)
        mixed = min(deltas) < 0 < max(deltas)
        each = ", ".join(_points(delta) for delta in deltas)
        yield Claim(
            f"supervised training falls short: {row}",
            "delta below SCoRe's, or of both signs over the seeds",
            f"{each} (mean {_points(mean)}) against {_points(ours)}",
            mean < ours or mixed,
        )


def _largest(found: Figures, rows: tuple[str, ...], kind: str) -> Iterator[Claim]:
    """One claim a measure: SCoRe's is above that of every row named."""
    for name, title in (("acc@t2", "accuracy at the second attempt"), ("delta@t2", "delta")):
        ours = found.mean(SCORE, name)
        theirs = {row: value for row in rows if (value := found.mean(row, name)) is not None}
        if ours is None or not theirs:
            continue
        best = max(theirs, key=theirs.__getitem__)
        show = _points if name.startswith("delta") else _percent
        yield Claim(
            f"SCoRe has the largest {title}, of the {kind}",
            f"{name} of score above those of {', '.join(theirs)}",
            f"{show(ours)} against {show(theirs[best])} of {best}",
            ours > theirs[best],
        )


def _collapses(found: Figures) -> Iterator[Claim]:
    for row in COLLAPSED:
        changed, before = found.mean(row, "changed@t2"), found.mean(BASE, "changed@t2")
        delta, ours = found.mean(row, "delta@t2"), found.mean(SCORE, "delta@t2")
        if changed is None or before is None or delta is None or ours is None:
            continue
        yield Claim(
            f"{row} collapses to answering the same twice",
            "share of changed answers below base's, and delta below SCoRe's",
            f"changed {_percent(changed)} against {_percent(before)}; delta {_points(delta)} against {_points(ours)}",
            changed < before and delta < ours,
        )


def _bonus_to_first(found: Figures) -> Iterator[Claim]:
    for row in ("discount", "bonus-to-first"):
        first, ours = found.mean(row, "acc@t1"), found.mean(SCORE, "acc@t1")
        if first is not None and ours is not None:
            yield Claim(
                f"{row}: a first attempt that sees the bonus learns to be wrong",
                "acc@t1 below SCoRe's",
                f"{_percent(first)} against {_percent(ours)}",
                first < ours,
            )


def _sequential_beats_parallel(found: Figures) -> Iterator[Claim]:
    for name in found.names(SCORE, VOTED, "sampled"):
        kind, _, budget = name.removeprefix("majority@").partition("[")
        gain = found.mean(SCORE, name, condition=VOTED)
        if kind == GAIN and gain is not None:
            yield Claim(
                f"correcting beats sampling more, with {budget.rstrip(']')} responses",
                "votes of half as many corrected attempts above votes of first attempts",
                f"{_points(gain)} points",
                gain > 0,
            )


def _shift(found: Figures) -> Iterator[Claim]:
    for row in SHIFTED:
        own, fixed = (correction_rate(found, row, condition) for condition in (OWN, BASE_FIRST))
        if own and fixed:
            ours, theirs = sum(own) / len(own), sum(fixed) / len(fixed)
            yield Claim(
                f"{row} corrects the base's first attempts better than its own",
                "share of wrong first attempts put right, higher after the base's",
                f"{_percent(theirs)} against {_percent(ours)} after its own",
                theirs > ours,
            )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
