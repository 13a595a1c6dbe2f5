"""What every page of a report shares: one file that needs nothing else, the figures on it, and their files.

The page holds no clock, host or path: the same tables give the same bytes. Everything that came from a problem or a
response is escaped by the template, or stands in JSON that the page's script shows as text.
"""

import base64
import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_cli.errors import UserError
from score_cli.tables.atomic import check_output, replacing_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


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


def check_page(out: Path, plots: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work is done, what could not be written in the end.

    Raises:
        UserError: matplotlib or jinja2 is missing, or an output is in the way.
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


def render(template: str, **content: Any) -> str:
    """A template with the report's stylesheet and script in it; everything else it shows is escaped."""
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
    return environment.get_template(template).render(
        script=Markup(script),
        script_digest=Markup(f"sha256-{digest}"),
        stylesheet=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        **content,
    )


def write_page(page: str, drawn: Drawn, *, out: Path, plots: Path | None, overwrite: bool) -> list[str]:
    """Write the page, and with `plots` each figure as SVG and PNG, within `style()`; returns the figures' names.

    Raises:
        UserError: a figure's file is in the way; nothing is written.
    """
    from score_cli.evaluation.report_plots import png_file, svg_file

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


def slug(name: str) -> str:
    """A name as part of a file name and of an id."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name).split()).lower()
