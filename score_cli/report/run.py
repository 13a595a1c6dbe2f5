"""The page of a run folder: its tables, what its updates logged, and where the answers went.

Nothing in the folder is required but the result of some work: a run that is under way or stopped has a page too.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.evaluation.evaluate import MINUS, Row
from score_cli.evaluation.layout import TextTable, attempts_of, every_metric, headline, metric_tables, percent
from score_cli.metrics import Estimate
from score_cli.progress import Progress
from score_cli.report.page import Block, Figures, Folded, Plots, Section, Words, render
from score_cli.report.plots import Bar, Line, bars_figure, edits_figure, flow_figure, lines_figure
from score_cli.report.traces import (
    FLOWS,
    PairFacts,
    Source,
    SourceFacts,
    check_rewards,
    evaluated_sources,
    read_sources,
)
from score_cli.tables.parquet import METRICS, TRAIN_METRICS, read_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import short_digest
from score_cli.tables.updates import Updates

# Where a run keeps its problems, and where the single commands do.
PROBLEM_FILES = ("train", "validation", "test", "problems")
# A curve of this many updates or more is drawn with its moving average, over a twentieth of it.
LONG_CURVE = 40
HISTOGRAM_BINS = 20

PROGRESS = "Progress between the attempts"
# Logged name -> (title, unit, shown in percent). Names of one title share a figure; unknown names get one each.
CURVES: dict[str, tuple[str, str, bool]] = {
    "accuracy": ("Accuracy", "correct (%)", True),
    "reward": ("Shaped reward", "mean reward", False),
    "delta": (PROGRESS, "traces (%)", True),
    "i_to_c": (PROGRESS, "traces (%)", True),
    "c_to_i": (PROGRESS, "traces (%)", True),
    "changed": ("Answers changed", "traces (%)", True),
    "edit_ratio": ("Edit ratio", "mean ratio", False),
    "kl": ("KL from the reference, sampled", "nats an attempt", False),
    "full_kl": ("KL from the reference, full vocabulary", "nats an attempt", False),
    "k3": ("KL from the reference, k3", "nats an attempt", False),
    "grad_norm": ("Gradient norm", "before clipping", False),
    "entropy": ("Entropy", "nats a token", False),
    "length": ("Length", "tokens an attempt", False),
    "truncated": ("Cut at the token limit", "attempts (%)", True),
    "advantage_sd": ("Spread of the advantages", "standard deviation", False),
    "frac_zero_advantage": ("Problems without a signal", "problems (%)", True),
    "unscored": ("Unscored by the verifier", "attempts (%)", True),
    "logprob_diff_abs": ("Trainer to sampler, absolute", "nats a token", False),
    "logprob_diff": ("Trainer to sampler, signed", "nats a token", False),
}
LABELS = {"delta": "delta", "i_to_c": "wrong to right", "c_to_i": "right to wrong"}

RESULTS = Markup(
    "Held-out problems, percent, ± standard error clustered by problem. <em>delta</em> is the last attempt minus the "
    'one before; <em class="whole">i-&gt;c</em> and <em class="whole">c-&gt;i</em> are the shares of all traces put '
    "right and broken by it."
)
TRAINING = "What each update logged on the traces it learned from; a dotted rule marks the start of a stage."
SMOOTHED = " Strong lines are moving averages over a twentieth of the stage, faint lines the raw values."
FLOW = (
    "Where the traces that were scored at both attempts went: green stayed right, blue was put right, orange was "
    "broken, grey stayed wrong."
)
EDITS = (
    "Edit ratio: edit distance in characters between the two attempts over their summed length. Texts left as they "
    "were are counted in the caption and not drawn; the figures of one decoding share their axes."
)
CHANGED = Markup(
    "A policy that knows its mistakes changes the answers that are wrong and leaves those that are right. The curves "
    "split the traces by how sure the sampler was of the earlier attempt, into groups of about equal size: the closer "
    "<em>answer changed</em> runs to <em>was wrong</em>, the better doubt is placed. Bars are standard errors."
)

Curve = dict[str, list[tuple[float, float]]]  # stage -> (iteration, value), in order


def read_config(path: Path) -> dict[str, Any]:
    """What a run was started with; nothing where the file is not there.

    Raises:
        UserError: the file holds something else.
    """
    try:
        config = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or delete it to report without settings") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no table of settings: restore it, or delete it to report without settings")
    return config


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The whole curve, or, before the run has ended, what its updates logged so far."""
    whole = folder / "train_metrics.parquet"
    if whole.exists():
        return list(read_table(whole, TRAIN_METRICS).to_pylist())
    updates = Updates(folder / "iterations")
    paths = [place / "metrics.parquet" for place in updates.places(updates.numbers())]
    return [row for path in paths if path.exists() for row in read_table(path, TRAIN_METRICS).to_pylist()]


def run_page(run: Path, config: ReportConfig, figures: Figures, progress: Progress) -> str:
    """The page of a run folder.

    Raises:
        UserError: no such folder, or nothing in it to report on, or files in it that do not belong together.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder: name one that `score run` or `score eval` wrote into")
    curve, path = read_curve(run), run / "metrics.parquet"
    metrics = read_table(path, METRICS).to_pylist() if path.exists() else []
    evaluated = list(evaluated_sources(run / "eval", list(dict.fromkeys(row["policy"] for row in metrics))))
    updates = list(_updates(run, {row["iteration"]: row["stage"] for row in curve}))
    if not (metrics or evaluated or updates):
        raise UserError(
            f"{run} holds no metrics.parquet, eval/ or iterations/ with traces and rewards: "
            "name the folder that holds them, such as runs/quickstart, or `.` after a bare `score eval`"
        )
    if metrics:
        check_rewards(path, evaluated)
    files = {name: path for name in PROBLEM_FILES if (path := run / f"{name}.parquet").exists()}
    problems = {name: {p.problem_id: p for p in read_problems(path)} for name, path in files.items()}
    known = {name: problem for part in problems.values() for name, problem in part.items()}
    facts, browser = read_sources(evaluated, updates, known, config, progress)
    own = [row for row in metrics if MINUS not in row["policy"]]
    sections = []
    if own:
        paper, *further = metric_tables(metrics, attempts_of(own))
        further = [table._replace(caption=f"Percent: {table.caption}.") for table in further]
        every = Folded("Every metric, with the traces it is over", [every_metric(own)])
        curves = [Plots(plots)] if (plots := _escalation(own, figures)) else []
        sections.append(Section("results", "Results", [Words(RESULTS), paper, *further, *curves, every], "Results"))
    if curve:
        sections.append(_training(curve, figures))
    sections += _pairs(facts, browser, figures)
    sections += traces_section(browser)
    about = [*_about(problems, curve, facts), *config_table(read_config(run / "config.json"))]
    sections.append(Section("about", "About this run", about, "About this run"))
    return render("SCoRe report", headline(own), sections)


def _escalation(rows: Sequence[Row], figures: Figures) -> list[dict[str, str]]:
    """Accuracy against the share handed over, beside the straight line of a random order."""
    points: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if match := re.fullmatch(r"escalated@(.+)\[([\d.]+)\]", row["name"]):
            points.setdefault((row["policy"], match[1], row["decoding"]), []).append((float(match[2]), row["value"]))
    plots = []
    for (policy, to, decoding), curve in points.items():
        lines = [Line("least trusted first", [curve]), Line("random order", [[curve[0], curve[-1]]])]
        figure = lines_figure(lines, across="share handed over", up="correct (%)", steps="any")
        plots.append(figures.add(f"escalation-{policy}-{decoding}", f"{policy} to {to}, {decoding}", figure))
    return plots


def traces_section(browser: Sequence[Any], before: str = "") -> list[Section]:
    """The browser of traces, if there is any; `before` opens its note."""
    return [Section("traces", "Traces", [Words(before + browser[0]), browser[1]], "Traces")] if browser else []


def config_table(config: Mapping[str, Any]) -> list[Folded]:
    """What every stage was started with, folded."""
    lines = []
    for stage, values in config.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            lines.append([stage, name, "" if value is None else str(value)])
    return [Folded("Settings", [TextTable("", ["stage", "setting", "value"], lines, 3)])] if lines else []


def smoothed(values: Sequence[float]) -> list[float]:
    """A long curve's centred moving average over a twentieth of it, narrower at the ends; a short curve as it is."""
    reach = len(values) // 20 // 2 if len(values) >= LONG_CURVE else 0
    means = []
    for index in range(len(values)):
        side = min(reach, index, len(values) - 1 - index)
        near = values[index - side : index + side + 1]
        means.append(sum(near) / len(near))
    return means


def curve_lines(curve: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, bool], dict[str, Curve]]:
    """Rows of train_metrics.parquet as figures: (title, unit, percent) -> label of a line -> its points by stage."""
    ranks = {name: rank for rank, name in enumerate(CURVES)}

    def place(row: Mapping[str, Any]) -> tuple[int, list[str], int, int]:
        name = row["name"].partition("@")
        return ranks.get(name[0], len(ranks)), [name[0], name[2]], row["attempt"] or 0, row["iteration"]

    panels: dict[tuple[str, str, bool], dict[str, Curve]] = {}
    for row in sorted(curve, key=place):
        name, _, pair = row["name"].partition("@")
        label = "all attempts" if name == "grad_norm" and row["attempt"] is None else LABELS.get(name, "all")
        if row["attempt"] is not None:
            label = f"attempt {row['attempt']}"
        elif pair not in ("", "t2"):
            label = f"{label} at {pair}" if name in LABELS else f"at {pair}"
        line = panels.setdefault(CURVES.get(name, (name, "", False)), {}).setdefault(label, {})
        line.setdefault(row["stage"], []).append((row["iteration"], row["value"]))
    return panels


def stage_line(label: str, stages: Curve) -> Line:
    """A line with a part for each stage, smoothed where that is long, its raw values faint behind."""
    parts = [list(zip([x for x, _ in p], smoothed([y for _, y in p]), strict=True)) for p in stages.values()]
    return Line(label, parts, [part for part in stages.values() if len(part) >= LONG_CURVE])


def stage_starts(curve: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The first update of each stage, in order."""
    starts: dict[str, int] = {}
    for row in curve:
        starts[row["stage"]] = min(row["iteration"], starts.get(row["stage"], row["iteration"]))
    return dict(sorted(starts.items(), key=lambda item: item[1]))


def stage_rules(curve: Iterable[Mapping[str, Any]]) -> list[float]:
    """Where a figure rules off the stages: half an update before each but the first begins."""
    return [start - 0.5 for start in list(stage_starts(curve).values())[1:]]


def edit_bins(ratios: Mapping[float, int], upper: float) -> dict[tuple[float, float], Bar]:
    """Share of all traces in each of HISTOGRAM_BINS equal bins of (0, upper]; a bin holds its right end."""
    counts = [0] * HISTOGRAM_BINS
    for ratio, traces in ratios.items():
        if ratio > 0:
            place = ratio / upper * HISTOGRAM_BINS
            counts[min(HISTOGRAM_BINS - 1, int(place) - (place == int(place)))] += traces
    width, whole = upper / HISTOGRAM_BINS, sum(ratios.values())
    return {(n * width, (n + 1) * width): Bar(count / whole) for n, count in enumerate(counts)}


def edit_upper(ratios: Iterable[float]) -> float:
    """Right end of an axis for these ratios: their largest, rounded up to a multiple of 0.05."""
    return max(1, math.ceil(round(20 * max(ratios, default=0), 9))) / 20


def _updates(folder: Path, stages: Mapping[int, str]) -> Iterator[Source]:
    updates = Updates(folder / "iterations")
    for number in updates.numbers():
        if (updates.place(number) / "rewards.parquet").exists():
            # A path that an update had before it was joined with others stands for it still.
            traces, rewards = (updates.folder(number) / name for name in ("traces.parquet", "rewards.parquet"))
            stage = f" ({stages[number]})" if number in stages else ""
            yield Source(f"update-{number:04d}", f"update {number}{stage}", "update", None, traces, rewards)


def _training(curve: Sequence[Mapping[str, Any]], figures: Figures) -> Section:
    plots, long, rules = [], False, stage_rules(curve)
    for (title, unit, in_percent), lines in curve_lines(curve).items():
        drawn = [stage_line(label if len(lines) > 1 else "", stages) for label, stages in lines.items()]
        long |= any(line.faint for line in drawn)
        figure = lines_figure(drawn, across="update", up=unit, percent=in_percent, rules=rules)
        plots.append(figures.add(f"curve-{title}", title, figure))
    return Section("training", "Over training", [Words(TRAINING + SMOOTHED * long), Plots(plots)], "Training")


def _pairs(facts: Sequence[SourceFacts], browser: Sequence[Any], figures: Figures) -> list[Section]:
    """What happened between neighbouring attempts; links lead to the first pair."""
    sections: list[Section] = []
    # A link is by the whole chain of verdicts, which is that of the pair where there are two attempts.
    linked = bool(browser) and all(len(chain) == 3 for chain in browser[1]["chains"])
    for place, attempt in enumerate(sorted({attempt for fact in facts for attempt in fact.pairs})):
        pairs = [(fact.source, fact.pairs[attempt]) for fact in facts if attempt in fact.pairs]
        parts = (
            _flow(attempt, pairs, figures, linked),
            _edits(attempt, pairs, figures),
            _changed(attempt, pairs, figures),
        )
        sections += [part if place == 0 else part._replace(name="", link="") for part in parts]
    return sections


def _flow(attempt: int, pairs: Sequence[tuple[Source, PairFacts]], figures: Figures, linked: bool) -> Section:
    sides, lines, plots = (f"attempt {attempt - 1}", f"attempt {attempt}"), [], []
    for source, pair in pairs:
        if pair.flow:
            cells = [_flow_cell(source, name, pair.flow[name], linked) for name in FLOWS]
            lines.append([source.title, *cells, str(pair.flow[FLOWS[0]].count)])
            figure = flow_figure({name: estimate.value for name, estimate in pair.flow.items()}, *sides)
            plots.append(figures.add(f"flow-t{attempt}-{source.key}", source.title, figure))
    titles = ["policy", "right → right", "right → wrong", "wrong → right", "wrong → wrong", "traces"]
    words = Words(FLOW + " A share leads to its traces." * linked)
    missing = Words("No trace was scored at both attempts.", note=True)
    blocks: list[Block] = [words, Plots(plots), TextTable("", titles, lines, 1)] if lines else [words, missing]
    return Section("flow", f"Flow of answers, attempt {attempt - 1} to {attempt}", blocks, "Flow")


def _flow_cell(source: Source, name: str, share: Estimate, linked: bool) -> str:
    text = percent(share.value, share.stderr, unit="%")
    link = Markup('<a href="#source={}&chain={}">{}</a>')
    return link.format(source.key, name, text) if linked and share.value else text


def _edits(attempt: int, pairs: Sequence[tuple[Source, PairFacts]], figures: Figures) -> Section:
    plots = []
    for decoding in dict.fromkeys(source.decoding for source, _ in pairs):
        alike = {source: pair.edit_ratios for source, pair in pairs if source.decoding == decoding}
        upper = edit_upper([ratio for ratios in alike.values() for ratio in ratios])
        bins = {source: edit_bins(ratios, upper) for source, ratios in alike.items()}
        top = 1.05 * max(bar.value for own in bins.values() for bar in own.values())
        for source, ratios in alike.items():
            same = percent(ratios.get(0.0, 0) / sum(ratios.values()), unit="%")
            figure = edits_figure(bins[source], right=upper, top=top)
            caption = f"{source.title}: {same} left as they were"
            plots.append(figures.add(f"edits-t{attempt}-{source.key}", caption, figure))
    return Section(
        "edits", f"How much was rewritten, attempt {attempt - 1} to {attempt}", [Words(EDITS), Plots(plots)], "Edits"
    )


def _changed(attempt: int, pairs: Sequence[tuple[Source, PairFacts]], figures: Figures) -> Section:
    kinds = {"c": "was right", "i": "was wrong"}
    lines, plots = [], []
    for source, pair in pairs:
        cells = [pair.changed.get(letter) for letter in kinds]
        lines.append([source.title, *(percent(cell.value, cell.stderr, unit="%") if cell else "" for cell in cells)])
    for decoding in dict.fromkeys(source.decoding for source, _ in pairs):
        groups = {
            source.policy: {kinds[k]: Bar(share.value, share.stderr) for k, share in pair.changed.items()}
            for source, pair in pairs
            if source.decoding == decoding
        }
        figure = bars_figure(groups, {"was right": "green", "was wrong": "orange"}, across="answers changed (%)")
        plots.append(figures.add(f"changed-t{attempt}-{decoding}", f"All policies, {decoding}", figure))
    for source, pair in pairs:
        # One group says nothing about who is changed.
        if len(pair.bins) > 1:
            drawn = {
                "answer changed": [group.changed for group in pair.bins],
                "was wrong": [g.wrong for g in pair.bins],
            }
            curves = [
                Line(
                    label,
                    [[(group.mean, share.value) for group, share in zip(pair.bins, shares, strict=True)]],
                    errors=[share.stderr or 0 for share in shares],
                )
                for label, shares in drawn.items()
            ]
            across = "mean logprob of the attempt (nats a token)"
            figure = lines_figure(curves, across=across, up="traces (%)", marked=True, steps="any")
            plots.append(figures.add(f"calibration-t{attempt}-{source.key}", source.title, figure))
    table = TextTable("", ["policy", "changed where right", "changed where wrong"], lines, 1)
    title = f"Who gets changed, attempt {attempt - 1} to {attempt}"
    return Section("changed", title, [Words(CHANGED), table, Plots(plots)], "Who gets changed")


def _about(
    problems: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], facts: Sequence[SourceFacts]
) -> Iterator[TextTable | Folded]:
    lines = [["problems", f"{name}: {len(part)}"] for name, part in problems.items()]
    for stage in dict.fromkeys(row["stage"] for row in curve):
        updates = {row["iteration"] for row in curve if row["stage"] == stage}
        lines.append(["training", f"{stage}: {len(updates)} updates"])
    for fact in facts:
        sampled = f"{fact.source.title}: {fact.traces} traces of policy {short_digest(fact.fingerprint)}"
        lines.append(["evaluation", sampled])
    yield TextTable("", ["what", "value"], lines)
    verdicts = [[fact.source.title, chain, str(count)] for fact in facts for chain, count in fact.verdicts]
    if verdicts:
        table = TextTable("", ["policy", "verdicts", "traces"], verdicts)
        yield Folded("Verdicts, attempt by attempt", [table])
