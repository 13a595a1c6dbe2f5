"""A study's measurements over its seeds: what is looked up, averaged and laid out for its report. Pure functions."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from score_cli.evaluation.evaluate import MINUS
from score_cli.evaluation.report_stats import LONG_CURVE, moving_average
from score_cli.evaluation.votes import PARALLEL, SEQUENTIAL
from score_cli.study.results import OWN, VOTED

# Title of the table's column -> metric.
COLUMNS = {
    "acc@t1": "acc@t1",
    "acc@t2": "acc@t2",
    "delta": "delta@t2",
    "i->c": "i_to_c@t2",
    "c->i": "c_to_i@t2",
    "edit ratio": "edit_ratio@t2",
}

Paper = Mapping[str, Mapping[str, float]]  # row -> metric -> the paper's value, a fraction


@dataclass(frozen=True)
class Seeds:
    """One number measured in several seeds."""

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


class Point(NamedTuple):
    """One number over the seeds at a place of an axis: an update, a budget, an attempt."""

    place: int
    seeds: Seeds


@dataclass(frozen=True)
class Line:
    """What a figure draws of one row, in order of the axis."""

    label: str
    points: Sequence[Point]


class Results:
    """The rows of study.parquet, looked up by what they measure."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep of each row of the study the policy it ends with, as `policies` says."""
        measured = [row for row in rows if MINUS not in row["policy"]]
        # A run lists its policies in the order of its training: the base first, the last is what the row is about.
        self.policies = {(row["row"], row["seed"], row["condition"]): row["policy"] for row in measured}
        self._values: dict[tuple[str, str, str, str], dict[int, float]] = {}
        for row in measured:
            if row["policy"] == self.policies[row["row"], row["seed"], row["condition"]]:
                key = (row["row"], row["condition"], row["decoding"], row["name"])
                self._values.setdefault(key, {})[row["seed"]] = row["value"]
        self.rows = list(dict.fromkeys(key[0] for key in self._values))
        self.seeds = sorted({seed for _, seed, _ in self.policies})

    def find(self, row: str, name: str, *, decoding: str, condition: str = OWN) -> Seeds | None:
        """One metric of one row, as a fraction."""
        values = self._values.get((row, condition, decoding, name))
        return Seeds(dict(sorted(values.items()))) if values else None

    def correction_rate(self, row: str, *, decoding: str, condition: str = OWN) -> Seeds | None:
        """Of the first attempts that were wrong, the share put right; None where none was wrong."""
        fixed = self.find(row, "i_to_c@t2", decoding=decoding, condition=condition)
        first = self.find(row, "acc@t1", decoding=decoding, condition=condition)
        if fixed is None or first is None:
            return None
        wrong = {seed: 1 - first.values[seed] for seed in fixed.values if first.values.get(seed, 1) < 1}
        return Seeds({seed: fixed.values[seed] / share for seed, share in wrong.items()}) if wrong else None

    def decodings(self, condition: str = OWN) -> list[str]:
        """The decodings that a condition was measured in, sampled before greedy."""
        return sorted({key[2] for key in self._values if key[1] == condition}, reverse=True)

    def line(self, row: str, pattern: str, *, decoding: str, condition: str = OWN) -> Line:
        """The metrics whose names match, placed by the number that the pattern holds."""
        found = {
            int(match[1]): Seeds(dict(sorted(values.items())))
            for key, values in self._values.items()
            if key[:3] == (row, condition, decoding) and (match := re.fullmatch(pattern, key[3]))
        }
        return Line(row, [Point(place, found[place]) for place in sorted(found)])

    def histogram(self, row: str, *, decoding: str) -> dict[tuple[float, float], Seeds]:
        """Share of traces in each bin (left end, right end) of the edit ratio, in order."""
        pattern = r"edit_ratio_hist@t2\[([\d.]+),([\d.]+)[\])]"
        return {
            (float(match[1]), float(match[2])): Seeds(dict(sorted(values.items())))
            for key, values in sorted(self._values.items())
            if key[:3] == (row, OWN, decoding) and (match := re.fullmatch(pattern, key[3]))
        }


def study_table(results: Results, decoding: str, paper: Paper) -> tuple[list[str], list[list[str]]]:
    """The study's table in percent, a line a row; the paper's figure stands right of ours where it has one."""
    names = [name for name in COLUMNS.values() if any(name in figures for figures in paper.values())]
    titles, lines = ["row"], []
    for title, name in COLUMNS.items():
        titles += [title, "paper"] if name in names else [title]
    for row in results.rows:
        cells = [row]
        for name in COLUMNS.values():
            cells.append(percent(results.find(row, name, decoding=decoding), signed=name.startswith("delta")))
            if name in names:
                known = paper.get(row, {}).get(name)
                cells.append("" if known is None else _number(known, signed=name.startswith("delta")))
        if any(cells[1:]):
            seeds = results.find(row, "acc@t1", decoding=decoding)
            lines.append([*cells, str(len(seeds.values)) if seeds else ""])
    return [*titles, "seeds"], lines


def percent(seeds: Seeds | None, *, signed: bool = False) -> str:
    """`54.2 ±1.3`: mean and standard deviation over seeds; empty where nothing was measured."""
    if seeds is None:
        return ""
    spread = "" if seeds.deviation is None else f" ±{100 * seeds.deviation:.1f}"
    return _number(seeds.mean, signed=signed) + spread


def headline(results: Results, decoding: str, *, before: str = "base", after: str = "score") -> str | None:
    """What the first attempt, the second and their difference were, from the base to the method."""
    parts = []
    for name, words, sign in (
        ("acc@t1", "the first attempt", ""),
        ("acc@t2", "the second", ""),
        ("delta@t2", "their difference", "+"),
    ):
        ends = [results.find(row, name, decoding=decoding) for row in (before, after)]
        shown = [f"{100 * end.mean:{sign}.1f}{' points' if sign else '%'}" for end in ends if end]
        if len(shown) == 2:
            parts.append(f"{words} went from {shown[0]} to {shown[1]}")
    return f"From {before} to {after}, {decoding}, mean over seeds: {', '.join(parts)}." if parts else None


def curve_line(row: str, curves: Mapping[int, Sequence[Mapping[str, Any]]], name: str, attempt: int | None) -> Line:
    """A logged metric of every update that all of the row's seeds have; a long curve is a moving average.

    Args:
        curves: the rows of the curve table, by seed.
    """
    found = {
        seed: {line["iteration"]: line["value"] for line in lines if (line["name"], line["attempt"]) == (name, attempt)}
        for seed, lines in curves.items()
    }
    found = {seed: values for seed, values in found.items() if values}
    shared = sorted(set.intersection(*(set(values) for values in found.values()))) if found else []
    if len(shared) >= LONG_CURVE:
        for seed, values in found.items():
            smooth = moving_average([values[update] for update in shared], len(shared) // 20)
            found[seed] = dict(zip(shared, smooth, strict=True))
    return Line(row, [Point(u, Seeds({seed: values[u] for seed, values in found.items()})) for u in shared])


def stage_starts(curves: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[int]:
    """The updates at which stages after the first begin."""
    starts: dict[str, int] = {}
    for line in (line for lines in curves.values() for line in lines):
        starts[line["stage"]] = min(line["iteration"], starts.get(line["stage"], line["iteration"]))
    return sorted(set(starts.values()))[1:]


def vote_lines(results: Results, row: str, decoding: str) -> list[Line]:
    """Majority vote over the budget: first attempts alone, and half as many each corrected once."""
    lines = [
        Line(kind, results.line(row, rf"majority@{kind}\[(\d+)\]", decoding=decoding, condition=VOTED).points)
        for kind in (PARALLEL, SEQUENTIAL)
    ]
    return [line for line in lines if line.points]


def numbers_table(axis: str, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """What a figure of lines draws, in percent: a line of the table for each place of the axis."""
    cells = {(line.label, point.place): percent(point.seeds) for line in lines for point in line.points}
    places = sorted({place for _, place in cells})
    return [axis, *(line.label for line in lines)], [
        [str(place), *(cells.get((line.label, place), "") for line in lines)] for place in places
    ]


def _number(value: float, *, signed: bool) -> str:
    return f"{100 * value:{'+' if signed else ''}.1f}"
