"""`score report` of a study: its table beside the paper's, its claims, and the paper's figures drawn of its rows."""

from pathlib import Path
from typing import Any

from score_cli.config import ReportConfig
from score_cli.evaluation import report_text as text
from score_cli.evaluation.report import write_report
from score_cli.evaluation.report_page import Drawn, check_page, render, write_page
from score_cli.evaluation.report_run import RunFolder
from score_cli.evaluation.report_traces import read_sources
from score_cli.metrics import Estimate
from score_cli.progress import SILENT, Progress
from score_cli.study.paper import PAPER
from score_cli.study.report_folder import STUDY_FILE, StudyFolder, read_study
from score_cli.study.report_results import headline, study_table
from score_cli.study.report_sections import NAIVE, SCORE, draw_sections

# Whose traces can be browsed.
BROWSED = ("base", SCORE, "pair-sft", NAIVE)


def write_any_report(
    settings: ReportConfig,
    *,
    run: Path,
    out: Path,
    plots: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Write the page of a study or of a run, whichever the folder holds; as `write_report`."""
    write = write_study_report if (run / STUDY_FILE).exists() else write_report
    return write(settings, run=run, out=out, plots=plots, overwrite=overwrite, progress=progress)


def write_study_report(
    settings: ReportConfig,
    *,
    run: Path,
    out: Path,
    plots: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Write a study's page, and with `plots` each figure as SVG and PNG; returns the figures' names.

    Raises:
        UserError: matplotlib or jinja2 is missing, a file of the study is damaged, or an output is in the way.
    """
    check_page(out, plots, overwrite=overwrite)
    folder = read_study(run)
    browser = _browser(folder, settings, progress)

    from score_cli.evaluation.report_plots import style

    with style():
        drawn = Drawn()
        page = _render(folder, browser, drawn)
        return write_page(page, drawn, out=out, plots=plots, overwrite=overwrite)


def _browser(folder: StudyFolder, settings: ReportConfig, progress: Progress) -> dict[str, Any]:
    """The browser of the first seed's traces, of a few rows."""
    seed = folder.results.seeds[0]
    shown = RunFolder(
        settings={},
        metrics=[],
        comparisons=[],
        curve=[],
        problems=folder.problems(seed),
        problem_counts={},
        evaluated=[source for row in BROWSED for source in folder.sources(row, seed)],
        updates=[],
    )
    browser = read_sources(shown, settings, progress)[1]
    return browser | {"note": f"Of seed {seed}. {browser['note']}"}


def _render(folder: StudyFolder, browser: dict[str, Any], drawn: Drawn) -> str:
    results = folder.results
    decodings = results.decodings()
    paper = {row: line.figures() for row, line in PAPER.items()}
    tables = []
    for decoding in decodings:
        titles, lines = study_table(results, decoding, paper)
        tables.append({"caption": decoding, "titles": titles, "lines": lines})
    return render(
        "study.html.jinja",
        headline=[line for decoding in decodings if (line := headline(results, decoding))],
        tables=tables,
        claims=folder.claims,
        sections=draw_sections(folder, drawn),
        browser=browser,
        runs=folder.runs,
        tuning=[
            [
                t["row"],
                t["settings"],
                text.percent(Estimate(t["value"], t["stderr"], t["count"])),
                "chosen" if t["chosen"] else "",
            ]
            for t in folder.tuning
        ],
        seeds=", ".join(map(str, results.seeds)),
        settings=text.setting_lines(folder.settings),
    )
