"""`score report`: a run folder to one page that needs nothing else: tables, figures and a browser of traces.

The page holds no clock, host or path: the same run gives the same bytes. Everything that came from a problem or a
response is escaped by the template, or stands in JSON that the page's script shows as text.
"""

import base64
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.evaluation import report_text as text
from score_cli.evaluation.printing import further_tables, paper_table
from score_cli.evaluation.report_run import RunFolder, Source, read_run
from score_cli.evaluation.report_stats import (
    MOST_CHARACTERS,
    PairFacts,
    choose_rows,
    pair_facts,
    pairs_shown,
    shorten,
    shown_trace,
    spread,
    verdict_counts,
)
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output, replacing_file
from score_cli.tables.provenance import short
from score_cli.tables.records import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class SourceFacts:
    """What the page says of one evaluated policy."""

    source: Source
    pairs: dict[int, PairFacts]
    verdicts: list[tuple[str, int]]
    traces: int
    fingerprint: str | None


@dataclass(frozen=True)
class Listed:
    """A source in the browser of traces, and how many of its traces are on the page."""

    source: Source
    shown: int
    total: int


@dataclass
class Drawn:
    """Figures in the order of the page, by the name of their file."""

    figures: dict[str, "Figure"] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)

    def add(self, name: str, caption: str, figure: "Figure") -> dict[str, str]:
        """Keep a figure and return what the template shows; a name that is taken gets a number."""
        from markupsafe import Markup

        from score_cli.evaluation.report_plots import inline_svg

        number = 1 + sum(wanted == name for wanted in self.wanted)
        self.wanted.append(name)
        name = name if number == 1 else f"{name}_{number}"
        self.figures[name] = figure
        return {"caption": caption, "svg": Markup(inline_svg(figure, name, caption))}


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
    _check_extra()
    folder = read_run(run)
    check_output(out, overwrite=overwrite)
    if plots is not None and plots.exists() and not plots.is_dir():
        raise UserError(f"{plots} is a file, expected a folder for the figures: name another")
    facts, browser = _read_sources(folder, settings, progress)

    from score_cli.evaluation.report_plots import png_file, style, svg_file

    with style():
        drawn = Drawn()
        page = _render(folder, facts, browser, drawn)
        outputs = [plots / f"{name}.{kind}" for name in drawn.figures for kind in ("svg", "png")] if plots else []
        for path in outputs:
            check_output(path, overwrite=overwrite)
        for path in outputs:
            figure = drawn.figures[path.stem]
            content = png_file(figure) if path.suffix == ".png" else svg_file(figure, path.stem).encode()
            with replacing_file(path) as temporary:
                temporary.write_bytes(content)
    with replacing_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return list(drawn.figures)


def _check_extra() -> None:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"a report needs {' and '.join(missing)}, not installed here: pip install 'score-cli[report]' "
            "(or '.[report]' in a clone)"
        )


def _read_sources(
    folder: RunFolder, settings: ReportConfig, progress: Progress
) -> tuple[list[SourceFacts], dict[str, Any]]:
    """Go through the traces, one file in memory at a time: facts of the policies, and the traces to show."""
    facts: list[SourceFacts] = []
    shown: list[dict[str, Any]] = []
    listed: list[Listed] = []
    updates = [folder.updates[place] for place in spread(len(folder.updates), settings.updates_shown)]
    every = [*folder.evaluated, *updates]
    with progress.phase("reading", len(every)) as task:
        for source in every:
            rows, fingerprint = source.read()
            evaluated = source.decoding is not None
            if evaluated:
                pairs = {a: pair_facts(rows, a) for a in pairs_shown(max(len(trace.attempts) for trace, _ in rows))}
                verdicts = verdict_counts(reward for _, reward in rows)
                facts.append(SourceFacts(source, pairs, verdicts, len(rows), fingerprint))
            most = settings.traces_per_policy if evaluated else settings.traces_per_update
            chosen = choose_rows([reward for _, reward in rows], most)
            shown += [{"source": len(listed)} | shown_trace(*rows[row]) for row in chosen]
            listed.append(Listed(source, len(chosen), len(rows)))
            task.advance(1)
    return facts, _browser(folder, settings, listed, shown)


def _browser(
    folder: RunFolder, settings: ReportConfig, listed: list[Listed], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the template shows around the traces, and the data of the page's script; None where no trace is shown."""
    groups = {
        "evaluated": [entry for entry in listed if entry.source.decoding is not None],
        "training": [entry for entry in listed if entry.source.decoding is None],
    }
    names = sorted({trace["problem"] for trace in shown})
    words = {"c": "right", "i": "wrong", "u": "unscored"}
    chains = sorted({trace["chain"] for trace in shown}, key=lambda chain: (len(chain), chain))
    of_updates = (
        f" and {settings.traces_per_update} of each of {len(groups['training'])} of {len(folder.updates)} updates"
        if groups["training"]
        else ""
    )
    note = (
        f"At most {settings.traces_per_policy} traces of each policy and decoding{of_updates} are on this page, the "
        "rare verdicts as likely as the common; all stand in the run's tables. "
        f"Texts are cut after {MOST_CHARACTERS} characters. Words that the other attempt lacks are marked: struck out "
        "in the first attempt, underlined in later ones."
    )
    return {
        "note": note,
        "groups": {name: entries for name, entries in groups.items() if entries},
        "chains": [(chain, " → ".join(words[part] for part in chain.split("-"))) for chain in chains],
        "traces": {
            "sources": [{"key": entry.source.key, "title": entry.source.title} for entry in listed],
            "problems": {name: _problem(folder.problems[name]) for name in names if name in folder.problems},
            "traces": shown,
        }
        if shown
        else None,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return shorten(problem.question.strip()) | {"answer": problem.answer}


def _render(folder: RunFolder, facts: list[SourceFacts], browser: dict[str, Any], drawn: Drawn) -> str:
    import jinja2
    from markupsafe import Markup

    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    paper = every = None
    attempts = text.attempts_of(folder.metrics)
    if folder.metrics:
        titles, lines = paper_table(folder.metrics, attempts)
        paper = {"titles": titles, "lines": lines}
        titles, lines = text.every_metric(folder.metrics)
        every = {"titles": titles, "lines": lines}
    curves, smoothed = _curves(folder, drawn)
    return environment.get_template("report.html.jinja").render(
        script=Markup(script),
        script_digest=Markup(f"sha256-{digest}"),
        stylesheet=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
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
    from score_cli.evaluation.report_plots import LONG_CURVE, Series, curve_figure

    found, smoothed = [], False
    for (title, unit, percent), lines in text.curve_lines(folder.curve).items():
        series = [Series(label, parts) for label, parts in lines.items()]
        smoothed |= any(len(part) >= LONG_CURVE for line in series for part in line.parts.values())
        found.append(drawn.add(f"curve-{_slug(title)}", title, curve_figure(series, unit, percent=percent)))
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
        drawn.add(f"flow-t{attempt}-{_slug(source.key)}", source.title, flow_figure(pair.flow, *sides))
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
            found.append(drawn.add(f"edits-t{attempt}-{_slug(source.key)}", caption, figure))
    return found


def _changes(attempt: int, known: Sequence[tuple[Source, PairFacts]], drawn: Drawn) -> list[dict[str, str]]:
    from score_cli.evaluation.report_plots import calibration_figure, changed_figure

    found = []
    for decoding in dict.fromkeys(source.decoding for source, _ in known):
        alike = {source.policy: pair.changed for source, pair in known if source.decoding == decoding}
        name = f"changed-t{attempt}-{_slug(str(decoding))}"
        found.append(drawn.add(name, f"All policies, {decoding}", changed_figure(alike)))
    for source, pair in known:
        # One group says nothing about who is changed.
        if len(pair.bins) > 1:
            name = f"calibration-t{attempt}-{_slug(source.key)}"
            found.append(drawn.add(name, source.title, calibration_figure(pair.bins)))
    return found


def _about(folder: RunFolder, facts: Sequence[SourceFacts]) -> list[list[str]]:
    lines = [["problems", f"{name}: {count}"] for name, count in folder.problem_counts.items()]
    for stage in dict.fromkeys(row["stage"] for row in folder.curve):
        updates = {row["iteration"] for row in folder.curve if row["stage"] == stage}
        lines.append(["training", f"{stage}: {len(updates)} updates"])
    for fact in facts:
        value = f"{fact.source.title}: {fact.traces} traces of policy {short(fact.fingerprint)}"
        lines.append(["evaluation", value])
    return lines


def _slug(name: str) -> str:
    """A name as part of a file name and of an id."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name).split()).lower()
