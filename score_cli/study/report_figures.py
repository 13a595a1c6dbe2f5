"""The figures of a study's report: numbers over seeds in, matplotlib figures out. Pure functions."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from score_cli.evaluation.report_plots import (
    COLOURS,
    CYCLE,
    SIZE,
    fill,
    legend_above,
    new_axes,
    short_name,
    value_range,
)
from score_cli.study.report_results import Line, Seeds

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


def lines_figure(
    lines: Sequence[Line],
    *,
    across: str,
    up: str,
    rules: Sequence[int] = (),
    doubling: bool = False,
    marked: bool = False,
) -> Figure:
    """A strong line of each mean over seeds and a faint one of each seed, in percent.

    Args:
        across, up: the axes' titles; rules: where dotted rules stand.
        doubling: the places are powers of two, drawn at equal steps; marked: draw the points too.
    """
    # Above the axes three names stand in a row; more rows take from the figure's height.
    figure, axes = new_axes(height=SIZE[1] + 0.2 * ((len(lines) - 1) // 3))
    for index, line in enumerate(lines):
        colour = COLOURS[CYCLE[index % len(CYCLE)]]
        dash = DASHES[index // len(CYCLE) % len(DASHES)]
        for seed in sorted({seed for point in line.points for seed in point.seeds.values}):
            own = [point for point in line.points if seed in point.seeds.values]
            values = [100 * point.seeds.values[seed] for point in own]
            axes.plot([point.place for point in own], values, color=colour, linewidth=0.7, alpha=0.45)
        axes.plot(
            [point.place for point in line.points],
            [100 * point.seeds.mean for point in line.points],
            color=colour,
            linestyle=dash,
            marker="o" if marked or len(line.points) == 1 else None,
            markersize=3.5,
            label=short_name(line.label),
        )
    for rule in rules:
        axes.axvline(rule - 0.5, color=COLOURS["muted"], linestyle=":", linewidth=1)
    values = [100 * value for line in lines for point in line.points for value in point.seeds.values.values()]
    axes.set_ylim(*value_range(values))
    if doubling:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({point.place for line in lines for point in line.points})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    legend_above(axes, len(lines))
    return figure


def histogram_figure(bins: Mapping[tuple[float, float], Seeds], *, right: float, top: float) -> Figure:
    """Bars of the means over seeds and a dot for each seed, in percent.

    Args:
        right, top: ends of the axes, so that the rows' figures can be compared.
    """
    figure, axes = new_axes()
    for (low, high), seeds in bins.items():
        axes.bar(low, 100 * seeds.mean, width=high - low, align="edge", **fill("blue"))
        _dots(axes, [(low + high) / 2] * len(seeds.values), [100 * value for value in seeds.values.values()])
    axes.set_xlim(min(low for low, _ in bins), right)
    axes.set_ylim(0, top)
    axes.set_xlabel("edit ratio (edit distance over summed length)")
    axes.set_ylabel("traces (%)")
    return figure


def groups_figure(groups: Mapping[str, Mapping[str, Seeds]], *, across: str) -> Figure:
    """For each row, a bar for each of two measurements: means over seeds with a dot for each seed, in percent.

    Args:
        groups: row -> what was measured -> its number; every row has the same two.
    """
    figure, axes = new_axes(height=max(SIZE[1], 0.9 + 0.4 * len(groups)))
    titles = list(next(iter(groups.values())))
    for offset, title, colour in zip((-0.19, 0.19), titles, ("blue", "orange"), strict=True):
        places = [index + offset for index in range(len(groups))]
        found = [group[title] for group in groups.values()]
        axes.barh(places, [100 * seeds.mean for seeds in found], height=0.34, label=title, **fill(colour))
        for place, seeds in zip(places, found, strict=True):
            _dots(axes, [100 * value for value in seeds.values.values()], [place] * len(seeds.values))
    axes.set_yticks(range(len(groups)), [short_name(row) for row in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.set_xlabel(across)
    legend_above(axes, 2)
    return figure


def _dots(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(xs, ys, color=COLOURS["ink"], linestyle="", marker="o", markersize=2.2)
