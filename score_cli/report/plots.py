"""The report's figures: numbers in, matplotlib figures and their SVG out. Pure functions.

Every colour of a figure is one of COLOURS. A file for a paper keeps them; on the page each becomes a CSS variable
of its name, so that the same figure is readable in light and dark. Numbers are fractions; axes in percent say so.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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
# A longer name of a policy is cut in its middle on an axis: names often differ at their ends.
MOST_LETTERS = 16
# Three names of together more letters stand in two rows of a legend.
MOST_LETTERS_A_ROW = 28
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

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        label: in the legend; none if empty.
        parts: (x, y) drawn strong, a part for each stage.
        faint: drawn thin behind: the raw values of a smoothed line, or the seeds of a mean.
        errors: of each y of the only part.
    """

    label: str
    parts: Sequence[Points]
    faint: Sequence[Points] = ()
    errors: Sequence[float] = ()


class Bar(NamedTuple):
    """The length of a bar, its error where known, and the values it is the mean of, drawn as dots."""

    value: float
    error: float | None = None
    dots: Sequence[float] = ()


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def lines_figure(
    lines: Sequence[Line],
    *,
    across: str,
    up: str,
    percent: bool = True,
    rules: Sequence[float] = (),
    marked: bool = False,
    steps: Literal["whole", "doubling", "any"] = "whole",
    size: tuple[float, float] = SIZE,
) -> Figure:
    """Draw lines over updates, attempts, responses or logprobs.

    Args:
        across, up: the axes' titles; rules: where dotted rules stand.
        marked: draw the points of a line of several too.
        steps: of the horizontal axis: whole numbers, powers of two at equal steps, or as they come.
    """
    # Above the axes two or three names stand in a row; more rows take from the figure's height.
    columns = 3 if sum(len(line.label) for line in lines[:3]) <= MOST_LETTERS_A_ROW else 2
    figure, axes = _new_axes(size[1] + 0.2 * ((len(lines) - 1) // columns), size[0])
    scale = 100 if percent else 1
    drawn: list[float] = []
    for index, line in enumerate(lines):
        look: dict[str, Any] = {"color": COLOURS[CYCLE[index % len(CYCLE)]]}
        for part in line.faint:
            drawn += (values := [scale * y for _, y in part])
            axes.plot([x for x, _ in part], values, linewidth=0.7, alpha=0.4, **look)
        look["linestyle"] = DASHES if len(lines) > 1 and index % 2 == 0 else "-"
        label: str | None = line.label or None
        for part in line.parts:
            values = [scale * y for _, y in part]
            look |= {"label": label, "marker": "o" if marked or len(part) == 1 else None, "markersize": 3}
            errors = [scale * error for error in line.errors] or None
            drawn += [
                y + sign * e for y, e in zip(values, errors or [0.0] * len(values), strict=True) for sign in (1, -1)
            ]
            axes.errorbar([x for x, _ in part], values, yerr=errors, elinewidth=0.9, **look)
            label = None
    for rule in rules:
        axes.axvline(rule, color=COLOURS["muted"], linestyle=":", linewidth=1)
    low, high = value_range(drawn)
    axes.set_ylim(0 if any(line.errors for line in lines) else low, high)
    if steps == "doubling":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(
            FixedLocator(sorted({x for line in lines for part in line.parts for x, _ in part}))
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif steps == "whole":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if any(line.label for line in lines):
        _legend_above(axes, columns)
    return figure


def bars_figure(groups: Mapping[str, Mapping[str, Bar]], colours: Mapping[str, str], *, across: str) -> Figure:
    """For each group two bars from the left, in percent.

    Args:
        groups: a policy or row -> what was measured -> its bar, or none; colours: of what was measured.
    """
    figure, axes = _new_axes(height=max(SIZE[1], 0.9 + 0.4 * len(groups)))
    for offset, (title, colour) in zip((-0.19, 0.19), colours.items(), strict=True):
        bars = {index + offset: group[title] for index, group in enumerate(groups.values()) if title in group}
        if not bars:
            continue
        lengths = [100 * bar.value for bar in bars.values()]
        errors = [100 * (bar.error or 0) for bar in bars.values()]
        look = _fill(colour) | {"error_kw": {"ecolor": COLOURS["ink"], "elinewidth": 1, "capsize": 2}}
        axes.barh(list(bars), lengths, xerr=errors if any(errors) else None, height=0.34, label=title, **look)
        for place, bar in bars.items():
            _dots(axes, [100 * dot for dot in bar.dots], [place] * len(bar.dots))
        _legend_above(axes, 2)
    axes.set_yticks(range(len(groups)), [short_name(name) for name in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.set_xlabel(across)
    return figure


def edits_figure(bins: Mapping[tuple[float, float], Bar], *, right: float, top: float) -> Figure:
    """Histogram of edit ratios, in percent of the traces: (low, high) of a bin -> its bar.

    Args:
        right, top: ends of the axes, so that figures can be compared.
    """
    figure, axes = _new_axes()
    for (low, high), bar in bins.items():
        axes.bar(low, 100 * bar.value, width=high - low, align="edge", **_fill("blue"))
        _dots(axes, [(low + high) / 2] * len(bar.dots), [100 * dot for dot in bar.dots])
    axes.set_xlim(min(low for low, _ in bins), right)
    axes.set_ylim(0, 100 * top or None)
    axes.set_xlabel("edit ratio (edit distance over summed length)")
    axes.set_ylabel("traces (%)")
    return figure


def flow_figure(share: Mapping[str, float], before: str, after: str) -> Figure:
    """Ribbons from right and wrong at one attempt to right and wrong at the next; heights are shares of the traces."""
    figure, axes = _new_axes()
    axes.set_axis_off()
    gap, bar = 0.06, 0.035
    left = {"c": 1 + gap, "i": share["i-c"] + share["i-i"]}
    right = {"c": 1 + gap, "i": share["c-i"] + share["i-i"]}
    for name, colour in {"c-c": "green", "c-i": "orange", "i-c": "blue", "i-i": "muted"}.items():
        start, end = name[0], name[2]
        _ribbon(axes, left[start], right[end], share[name], bar, COLOURS[colour])
        left[start] -= share[name]
        right[end] -= share[name]
    for x, sums, title in (
        (0.0, {"c": share["c-c"] + share["c-i"], "i": share["i-c"] + share["i-i"]}, before),
        (1.0 - bar, {"c": share["c-c"] + share["i-c"], "i": share["c-i"] + share["i-i"]}, after),
    ):
        side, place = ("right", x - 0.02) if x == 0 else ("left", x + bar + 0.02)
        for key, bottom, text in (("i", 0.0, "wrong"), ("c", 1 + gap - sums["c"], "right")):
            axes.add_patch(Rectangle((x, bottom), bar, sums[key], facecolor=COLOURS["ink"], linewidth=0))
            middle = min(max(bottom + sums[key] / 2, 0.06), 1 + gap - 0.06)
            axes.text(place, middle, f"{text}\n{100 * sums[key]:.1f}%", ha=side, va="center", fontsize=8)
        axes.text(x + bar / 2, 1 + gap + 0.05, title, ha="center", va="bottom", color=COLOURS["muted"])
    axes.set_xlim(-0.22, 1.22)
    axes.set_ylim(-0.02, 1 + gap + 0.15)
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


def _new_axes(height: float = SIZE[1], width: float = SIZE[0]) -> tuple[Figure, Axes]:
    """An empty figure, by default of the page's width, in inches."""
    figure = Figure(figsize=(width, height))
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


def _fill(colour: str) -> dict[str, Any]:
    """How a bar of one of COLOURS is drawn."""
    return {"facecolor": COLOURS[colour], "edgecolor": COLOURS[colour], "alpha": 0.75, "linewidth": 0.6}


def _legend_above(axes: Axes, columns: int) -> None:
    """Name the lines over the axes, where they hide none of them."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=2.2)


def _dots(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(xs, ys, color=COLOURS["ink"], linestyle="", marker="o", markersize=2.2)


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
