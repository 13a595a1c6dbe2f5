"""`score report`: one self-contained page of a run or a study."""

import importlib.util
from pathlib import Path

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output


def write_report(
    config: ReportConfig,
    *,
    run: Path,
    out: Path,
    plots: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Write the page of a run or a study, whichever the folder holds; returns the figures' names.

    Args:
        plots: folder for each figure as SVG and PNG.
    Raises:
        UserError: matplotlib or jinja2 is missing, the folder holds nothing to report on, files in it are damaged or
            do not belong together, or an output is in the way.
    """
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"a report needs {' and '.join(missing)}, not installed here: pip install 'score-cli[report]' "
            "(or '.[report]' in a clone)"
        )
    check_output(out, overwrite=overwrite)
    if plots is not None and plots.exists() and not plots.is_dir():
        raise UserError(f"{plots} is a file, expected a folder for the figures: name another")
    from score_cli.report.page import Figures, write_page
    from score_cli.report.plots import style
    from score_cli.report.run import run_page
    from score_cli.report.study import STUDY_FILE, study_page

    with style():
        figures = Figures()
        page = (study_page if (run / STUDY_FILE).exists() else run_page)(run, config, figures, progress)
        return write_page(page, figures, out=out, plots=plots, overwrite=overwrite)
