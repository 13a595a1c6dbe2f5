"""The page in a real browser: it loads in silence, its filters filter, and it fits a phone."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from score_cli.config import ReportConfig
from score_cli.report import write_report
from tests.report_support import HOSTILE, ROWS, Row, write_run, write_runs, write_study, write_updates

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
WIDTHS = {"desktop": 1280, "phone": 360}
# Beside the traces of report_support: enough for a second leaf of the list.
MANY: list[Row] = [(f"m{n:02}", 0, ("so it is 7 then", "so it is 8 then"), "ic", ("7", "8"), -0.3) for n in range(25)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), rows=[*ROWS, *MANY])
    write_updates(folder, 50)
    write_report(ReportConfig(), run=folder, out=folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_runs(write_study(tmp_path_factory.mktemp("study")))
    write_report(ReportConfig(), run=folder, out=folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """The page opened once, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light", hash: str = "") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.as_uri() + hash
        self.page.goto(self.address)

    def count(self) -> str:
        return str(self.page.locator("#count").inner_text())

    def heads(self) -> list[str]:
        return [str(text) for text in self.page.locator("article h3").all_inner_texts()]


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    opened = Visit(browser, report)
    yield opened
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
@pytest.mark.parametrize("kind", ["report", "study"])
def test_a_page_loads_in_silence_and_fits_the_screen(
    browser: Any, request: pytest.FixtureRequest, kind: str, width: int, scheme: str
) -> None:
    visit = Visit(browser, request.getfixturevalue(kind), width=width, scheme=scheme)
    assert visit.said == [] and visit.asked == [visit.address]
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    assert visit.page.title() == f"SCoRe {kind}"
    visit.context.close()


def test_text_and_lines_stand_out_from_the_ground_in_light_and_dark(browser: Any, report: Path) -> None:
    """Contrast by WCAG's formula: 4.5 for text, 3 for the strokes of a figure."""
    script = """names => { const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(names.map(name => [name, style.getPropertyValue("--" + name).trim()])); }"""
    texts, strokes = ["ink", "muted", "link", "good", "bad"], ["blue", "orange", "green", "purple", "gold"]
    for scheme in ("light", "dark"):
        visit = Visit(browser, report, scheme=scheme)
        colours = visit.page.evaluate(script, [*texts, *strokes, "card"])
        for name in [*texts, *strokes]:
            least = 4.5 if name in texts else 3
            assert contrast(colours[name], colours["card"]) >= least, (scheme, name)
        visit.context.close()


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_figure_is_drawn_in_the_page_s_colours(visit: Visit) -> None:
    stroke = "getComputedStyle(document.querySelector('#training svg path[style*=\"--blue\"]')).stroke"
    assert visit.page.evaluate(stroke) == "rgb(0, 114, 178)"
    visit.page.emulate_media(color_scheme="dark")
    assert visit.page.evaluate(stroke) == "rgb(90, 180, 236)"


def test_filters_leave_what_they_say(visit: Visit) -> None:
    """31 traces of each of two policies, 6 + 25, and 8 of 6 of each of fifty updates."""
    assert visit.count() == "1–20 of 362 traces"
    visit.page.select_option("[name=source]", "score-sampled")
    assert visit.count() == "1–20 of 31 traces"
    visit.page.select_option("[name=chain]", "i-c")
    assert visit.count() == "1–20 of 26 traces"
    visit.page.click("#next")
    assert visit.count() == "21–26 of 26 traces" and len(visit.heads()) == 6
    visit.page.fill("[name=problem]", "a")
    assert visit.count() == "1–1 of 1 traces" and visit.heads() == ["a #1score, sampled"]
    visit.page.fill("[name=problem]", "nothing like this")
    assert visit.count() == "no trace passes these filters" and visit.heads() == []
    assert visit.said == []


def test_only_changed_answers_can_be_shown(visit: Visit) -> None:
    visit.page.select_option("[name=source]", "base-sampled")
    visit.page.fill("[name=problem]", "c")
    assert visit.heads() == ["c #0base, sampled", "c #1base, sampled"]
    visit.page.check("[name=changed]")
    # Of problem c, one answer stayed and the other came where none was.
    assert visit.heads() == ["c #1base, sampled"]


def test_a_share_in_the_flow_table_leads_to_its_traces(visit: Visit) -> None:
    visit.page.click('#flow a[href="#source=score-sampled&chain=c-i"]')
    # The browser tells the page of its new address when it finds the time.
    visit.page.locator("#count", has_text="1–1 of 1 traces").wait_for()
    assert visit.count() == "1–1 of 1 traces" and visit.heads() == ["b #0score, sampled"]
    assert visit.page.input_value("[name=chain]") == "c-i"


def test_words_that_differ_are_marked_on_both_sides(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, hash="#source=base-sampled&problem=b&chain=c-i")
    boxes = visit.page.locator(".attempt pre")
    assert boxes.all_inner_texts() == ["so x is 1", "so y is 2"]
    assert visit.page.locator("del").all_inner_texts() == ["x", "1"]
    assert visit.page.locator("ins").all_inner_texts() == ["y", "2"]
    visit.context.close()


def test_a_hostile_response_shows_as_text(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, hash="#source=base-sampled&problem=b&chain=i-i")
    assert visit.page.locator(".attempt pre").first.inner_text() == HOSTILE
    assert visit.page.locator("pre.question").inner_text() == f"b? {HOSTILE}"
    assert visit.page.title() == "SCoRe report" and visit.page.locator("img").count() == 0
    assert visit.said == []
    visit.context.close()


def test_the_figures_of_a_study_keep_their_names_within_their_frames(browser: Any, study: Path) -> None:
    script = """() => [...document.querySelectorAll('.plot svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => text.getBoundingClientRect().right > frame.right + 1)
            .map(text => text.textContent); })"""
    visit = Visit(browser, study)
    assert visit.page.locator(".plot svg").count() == 10 and visit.page.evaluate(script) == []
    visit.context.close()


def test_a_study_s_traces_are_chosen_by_row(browser: Any, study: Path) -> None:
    visit = Visit(browser, study)
    assert visit.count() == "1–20 of 24 traces"
    visit.page.select_option("[name=source]", "naive-multi-turn-sampled")
    assert visit.count() == "1–6 of 6 traces"
    visit.page.select_option("[name=chain]", "i-c")
    assert visit.heads() == ["a #1naive-multi-turn, sampled"] and visit.said == []
    visit.context.close()
