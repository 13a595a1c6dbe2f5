"""The page of a study: its table beside the paper's, its claims, and the paper's figures drawn of its rows.

Nothing but study.parquet is required: a row whose folder is not there is left out of what needs its files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from score_cli.config import ReportConfig
from score_cli.evaluation.layout import TextTable, grid, headline
from score_cli.evaluation.votes import PARALLEL, SEQUENTIAL
from score_cli.progress import Progress
from score_cli.report.page import Block, Figures, Folded, Plots, Section, Words, render
from score_cli.report.plots import Bar, Line, bars_figure, edits_figure, lines_figure, short_name
from score_cli.report.run import config_table, read_config, read_curve, smoothed, stage_rules, traces_section
from score_cli.report.traces import Source, check_rewards, evaluated_sources, read_sources, spread
from score_cli.study.claims import BASE, judge_claims
from score_cli.study.intervals import Verdict
from score_cli.study.own_tables import OWN_TABLES, OwnTables, own_tables, rows_of
from score_cli.study.results import BASE_FIRST, MORE, OWN, SCORE, VOTED, Results, Seeds, row_folder, study_tables
from score_cli.tables.parquet import STUDY, TUNING, read_footer, read_table
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem

STUDY_FILE = "study.parquet"
NAIVE = "naive-multi-turn"
BROWSED = (BASE, SCORE, "pair-sft", NAIVE)  # rows whose traces can be browsed
EDITED = (BASE, "star", "pair-sft", SCORE)  # rows whose edits are drawn
MOST_UPDATES_LISTED = 11

RESULTS = Markup(
    "The paper's figures are of another task and a far larger model: compare direction and order rather than size. "
    "<em>delta</em> is the second attempt minus the first; "
    '<em class="whole">i-&gt;c</em> and <em class="whole">c-&gt;i</em> are the shares of all traces put right and '
    "broken by it."
)
CLAIMS = (
    "What the paper claims, the criterion by which it was looked for on this task, and the figures it was judged by: "
    "sampled, means over seeds, percent or points. In brackets stands the interval of 95 percent, of a "
    "difference paired by seed; while it holds the border nothing is decided."
)
BY_SEED, SEED_BY_SEED = ("seeds", "against"), "Seed by seed, and each row less score"
# Section -> title, what it says beside its figures, and in place of them.
WORDS = {
    "edits": (
        "How much is rewritten",
        "Edit ratio from the first attempt to the second: bars are means over seeds, dots the seeds. The first bin, "
        "which holds the texts left as they were, stands in the caption and is not drawn; rows of one decoding share "
        "their axes.",
        f"no edit ratios of {', '.join(EDITED)}",
    ),
    "collapse": (
        "Collapse over training",
        "What the updates logged on the traces they learned from: strong lines are means over the seeds, faint ones "
        "the seeds, long curves moving averages over a twentieth of them; a dotted rule marks where a stage begins. "
        "The paper finds that naive multi-turn training raises both attempts while its answers are changed less and "
        "less.",
        f"no curves of {NAIVE} or {SCORE}",
    ),
    "shift": (
        "Distribution shift",
        "First attempts put right at the second, where they are the policy's own and where they are the base's, drawn "
        "before: bars are means over seeds, dots the seeds. The paper finds that supervised training raises this on "
        "given attempts and lowers it on its own.",
        "no row was measured on the base's first attempts",
    ),
    "votes": (
        "Inference scaling",
        "Majority vote over the same number of responses: all of them first attempts (parallel), or half as many first "
        "attempts each corrected once (sequential). In the paper, 32 responses gain 7.4 points in parallel, 10.5 in "
        "sequence.",
        "no row was voted on",
    ),
    "attempts": (
        "More attempts",
        "Accuracy of attempt after attempt, beyond those that were trained.",
        "no row was measured on more attempts",
    ),
}

Curves = Mapping[int, Sequence[Mapping[str, Any]]]  # seed -> rows of train_metrics.parquet


def study_page(path: Path, config: ReportConfig, figures: Figures, progress: Progress) -> str:
    """The page of a study's folder.

    Raises:
        UserError: a table or config.json is damaged or something else.
    """
    results = Results(read_table(path / STUDY_FILE, STUDY).to_pylist())
    footer = read_footer(path / STUDY_FILE, STUDY)
    own = {} if footer is None else footer.config.get(OWN_TABLES, {})
    papers = [row for row in results.rows if row not in rows_of(own)]
    tuning = read_table(file, TUNING).to_pylist() if (file := path / "tuning.parquet").exists() else []
    tables = study_tables(results, tuning, apart=rows_of(own))
    seed = results.seeds[0]
    browsed = [*BROWSED, *(row for row in results.rows if row not in papers)]
    sources = [source for row in browsed for source in _sources(path, results, row, seed)]
    _, browser = read_sources(sources, [], _problems(path, results, seed), config, progress)
    sections = []
    by_seed = [Folded(SEED_BY_SEED, numbers)] if (numbers := [tables[n] for n in BY_SEED if n in tables]) else []
    if papers:
        sections.append(Section("results", "Results", [tables.pop("results"), Words(RESULTS), *by_seed], "Results"))
    sections += _own_sections(path, results, own, figures)
    tried = tables.pop("tuning", None)
    if claims := judge_claims(results):
        badge = Markup('<span class="verdict {}">{}</span>')
        colours = {Verdict.APPEARS: "c", Verdict.ABSENT: "i", Verdict.OPEN: "u"}
        shown = {verdict: badge.format(colour, verdict) for verdict, colour in colours.items()}
        lines = [[shown[claim.verdict], claim.text, claim.criterion, claim.figures] for claim in claims]
        table = TextTable("", ["verdict", "claim", "criterion", "figures"], lines, 4)
        sections.append(Section("claims", "Claims", [Words(CLAIMS), table], "Claims"))
    drawn: dict[str, Drawn] = {}
    if papers:
        drawn = {
            "edits": _edits(results, figures),
            "collapse": _collapse(path, results, figures),
            "shift": (_shift(results, figures), []),
            "votes": (_votes(results, figures), []),
            "attempts": (_attempts(results, figures), []),
        }
    for name, (plots, numbers) in drawn.items():
        title, text, missing = WORDS[name]
        listed = [*numbers, *([tables[name]] if name in tables else [])]
        blocks: list[Block] = [Words(text), Plots(plots), Folded("The numbers drawn, percent", listed)]
        sections.append(Section(name, title, blocks if plots else [Words(f"Left out: {missing}.", note=True)], title))
    sections += traces_section(browser, f"Of seed {seed}. ")
    about = [*_runs(path, results), *([Folded("Settings tried", [tried])] if tried else [])]
    about += config_table(read_config(path / "config.json"))
    sections.append(Section("about", "About this study", about, "About this study"))
    sentences = headline(results.means(apart=rows_of(own)), (BASE, SCORE), mean=", mean over seeds")
    return render("SCoRe study", sentences, sections)


def curve_points(curves: Curves, name: str, attempt: int | None) -> dict[int, Seeds]:
    """A logged metric of every update that all of a row's seeds have; a long curve is a moving average."""
    values = {
        seed: {line["iteration"]: line["value"] for line in lines if (line["name"], line["attempt"]) == (name, attempt)}
        for seed, lines in curves.items()
    }
    values = {seed: own for seed, own in values.items() if own}
    shared = sorted(set.intersection(*map(set, values.values()))) if values else []
    smooth = {seed: smoothed([own[update] for update in shared]) for seed, own in values.items()}
    return {update: Seeds({seed: own[place] for seed, own in smooth.items()}) for place, update in enumerate(shared)}


def seeds_line(label: str, points: Mapping[int, Seeds]) -> Line:
    """A strong line of the means and a faint one of each seed."""
    seeds = sorted({seed for point in points.values() for seed in point.values})
    faint = [[(x, point.values[seed]) for x, point in points.items() if seed in point.values] for seed in seeds]
    return Line(short_name(label), [[(x, point.mean) for x, point in points.items()]], faint)


def _own_sections(path: Path, results: Results, own: OwnTables, figures: Figures) -> list[Section]:
    """The rows that have a table of their own; and what they logged over training, drawn."""
    sections = []
    shown = own_tables(results, own)
    for name, table in own.items():
        blocks: list[Block] = [shown[part] for part in (name, f"{name}, training") if part in shown]
        plots = []
        for row in table["rows"] if table["training"] else ():
            curves = {seed: read_curve(row_folder(path, row, seed)) for seed in results.seeds}
            lines = [
                seeds_line(column, points)
                for column in table["training"]
                if (points := curve_points(curves, column, None) or curve_points(curves, *_of_attempt(column)))
            ]
            if lines:
                figure = lines_figure(lines, across="update", up="traces (%)")
                plots.append(figures.add(f"study-{name}-{row}", f"{row}: what its updates logged", figure))
        sections.append(Section(name, name, [*blocks, *([Plots(plots)] if plots else [])], name))
    return sections


def _of_attempt(column: str) -> tuple[str, int | None]:
    """`accuracy@t1` is logged as accuracy, of attempt 1."""
    name, _, attempt = column.partition("@t")
    return name, int(attempt) if attempt.isdecimal() else None


def _runs(path: Path, results: Results) -> list[Words | Folded]:
    runs = [row_folder(Path(), row, seed) for row in results.rows for seed in results.seeds]
    runs = [run for run in runs if (path / run / "metrics.parquet").exists()]
    if not runs:
        return [Words("No row's run folder lies beside study.parquet.", note=True)]
    text = Markup(
        "Each row of each seed is a run with a page of its own, <code>report.html</code> in its folder; these "
        "commands, given in the study's folder, write them."
    )
    commands = TextTable("", ["command"], [[f"score report {run}"] for run in runs])
    return [Words(text), Folded(f"Commands of {len(runs)} runs", [commands])]


def _sources(path: Path, results: Results, row: str, seed: int) -> list[Source]:
    """The traces of a row's own evaluation, named after the row."""
    run, policy = row_folder(path, row, seed), results.policies.get((row, seed, OWN))
    sources = [source for source in evaluated_sources(run / "eval", []) if source.policy == policy]
    if sources and (run / "metrics.parquet").exists():
        check_rewards(run / "metrics.parquet", sources)
    return [replace(s, key=f"{row}-{s.decoding}", title=f"{row}, {s.decoding}", policy=row) for s in sources]


def _problems(path: Path, results: Results, seed: int) -> dict[str, Problem]:
    files = [row_folder(path, row, seed) / "test.parquet" for row in results.rows]
    return {problem.problem_id: problem for file in files if file.exists() for problem in read_problems(file)}


Drawn = tuple[list[dict[str, str]], list[TextTable]]  # figures, and tables of the numbers drawn


def _edits(results: Results, figures: Figures) -> Drawn:
    plots, numbers = [], []
    for decoding in results.decodings():
        pattern = r"edit_ratio_hist@t2\[([\d.]+),([\d.]+)[\])]"
        found = {
            row: {(float(match[1]), float(match[2])): seeds for match, seeds in matches}
            for row in EDITED
            if (matches := results.matching(row, pattern, decoding))
        }
        bins = {row: dict(list(own.items())[1:]) for row, own in found.items()}
        each = [(edges, seeds) for own in bins.values() for edges, seeds in own.items()]
        top = 1.05 * max((max(seeds.values.values()) for _, seeds in each), default=0)
        right = max((edges[1] for edges, seeds in each if seeds.mean), default=1.0)
        for row, own in found.items():
            (_, end), first = next(iter(own.items()))
            bars = {edges: _bar(seeds) for edges, seeds in bins[row].items()}
            caption = f"{row}, {decoding}: {first}% below {end:g}"
            figure = edits_figure(bars, right=right, top=top or 0.01)
            plots.append(figures.add(f"study-edits-{row}-{decoding}", caption, figure))
        cells: dict[tuple[str, ...], dict[str, str]] = {}
        for row, own in found.items():
            for (low, high), seeds in own.items():
                if low < right:
                    cells.setdefault((f"{low:g} to {high:g}",), {})[row] = str(seeds)
        numbers.append(grid(decoding, ["edit ratio"], {row: row for row in found}, cells))
    return plots, numbers


def _collapse(path: Path, results: Results, figures: Figures) -> Drawn:
    plots, numbers = [], []
    curves = {row: {seed: read_curve(row_folder(path, row, seed)) for seed in results.seeds} for row in (SCORE, NAIVE)}
    rules = sorted({rule for own in curves.values() for lines in own.values() for rule in stage_rules(lines)})
    for title, name, attempt, unit in (
        ("Accuracy of the first attempt", "accuracy", 1, "correct (%)"),
        ("Accuracy of the second attempt", "accuracy", 2, "correct (%)"),
        ("Answers changed", "changed@t2", None, "traces (%)"),
    ):
        points = {row: found for row, own in curves.items() if (found := curve_points(own, name, attempt))}
        if points:
            lines = [seeds_line(row, own) for row, own in points.items()]
            figure = lines_figure(lines, across="update", up=unit, rules=rules)
            plots.append(figures.add(f"study-collapse-{title}", title, figure))
            updates = sorted({update for own in points.values() for update in own})
            listed = [updates[place] for place in spread(len(updates), MOST_UPDATES_LISTED)]
            cells = {(str(u),): {row: str(own[u]) for row, own in points.items() if u in own} for u in listed}
            numbers.append(grid(title, ["update"], {row: row for row in points}, cells))
    return plots, numbers


def _shift(results: Results, figures: Figures) -> list[dict[str, str]]:
    plots = []
    own, given = "own first attempts", "the base's"
    for decoding in results.decodings(BASE_FIRST):
        for title, measure in (
            ("of all traces", partial(results.find, name="i_to_c@t2")),
            ("of the wrong first attempts", results.correction_rate),
        ):
            groups = {}
            for row in results.rows:
                ours, theirs = measure(row, decoding=decoding), measure(row, decoding=decoding, condition=BASE_FIRST)
                if ours and theirs:
                    groups[row] = {own: _bar(ours), given: _bar(theirs)}
            if groups:
                figure = bars_figure(groups, {own: "blue", given: "orange"}, across=f"% {title}")
                caption = f"Put right, {title}, {decoding}"
                plots.append(figures.add(f"study-shift-{title}-{decoding}", caption, figure))
    return plots


def _line(results: Results, label: str, *where: str) -> list[Line]:
    """The metrics of (row, pattern, decoding, condition), placed by the number that the pattern holds; none if none."""
    points = {int(match[1]): seeds for match, seeds in results.matching(*where)}
    return [seeds_line(label, {place: points[place] for place in sorted(points)})] if points else []


def _bar(seeds: Seeds) -> Bar:
    return Bar(seeds.mean, dots=list(seeds.values.values()))


def _votes(results: Results, figures: Figures) -> list[dict[str, str]]:
    plots = []
    for row in results.rows:
        for decoding in results.decodings(VOTED):
            lines = [
                line
                for kind in (PARALLEL, SEQUENTIAL)
                for line in _line(results, kind, row, rf"majority@{kind}\[(\d+)\]", decoding, VOTED)
            ]
            if lines:
                up = "vote correct (% of problems)"
                figure = lines_figure(lines, across="responses", up=up, steps="doubling", marked=True)
                plots.append(figures.add(f"study-votes-{row}", row, figure))
    return plots


def _attempts(results: Results, figures: Figures) -> list[dict[str, str]]:
    plots = []
    for decoding in results.decodings(MORE):
        rows = sorted(results.rows, key=lambda row: row != SCORE)
        lines = [line for row in rows for line in _line(results, row, row, r"acc@t(\d+)", decoding, MORE)]
        if lines:
            figure = lines_figure(lines, across="attempt", up="correct (%)", marked=True)
            plots.append(figures.add(f"study-attempts-{decoding}", decoding, figure))
    return plots
