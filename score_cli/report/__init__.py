"""`score report`: one self-contained page of a run or a study."""

import importlib.util
from pathlib import Path

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output, replacing_file


def write_report(
    config: ReportConfig,
    *,
    run: Path,
    out: Path,
    plots: Path | None = None,
    figures: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Write the page of a run or a study, whichever the folder holds; returns the figures' names.

    Args:
        plots: folder for each figure as SVG and PNG.
        figures: folder for the figures of a README, light and dark, which a run alone has.
    Raises:
        UserError: matplotlib or jinja2 is missing, the folder holds nothing to report on, files in it are damaged or
            do not belong together, or an output is in the way.
    """
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a report needs {' and '.join(missing)}, not installed here: pip install 'score-cli[report]'")
    check_output(out, overwrite=overwrite)
    for folder in (plots, figures):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, expected a folder for the figures: name another")
    from score_cli.report.page import Figures, write_page
    from score_cli.report.plots import style
    from score_cli.report.run import run_page
    from score_cli.report.study import STUDY_FILE, study_page

    made: dict[Path, str] = {}
    with style():
        if figures is not None:
            from score_cli.report.readme import readme_figures  # reads a policy: torch is for this alone

            made = readme_figures(run, figures, overwrite=overwrite)
        drawn = Figures()
        page = (study_page if (run / STUDY_FILE).exists() else run_page)(run, config, drawn, progress)
        names = write_page(page, drawn, out=out, plots=plots, overwrite=overwrite)
        for path, content in made.items():
            with replacing_file(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return names
