"""A page that needs nothing else: sections of words, tables, figures and traces, and the files of the figures.

The page holds no clock, host or path: the same tables give the same bytes. Everything that came from a problem or a
response is escaped by the template, or stands in JSON that the page's script shows as text.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from score_cli.evaluation.layout import TextTable
from score_cli.report.plots import inline_svg, png_file, svg_file
from score_cli.tables.atomic import check_output, replacing_file

TEMPLATES = Path(__file__).parent / "templates"


class Words(NamedTuple):
    """A paragraph; Markup where it has elements of its own. A note is set small."""

    words: str
    note: bool = False


class Plots(NamedTuple):
    """Figures beside each other, as `Figures.add` returns them."""

    plots: Sequence[Mapping[str, str]]


class Folded(NamedTuple):
    """Blocks that a click unfolds."""

    summary: str
    blocks: Sequence[Any]


# A mapping is the browser of traces.
Block = Words | Plots | Folded | TextTable | Mapping[str, Any]


class Section(NamedTuple):
    """A part of the page; with a link, the list of sections leads to it by its name."""

    name: str
    title: str
    blocks: Sequence[Block]
    link: str = ""


@dataclass
class Figures:
    """Figures in the order of the page, by the name of their file."""

    figures: dict[str, Figure] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)

    def add(self, name: str, caption: str, figure: Figure) -> dict[str, str]:
        """Keep a figure and return what the template shows; a name that is taken gets a number."""
        name = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name).split()).lower()
        number = 1 + self.wanted.count(name)
        self.wanted.append(name)
        name = name if number == 1 else f"{name}_{number}"
        self.figures[name] = figure
        return {"caption": caption, "svg": Markup(inline_svg(figure, name, caption))}


def render(title: str, headline: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML; whatever is not Markup is escaped."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title,
        headline=headline,
        sections=sections,
        script=Markup(script),
        script_digest=Markup(f"sha256-{digest}"),
        stylesheet=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def write_page(page: str, figures: Figures, *, out: Path, plots: Path | None, overwrite: bool) -> list[str]:
    """Write the page, and with `plots` each figure as SVG and PNG, within `style()`; returns the figures' names.

    Raises:
        UserError: a figure's file is in the way; nothing is written.
    """
    outputs = [plots / f"{name}.{kind}" for name in figures.figures for kind in ("svg", "png")] if plots else []
    for path in outputs:
        check_output(path, overwrite=overwrite)
    for path in outputs:
        figure = figures.figures[path.stem]
        content = png_file(figure) if path.suffix == ".png" else svg_file(figure, path.stem).encode()
        with replacing_file(path) as temporary:
            temporary.write_bytes(content)
    with replacing_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return list(figures.figures)
