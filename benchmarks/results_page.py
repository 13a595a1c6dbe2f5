"""The page docs/results.md of what `paper.py` made: no figure of it is typed by hand."""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from score_cli.evaluation.evaluate import MINUS, SAMPLED, Row
from score_cli.evaluation.layout import SECONDARY, TextTable, escape, grid, markdown, paper_table
from score_cli.phases import STAGE2
from score_cli.report.plots import Bar, Line, bars_figure, lines_figure, style, svg_file
from score_cli.report.readme import curve_svg, dark
from score_cli.report.run import read_curve
from score_cli.run_log import read_log
from score_cli.study.claims import judge_claims
from score_cli.study.results import BASE_FIRST, OWN, Results, Seeds, row_folder, study_tables
from score_cli.tables.atomic import replacing_file
from score_cli.tables.parquet import METRICS, STUDY, TUNING, read_table

LAST = 10  # updates
COLUMNS = SECONDARY | {"changed": "changed"}
WIDE = ("results", "against", "seeds", "tuning", "shift")  # tables of the study, in the order of the page
ATTEMPTS = {"acc@t1": "acc@t1", "acc@t2": "acc@t2"}
# Part of a figure's name, metric, attempt, axis, what it shows.
SMOLLM_CURVES = (
    ("changed", "changed@t2", None, "other answer at attempt 2 (%)", "Share of the batch whose answer changes"),
    ("kl", "full_kl", 2, "KL of attempt 2 (nats)", "KL of the second attempt from the start"),
)
SAYS = {
    "no-skill": "bases whose corpus holds no skill of revision",
    "long-stage2": "120 updates of Stage II in place of 30",
    "longer": "three times the updates: 120 of Stage I and 90 of Stage II, or 210 without Stage I",
    "longer-base": "bases after 1,500 steps in place of 1,000",
    "alpha-2": "a bonus of 2 in place of 10",
    "alpha-30": "a bonus of 30 in place of 10",
}


def write_page(out: Path, page: Path) -> list[Path]:
    """Write the page and its figures, of the parts that `out` holds; returns their files."""
    page.parent.mkdir(parents=True, exist_ok=True)
    figures = page.parent / "figures"
    drawn: dict[str, str] = {}
    body = {part: lines for part, make in PARTS.items() if (lines := list(make(out / part, drawn)))}
    blocks = [*HEAD, markdown(made_by(out, list(body))), *(block for lines in body.values() for block in lines)]
    text = "\n\n".join(block.strip() for block in blocks) + "\n"
    files = {page: text}
    for name, svg in drawn.items():
        files |= {figures / f"{name}.svg": svg, figures / f"{name}-dark.svg": dark(svg)}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return list(files)


HEAD = (
    "# Results",
    "`make paper` makes all of this from seeds, and then this page. No figure here is typed by hand "
    "([`benchmarks/paper.py`](../benchmarks/paper.py)). Percent; at T = 1 where `sampled`; `±` is the standard "
    "deviation over seeds, or, of a single run, the standard error clustered by problem. "
    "[The metrics](tables.md) are defined elsewhere.",
)


def made_by(out: Path, parts: Sequence[str]) -> TextTable:
    """Who made each part: a line for every commit that worked at it."""
    lines = []
    for part in parts:
        path = out / part / "made.json"
        for visit in json.loads(path.read_text()) if path.exists() else []:
            versions = ", ".join(f"{name} {version}" for name, version in visit["versions"].items())
            hours = visit["seconds"] / 3600
            line = [part, visit["commit"], visit["machine"], versions, visit["began"], f"{hours:.2f}"]
            lines.append([*line, visit.get("note", "")])
    return TextTable("", ["part", "commit", "machine", "versions", "began", "hours", ""], lines, 1)


def quickstart(folder: Path, drawn: dict[str, str]) -> Iterator[str]:
    """Means over seeds, and the curve of the first."""
    runs = runs_of(folder)
    if not runs:
        return
    results = Results(rows_of(runs.items(), lambda seed, policy: policy))
    drawn["results-quickstart"] = curve_svg(read_curve(next(iter(runs.values()))))
    yield "## Quickstart"
    yield f"`score run pipelines/quickstart.toml --seed N`, N = {listed(runs)}."
    yield markdown(paper_table(results.means(), secondary=COLUMNS))
    yield picture("results-quickstart", f"Accuracy of both attempts over the updates of seed {next(iter(runs))}.")


def study(folder: Path, drawn: dict[str, str]) -> Iterator[str]:
    """Its tables and claims, and both attempts of every row."""
    if not (folder / "study.parquet").exists():
        return
    results = Results(read_table(folder / "study.parquet", STUDY).to_pylist())
    tuning = folder / "tuning.parquet"
    tables = study_tables(results, read_table(tuning, TUNING).to_pylist() if tuning.exists() else [])
    groups = {
        row: {
            title: Bar(seeds.mean, seeds.deviation, list(seeds.values.values()))
            for name, title in ATTEMPTS.items()
            if (seeds := results.find(row, name))
        }
        for row in results.rows
    }
    with style():
        colours = dict(zip(ATTEMPTS.values(), ("blue", "orange"), strict=True))
        figure = bars_figure(groups, colours, across="correct (%), sampled")
        drawn["results-study"] = svg_file(figure, "results-study")
    yield "## Study"
    yield (
        "`score run pipelines/study-eight.toml`. [What it says](study.md), and "
        "[where it disagrees with the paper](disagreements.md)."
    )
    for name in WIDE:
        if name in tables:
            yield markdown(tables[name])
    yield markdown(guesses_table(results))
    yield markdown(gradient_table(folder, results))
    yield picture("results-study", "Both attempts of every row; dots are seeds.")
    yield "### Claims"
    yield "\n".join(f"- {escape(str(claim))}" for claim in judge_claims(results))


def guesses_table(results: Results) -> TextTable:
    """How often an answer changes after a wrong first attempt, and how often that puts it right."""
    names = ("acc@t1", "changed@t2", "i_to_c@t2", "c_to_i@t2")
    titles = ("wrong ones: answer changed", "of these put right", "right ones: broken")
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in results.rows:
        found = [seeds.values for name in names if (seeds := results.find(row, name))]
        shares: dict[str, dict[int, float]] = {title: {} for title in titles}
        for seed in found[0] if len(found) == len(names) else ():
            right, changed, mended, broken = (values[seed] for values in found)
            # A right first attempt whose answer changes is broken: all else that changes was wrong.
            parts = ((changed - broken, 1 - right), (mended, changed - broken), (broken, right))
            for title, (part, whole) in zip(titles, parts, strict=True):
                shares[title] |= {seed: part / whole} if whole > 0 else {}
        line = {title: str(Seeds(own)) for title, own in shares.items() if own}
        cells |= {(row,): line} if line else {}
    return grid("What becomes of first attempts, sampled", ["row"], {title: title for title in titles}, cells)


def gradient_table(folder: Path, results: Results) -> TextTable:
    """How strongly Stage II pulls at each attempt, and how far it has moved them in the end."""
    logged = {
        ("grad_norm", None): "gradient norm",
        ("advantage_sd", 1): "advantages, attempt 1",
        ("advantage_sd", 2): "advantages, attempt 2",
        ("full_kl", 1): "KL, attempt 1",
        ("full_kl", 2): "KL, attempt 2",
    }
    cells: dict[tuple[str, ...], dict[tuple[str, int | None], str]] = {}
    for row in results.rows:
        for key in logged:
            means = []
            for seed in results.seeds:
                curve = read_curve(row_folder(folder, row, seed))
                own = [
                    each["value"] for each in curve if (each["stage"], each["name"], each["attempt"]) == (STAGE2, *key)
                ]
                means += [statistics.fmean(own[-LAST:] if key[0] == "full_kl" else own)] if own else []
            if len(means) > 1:
                cells.setdefault((row,), {})[key] = f"{statistics.fmean(means):.2f} ±{statistics.stdev(means):.2f}"
    caption = (
        "How Stage II pulls at either attempt: means over its updates of the gradient's norm before it is clipped to "
        f"1 and of the advantages' standard deviation, and over its last {LAST} of the KL from the base in nats"
    )
    return grid(caption, ["row"], logged, cells)


def experiments(folder: Path, drawn: dict[str, str]) -> Iterator[str]:
    """Every policy of every experiment, seed by seed."""
    found = [name for name in SAYS if (folder / name).exists()]
    if found:
        yield "## Experiments"
        yield "Rows of the study under other settings, sampled. [What they were for](disagreements.md)."
    for name in found:
        rows: list[Row] = []
        for row in sorted({path.name for path in (folder / name).glob("seed-*/*")}, reverse=True):
            runs = {seed: run / row for seed, run in runs_of(folder / name, row).items()}
            rows += rows_of(runs.items(), lambda seed, policy, row=row: f"{row}, seed {seed}, {policy}")
            given = {seed: run / "conditions" / f"{BASE_FIRST}.parquet" for seed, run in runs.items()}
            rows += rows_of(
                [(seed, path) for seed, path in given.items() if path.exists()],
                lambda seed, policy, row=row: f"{row}, seed {seed}, {policy} after the base's first attempts",
            )
        sampled = [row for row in rows if row["decoding"] == SAMPLED]
        yield markdown(paper_table(plain(sampled), caption=f"`{name}`: {SAYS[name]}", secondary=COLUMNS))


def smollm(folder: Path, drawn: dict[str, str]) -> Iterator[str]:
    """Every policy of every run with its errors, what the last gained on the first, and the seconds of an update."""
    seeds = runs_of(folder, "score")
    if not seeds:
        return
    runs = {(seed, path.name): path for seed in seeds.values() for path in sorted(seed.iterdir(), reverse=True)
            if (path / "metrics.parquet").exists()}  # fmt: skip
    named = {f"{row}, {seed.name.replace('-', ' ')}": path for (seed, row), path in runs.items()}
    drawn["results-smollm"] = curve_svg(read_curve(next(iter(named.values()))))
    rows = rows_of(named.items(), lambda run, policy: f"{run}, {policy}", differences=True)
    counts = {row["count"] for row in rows if row["name"] == "acc@t1"}
    yield "## SmolLM2 on stories"
    yield (
        "`score run pipelines/smollm.toml` after its supervised start; `naive-multi-turn` is the same number of "
        f"updates without Stage I and without the bonus. {listed(counts)} held-out problems. `base` is the policy "
        "after its supervised start. [What it says](real-models.md#smollm2-on-stories)."
    )
    yield markdown(paper_table([row for row in plain(rows) if MINUS not in row["policy"]], secondary=COLUMNS))
    yield markdown(
        paper_table(
            [row for row in plain(rows) if row["policy"].endswith(f"{MINUS}base")],
            caption="Less the policy after the supervised start, paired by problem",
            secondary=COLUMNS,
        )
    )
    yield markdown(seconds_table(named))
    yield picture("results-smollm", f"Accuracy of both attempts over the updates: {next(iter(named))}.")
    for part, metric, attempt, up, words in SMOLLM_CURVES:
        figure = f"results-smollm-{part}"
        lines = runs_lines(named, metric, attempt)
        if lines:
            with style():
                drawn[figure] = svg_file(
                    lines_figure(lines, across="update", up=up, percent="%" in up, size=(7.6, 2.9)), figure
                )
            yield picture(figure, f"{words}, over the updates of each run.")


def runs_lines(runs: dict[str, Path], name: str, attempt: int | None) -> list[Line]:
    """A metric over the updates, a line for each run that logged it."""
    lines = []
    for run, path in runs.items():
        curve = [row for row in read_curve(path) if (row["name"], row["attempt"]) == (name, attempt)]
        if curve:
            lines.append(Line(run, [[(row["iteration"], row["value"]) for row in curve]]))
    return lines


def seconds_table(runs: dict[str, Path]) -> TextTable:
    """The median update of each run by part."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for name, run in runs.items():
        log = read_log(run / "log.jsonl")
        if not log:
            continue
        parts = {part for entry in log for part in entry["seconds"]}
        line = {part: statistics.median(entry["seconds"].get(part, 0.0) for entry in log) for part in sorted(parts)}
        line["update"] = statistics.median(sum(entry["seconds"].values()) for entry in log)
        cells[name,] = {part: f"{value:.1f}" for part, value in line.items()} | {"updates": str(len(log))}
    columns = dict.fromkeys(("updates", "update", "sample", "verify", "train", "refresh", "write"))
    return grid("", ["run, median seconds"], {name: name for name in columns}, cells)


def runs_of(folder: Path, row: str = "") -> dict[int, Path]:
    """Seed -> its folder, of those whose run is done."""
    found = [path for path in folder.glob("seed-*") if (path / row / "metrics.parquet").exists()]
    return {int(path.name.removeprefix("seed-")): path for path in sorted(found)}


def rows_of(runs: Any, name: Callable[[Any, str], str], *, differences: bool = False) -> list[Row]:
    """The metrics of several runs as rows of a study, each policy under a name of its own."""
    rows = []
    for seed, run in runs:
        path = run / "metrics.parquet" if run.is_dir() else run
        for row in read_table(path, METRICS).to_pylist():
            if differences or MINUS not in row["policy"]:
                named = name(seed, row["policy"])
                rows.append(row | {"row": named, "policy": named, "seed": seed, "condition": OWN})
    return rows


def plain(rows: Sequence[Row]) -> list[Row]:
    """Without what is of one level of problems alone."""
    return [row for row in rows if "|" not in row["name"]]


def listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def picture(name: str, words: str) -> str:
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="figures/{name}-dark.svg">\n'
        f'  <img src="figures/{name}.svg" alt="{words}">\n</picture>'
    )


PARTS: dict[str, Callable[[Path, dict[str, str]], Iterator[str]]] = {
    "quickstart": quickstart,
    "study": study,
    "experiments": experiments,
    "smollm": smollm,
}
