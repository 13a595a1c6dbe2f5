"""`score report`: a run folder to one page that needs nothing else: tables, figures and a browser of traces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_cli.config import ReportConfig
from score_cli.evaluation import report_text as text
from score_cli.evaluation.printing import further_tables, paper_table
from score_cli.evaluation.report_page import Drawn, check_page, render, slug, write_page
from score_cli.evaluation.report_run import RunFolder, Source, read_run
from score_cli.evaluation.report_stats import LONG_CURVE, PairFacts
from score_cli.evaluation.report_traces import SourceFacts, read_sources
from score_cli.progress import SILENT, Progress
from score_cli.tables.provenance import short_digest


def write_report(
    settings: ReportConfig,
    *,
    run: Path,
    out: Path,
    plots: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Write the page, and with `plots` each figure as SVG and PNG; returns the figures' names.

    Raises:
        UserError: matplotlib or jinja2 is missing, the folder holds nothing to report on, files in it do not belong
            together, or an output is in the way.
    """
    check_page(out, plots, overwrite=overwrite)
    folder = read_run(run)
    facts, browser = read_sources(folder, settings, progress)

    from score_cli.evaluation.report_plots import style

    with style():
        drawn = Drawn()
        page = _render(folder, facts, browser, drawn)
        return write_page(page, drawn, out=out, plots=plots, overwrite=overwrite)


def _render(folder: RunFolder, facts: list[SourceFacts], browser: dict[str, Any], drawn: Drawn) -> str:
    paper = every = None
    attempts = text.attempts_of(folder.metrics)
    if folder.metrics:
        titles, lines = paper_table(folder.metrics, attempts)
        paper = {"titles": titles, "lines": lines}
        titles, lines = text.every_metric(folder.metrics)
        every = {"titles": titles, "lines": lines}
    curves, smoothed = _curves(folder, drawn)
    return render(
        "report.html.jinja",
        headline=text.headline(folder.metrics),
        paper=paper,
        metrics=every,
        further=further_tables([*folder.metrics, *folder.comparisons], attempts),
        curves=curves,
        smoothed=smoothed,
        pairs=[_pair(attempt, facts, drawn, browser) for attempt in sorted({a for fact in facts for a in fact.pairs})],
        browser=browser,
        about=_about(folder, facts),
        verdicts=[[fact.source.title, *map(str, verdict)] for fact in facts for verdict in fact.verdicts],
        settings=text.setting_lines(folder.settings),
    )


def _curves(folder: RunFolder, drawn: Drawn) -> tuple[list[dict[str, str]], bool]:
    from score_cli.evaluation.report_plots import Series, curve_figure

    found, smoothed = [], False
    for (title, unit, percent), lines in text.curve_lines(folder.curve).items():
        series = [Series(label, parts) for label, parts in lines.items()]
        smoothed |= any(len(part) >= LONG_CURVE for line in series for part in line.parts.values())
        found.append(drawn.add(f"curve-{slug(title)}", title, curve_figure(series, unit, percent=percent)))
    return found, smoothed


def _pair(attempt: int, facts: Sequence[SourceFacts], drawn: Drawn, browser: dict[str, Any]) -> dict[str, Any]:
    """All that the page says of one pair of neighbouring attempts."""
    known = [(fact.source, fact.pairs[attempt]) for fact in facts if attempt in fact.pairs]
    # A link is by the whole chain of verdicts, which is that of the pair where there are two attempts.
    linked = browser["traces"] is not None and all(len(chain) == 3 for chain, _ in browser["chains"])
    return {
        "name": f"attempt {attempt - 1} to {attempt}",
        "linked": linked,
        "flow_lines": [
            text.flow_line(source.title, source.key, pair.flow, linked=linked) for source, pair in known if pair.flow
        ],
        "flows": _flows(attempt, known, drawn),
        "edits": _edits(attempt, known, drawn),
        "changed_lines": [
            [source.title, *(text.percent(pair.changed.get(key)) for key in "ci")] for source, pair in known
        ],
        "changed": _changes(attempt, known, drawn),
    }


def _flows(attempt: int, known: Sequence[tuple[Source, PairFacts]], drawn: Drawn) -> list[dict[str, str]]:
    from score_cli.evaluation.report_plots import flow_figure

    sides = (f"attempt {attempt - 1}", f"attempt {attempt}")
    return [
        drawn.add(f"flow-t{attempt}-{slug(source.key)}", source.title, flow_figure(pair.flow, *sides))
        for source, pair in known
        if pair.flow
    ]


def _edits(attempt: int, known: Sequence[tuple[Source, PairFacts]], drawn: Drawn) -> list[dict[str, str]]:
    from score_cli.evaluation.report_plots import edit_figure, edit_shares, edit_upper

    found = []
    for decoding in dict.fromkeys(source.decoding for source, _ in known):
        alike = [(source, pair.edit_ratios) for source, pair in known if source.decoding == decoding]
        upper = edit_upper([ratio for _, ratios in alike for ratio in ratios])
        top = 1.05 * max(max(edit_shares(ratios, upper)) for _, ratios in alike)
        for source, ratios in alike:
            same = 100 * sum(ratio == 0 for ratio in ratios) / len(ratios)
            caption = f"{source.title}: {same:.1f}% left as they were"
            figure = edit_figure(ratios, upper=upper, top=top)
            found.append(drawn.add(f"edits-t{attempt}-{slug(source.key)}", caption, figure))
    return found


def _changes(attempt: int, known: Sequence[tuple[Source, PairFacts]], drawn: Drawn) -> list[dict[str, str]]:
    from score_cli.evaluation.report_plots import calibration_figure, changed_figure

    found = []
    for decoding in dict.fromkeys(source.decoding for source, _ in known):
        alike = {source.policy: pair.changed for source, pair in known if source.decoding == decoding}
        name = f"changed-t{attempt}-{slug(str(decoding))}"
        found.append(drawn.add(name, f"All policies, {decoding}", changed_figure(alike)))
    for source, pair in known:
        # One group says nothing about who is changed.
        if len(pair.bins) > 1:
            name = f"calibration-t{attempt}-{slug(source.key)}"
            found.append(drawn.add(name, source.title, calibration_figure(pair.bins)))
    return found


def _about(folder: RunFolder, facts: Sequence[SourceFacts]) -> list[list[str]]:
    lines = [["problems", f"{name}: {count}"] for name, count in folder.problem_counts.items()]
    for stage in dict.fromkeys(row["stage"] for row in folder.curve):
        updates = {row["iteration"] for row in folder.curve if row["stage"] == stage}
        lines.append(["training", f"{stage}: {len(updates)} updates"])
    for fact in facts:
        value = f"{fact.source.title}: {fact.traces} traces of policy {short_digest(fact.fingerprint)}"
        lines.append(["evaluation", value])
    return lines
