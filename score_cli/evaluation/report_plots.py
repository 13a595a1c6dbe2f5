"""The report's figures: numbers in, matplotlib figures and their SVG out. Pure functions.

Every colour of a figure is one of COLOURS. A file for a paper keeps them; on the page each becomes a CSS variable
of its name, so that the same figure is readable in light and dark.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from score_cli.evaluation.report_stats import LONG_CURVE, LogprobBin, moving_average
from score_cli.metrics import Estimate

# Blue, vermilion, green, purple and yellow of Okabe and Ito, told apart by the colour-blind; darker greys for text.
COLOURS = {
    "ink": "#22262e",
    "muted": "#6a7180",
    "line": "#d4d8df",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#008e68",
    "purple": "#b0609a",
    "gold": "#a87d00",
}
CYCLE = ("blue", "orange", "green", "purple", "gold")
SIZE = (3.7, 2.5)  # inches
PNG_DPI = 200
HISTOGRAM_BINS = 20
# A longer name of a policy is cut in its middle on an axis: names often differ at their ends.
MOST_LETTERS = 16
DASHES = (0, (4, 1.5))
# Curves that move less than this share of their size are shown as the flat lines they are.
LEAST_RANGE = 0.1

# Any: matplotlib types the keys only in some of its versions.
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    # A policy may be called a_$b$.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a curve: (iteration, value) points of each stage, in order."""

    label: str
    parts: Mapping[str, Sequence[tuple[int, float]]]


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def curve_figure(series: Sequence[Series], unit: str, *, percent: bool = False) -> Figure:
    """Lines over the updates, a dotted rule where a stage begins; a long curve is smoothed, its raw values faint."""
    figure, axes = new_axes()
    scale = 100 if percent else 1
    for index, line in enumerate(series):
        dashed = len(series) > 1 and index % 2 == 0
        colour, dash = COLOURS[CYCLE[index % len(CYCLE)]], DASHES if dashed else "-"
        label: str | None = line.label
        for part in line.parts.values():
            updates, values = [update for update, _ in part], [scale * value for _, value in part]
            if len(values) >= LONG_CURVE:
                axes.plot(updates, values, color=colour, linewidth=0.7, alpha=0.35)
                values = moving_average(values, len(values) // 20)
            mark = "o" if len(values) == 1 else None
            axes.plot(updates, values, color=colour, linestyle=dash, marker=mark, markersize=3, label=label)
            label = None
    stages = {stage for line in series for stage in line.parts}
    starts = sorted(min(line.parts[stage][0][0] for line in series if stage in line.parts) for stage in stages)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=COLOURS["muted"], linestyle=":", linewidth=1)
    values = [scale * value for line in series for part in line.parts.values() for _, value in part]
    axes.set_ylim(*value_range(values))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("update")
    axes.set_ylabel(unit)
    if len(series) > 1:
        legend_above(axes, len(series))
    return figure


def edit_figure(ratios: Sequence[float], *, upper: float, top: float | None = None) -> Figure:
    """Histogram of the edit ratios above 0, as percent of all traces; unchanged texts would dwarf the rest.

    Args:
        ratios: of all traces; upper: right end of the axis; top: of the vertical axis, in percent.
    """
    figure, axes = new_axes()
    shares = edit_shares(ratios, upper)
    width = upper / HISTOGRAM_BINS
    axes.bar([index * width for index in range(HISTOGRAM_BINS)], shares, width=width, align="edge", **fill("blue"))
    axes.set_xlim(0, upper)
    axes.set_ylim(0, top or None)
    axes.set_xlabel("edit ratio (edit distance over summed length)")
    axes.set_ylabel("traces (%)")
    return figure


def edit_upper(ratios: Sequence[float]) -> float:
    """Right end of an axis for these ratios: their largest, rounded up to a multiple of 0.05."""
    return max(1, math.ceil(round(20 * max(ratios, default=0), 9))) / 20


def edit_shares(ratios: Sequence[float], upper: float) -> list[float]:
    """Percent of all traces in each of HISTOGRAM_BINS equal bins of (0, upper]; a bin holds its right end."""
    counts = [0] * HISTOGRAM_BINS
    for ratio in ratios:
        if ratio > 0:
            place = ratio / upper * HISTOGRAM_BINS
            counts[min(HISTOGRAM_BINS - 1, int(place) - (place == int(place)))] += 1
    return [100 * count / len(ratios) for count in counts]


def flow_figure(flow: Mapping[str, Estimate], before: str, after: str) -> Figure:
    """Ribbons from right and wrong at one attempt to right and wrong at the next; heights are shares of the traces."""
    figure, axes = new_axes()
    axes.set_axis_off()
    share = {name: estimate.value for name, estimate in flow.items()}
    gap, bar = 0.06, 0.035
    left = {"c": 1 + gap, "i": share["i-c"] + share["i-i"]}
    right = {"c": 1 + gap, "i": share["c-i"] + share["i-i"]}
    for name in ("c-c", "c-i", "i-c", "i-i"):
        start, end = name[0], name[2]
        colour = {"c-c": "green", "i-c": "blue", "c-i": "orange", "i-i": "muted"}[name]
        _ribbon(axes, left[start], right[end], share[name], bar, COLOURS[colour])
        left[start] -= share[name]
        right[end] -= share[name]
    for x, sums, title in (
        (0.0, {"c": share["c-c"] + share["c-i"], "i": share["i-c"] + share["i-i"]}, before),
        (1.0 - bar, {"c": share["c-c"] + share["i-c"], "i": share["c-i"] + share["i-i"]}, after),
    ):
        side = "right" if x == 0 else "left"
        place = x - 0.02 if x == 0 else x + bar + 0.02
        for key, bottom, text in (("i", 0.0, "wrong"), ("c", 1 + gap - sums["c"], "right")):
            axes.add_patch(Rectangle((x, bottom), bar, sums[key], facecolor=COLOURS["ink"], linewidth=0))
            middle = min(max(bottom + sums[key] / 2, 0.06), 1 + gap - 0.06)
            axes.text(place, middle, f"{text}\n{100 * sums[key]:.1f}%", ha=side, va="center", fontsize=8)
        axes.text(x + bar / 2, 1 + gap + 0.05, title, ha="center", va="bottom", color=COLOURS["muted"])
    axes.set_xlim(-0.22, 1.22)
    axes.set_ylim(-0.02, 1 + gap + 0.15)
    return figure


def changed_figure(changed: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """For each policy, the percent of answers changed where the earlier attempt was right and where it was wrong."""
    figure, axes = new_axes(height=max(SIZE[1], 0.9 + 0.4 * len(changed)))
    for offset, key, text, colour in ((-0.19, "c", "was right", "green"), (0.19, "i", "was wrong", "orange")):
        places = [index + offset for index, found in enumerate(changed.values()) if key in found]
        estimates = [found[key] for found in changed.values() if key in found]
        if not places:
            continue
        axes.barh(
            places,
            [100 * estimate.value for estimate in estimates],
            height=0.34,
            xerr=[100 * (estimate.stderr or 0) for estimate in estimates],
            error_kw={"ecolor": COLOURS["ink"], "elinewidth": 1, "capsize": 2},
            label=text,
            **fill(colour),
        )
        legend_above(axes, 2)
    axes.set_yticks(range(len(changed)), [short_name(policy) for policy in changed])
    axes.set_ylim(len(changed) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.set_xlabel("answers changed (%)")
    return figure


def calibration_figure(bins: Sequence[LogprobBin]) -> Figure:
    """By the sampler's mean logprob of the earlier attempt: percent changed, beside percent wrong."""
    figure, axes = new_axes()
    for key, text, colour, mark, dash in (
        ("wrong", "was wrong", "orange", "s", DASHES),
        ("changed", "answer changed", "blue", "o", "-"),
    ):
        estimates: list[Estimate] = [getattr(part, key) for part in bins]
        axes.errorbar(
            [part.mean for part in bins],
            [100 * estimate.value for estimate in estimates],
            yerr=[100 * (estimate.stderr or 0) for estimate in estimates],
            color=COLOURS[colour],
            marker=mark,
            markersize=3.5,
            linestyle=dash,
            elinewidth=0.9,
            label=text,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mean logprob of the attempt (nats a token)")
    axes.set_ylabel("traces (%)")
    legend_above(axes, 2)
    return figure


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element for the page: its colours as CSS variables, its text as text, its ids its own."""
    text = svg_file(figure, name, text_as="none")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, value in COLOURS.items():
        text = text.replace(value, f"var(--{colour})")
    # Several figures stand on one page, and matplotlib numbers the parts of each from 1.
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # The page sets the size; a <style> within an SVG would hold for the whole page.
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1).strip()


def svg_file(figure: Figure, name: str, *, text_as: str = "path") -> str:
    """A figure as an SVG file without a date; `path` draws the letters, so that it looks alike everywhere."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": text_as, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def png_file(figure: Figure) -> bytes:
    """A figure as a PNG on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def new_axes(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """An empty figure of the page's width, in inches."""
    figure = Figure(figsize=(SIZE[0], height))
    return figure, figure.add_subplot()


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """The vertical axis of a curve: at least LEAST_RANGE of its largest value, so that rounding is no mountain."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if largest == 0:
        return -0.05, 1
    missing = max(0, LEAST_RANGE * largest - (high - low)) / 2
    margin = 0.05 * (high - low + 2 * missing)
    return low - missing - margin, high + missing + margin


def short_name(name: str) -> str:
    """A name cut in its middle where an axis has no room for it."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[: half - 1]}…{name[-half:]}"


def fill(colour: str) -> dict[str, Any]:
    """How a bar of one of COLOURS is drawn."""
    return {"facecolor": COLOURS[colour], "edgecolor": COLOURS[colour], "alpha": 0.75, "linewidth": 0.6}


def legend_above(axes: Axes, columns: int) -> None:
    """Name the lines over the axes, where they hide none of them."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(columns, 3), borderaxespad=0.2, handlelength=2.2)


def _ribbon(axes: Axes, left: float, right: float, height: float, bar: float, colour: str) -> None:
    """A band whose top falls from `left` to `right`."""
    if height == 0:
        return
    start, end, middle = bar, 1 - bar, 0.5
    corners = [
        (start, left),
        (middle, left),
        (middle, right),
        (end, right),
        (end, right - height),
        (middle, right - height),
        (middle, left - height),
        (start, left - height),
        (start, left),
    ]
    curve = [Outline.CURVE4] * 3
    codes = [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY]
    axes.add_patch(PathPatch(Outline(corners, codes), facecolor=colour, alpha=0.5, linewidth=0))


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
