"""The study's report: its numbers by hand, whatever of the study is there."""

import shutil
from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.config import ReportConfig
from score_cli.evaluation.report_plots import style
from score_cli.study.claims import judge_claims
from score_cli.study.paper import PAPER
from score_cli.study.report import write_any_report
from score_cli.study.report_figures import groups_figure, histogram_figure, lines_figure
from score_cli.study.report_results import Line, Point, Results, Seeds, curve_line
from score_cli.study.results import Figures
from tests.study_support import curve, study_rows, write_runs, write_study
from tests.test_report import Page


def report(study: Path, out: Path | None = None, plots: Path | None = None) -> Page:
    out = out or study / "report.html"
    write_any_report(ReportConfig(), run=study, out=out, plots=plots, overwrite=True)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(write_study(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return report(study)


def test_the_table_holds_means_and_deviations_over_seeds_beside_the_paper(page: Page) -> None:
    """0.50 and 0.54: mean 0.52, deviation 0.04 / sqrt(2) = 0.0283."""
    titles, base, pair, score, naive = page.tables["results"][0]
    assert titles[:7] == ["row", "acc@t1", "paper", "acc@t2", "paper", "delta", "paper"]
    assert titles[7:] == ["i->c", "paper", "c->i", "paper", "edit ratio", "seeds"]
    assert base[:7] == ["base", "52.0 ±2.8", "52.6", "49.0 ±1.4", "41.4", "-3.0 ±1.4", "-11.2"]
    assert base[7:] == ["6.0 ±1.4", "4.6", "9.0 ±2.8", "15.8", "", "2"]
    assert score[:7] == ["score", "62.0 ±2.8", "60.0", "78.0 ±2.8", "64.4", "+16.0 ±0.0", "+4.4"]
    assert [line[0] for line in (pair, naive)] == ["pair-sft", "naive-multi-turn"]
    # The paper has no line for it.
    assert naive[:5] == ["naive-multi-turn", "71.0 ±1.4", "", "72.0 ±2.8", ""]


def test_the_paper_s_figures_agree_with_one_another() -> None:
    """Delta is the second attempt minus the first, and put right minus broken; the paper rounds to a tenth."""
    for row, line in PAPER.items():
        figures = line.figures()
        assert figures["acc@t2"] - figures["acc@t1"] == pytest.approx(figures["delta@t2"], abs=1.1e-3), row
        if "i_to_c@t2" in figures:
            flow = figures["i_to_c@t2"] - figures["c_to_i@t2"]
            assert flow == pytest.approx(figures["delta@t2"], abs=2.1e-3), row


def test_the_headline_goes_from_the_base_to_the_method(page: Page) -> None:
    expected = (
        "From base to score, sampled, mean over seeds: the first attempt went from 52.0% to 62.0%, the second went "
        "from 49.0% to 78.0%, their difference went from -3.0 points to +16.0 points."
    )
    assert expected in page.text


def test_a_row_is_the_policy_that_its_runs_end_with() -> None:
    """Stage I (0.99) and differences (0.77) are in the table too."""
    results = Results(study_rows(differences=True))
    found = results.find("score", "acc@t1", decoding="sampled")
    assert found is not None and found.values == {0: 0.60, 1: 0.64}
    assert results.rows == ["base", "pair-sft", "score", "naive-multi-turn"] and results.seeds == [0, 1]


def test_the_edit_histograms_leave_the_first_bin_to_the_caption(page: Page) -> None:
    assert "base, sampled: 85.0 ±7.1% below 0.5" in page.captions
    assert page.tables["edits"][0] == [
        ["edit ratio", "base", "pair-sft", "score"],
        ["0 to 0.5", "85.0 ±7.1", "100.0 ±0.0", "73.0 ±4.2"],
        ["0.5 to 1", "15.0 ±7.1", "0.0 ±0.0", "27.0 ±4.2"],
    ]


def test_curves_are_means_over_the_updates_that_all_seeds_have(page: Page) -> None:
    """Score's second seed has gone on to a fourth update, which no mean can be taken of."""
    first, second, changed = page.tables["collapse"]
    assert second == [
        ["update", "score", "naive-multi-turn"],
        ["0", "60.0 ±14.1", "50.0 ±0.0"],
        ["1", "60.0 ±0.0", "60.0 ±14.1"],
        ["2", "80.0 ±14.1", "60.0 ±0.0"],
    ]
    assert first[1] == ["0", "50.0 ±14.1", "40.0 ±0.0"] and changed[3] == ["2", "40.0 ±7.1", "30.0 ±0.0"]
    assert {"Accuracy of the first attempt", "Answers changed"} <= set(page.captions)


def test_the_shift_sets_own_first_attempts_beside_the_base_s(page: Page) -> None:
    """Pair-SFT puts right 6 and 10 of its 49 wrong, and 16 and 20 of the base's 50 and 40: 12.2, 20.4; 32, 50."""
    share, rate = page.tables["shift"]
    assert share == [
        ["row", "own first attempts", "the base's"],
        ["pair-sft", "8.0 ±2.8", "18.0 ±2.8"],
        ["score", "22.0 ±2.8", "19.0 ±1.4"],
    ]
    assert rate[1] == ["pair-sft", "16.3 ±5.8", "41.0 ±12.7"]
    assert "Put right, of the wrong first attempts, sampled" in page.captions


def test_the_claims_are_those_that_the_study_judges(page: Page) -> None:
    titles, *claims = page.tables["claims"][0]
    assert titles == ["verdict", "claim", "criterion", "figures"]
    expected = [
        ["appears" if claim.appears else "does not appear", claim.text, claim.criterion, claim.figures]
        for claim in judge_claims(Figures(study_rows(differences=False)))
    ]
    assert claims == expected and len(claims) > 5
    assert ["appears", "the base loses by correcting itself", "delta of base below 0", "-3.0"] in claims


def test_votes_are_listed_by_the_number_of_responses(page: Page) -> None:
    assert page.tables["votes"][0] == [
        ["responses", "parallel", "sequential"],
        ["2", "62.0 ±2.8", "78.0 ±2.8"],
        ["4", "68.0 ±2.8", "85.0 ±7.1"],
    ]


def test_more_attempts_are_listed_attempt_by_attempt(page: Page) -> None:
    assert page.tables["attempts"][0] == [
        ["attempt", "score", "base"],
        ["1", "60.0 ±0.0", "50.0 ±0.0"],
        ["2", "75.0 ±7.1", "45.0 ±7.1"],
        ["3", "85.0 ±7.1", "40.0 ±0.0"],
    ]


def test_the_traces_of_the_first_seed_can_be_browsed_by_row(page: Page) -> None:
    titles = ["base, sampled", "score, sampled", "pair-sft, sampled", "naive-multi-turn, sampled"]
    assert [source["title"] for source in page.data["sources"]] == titles
    assert len(page.data["traces"]) == 4 * 6 and "Of seed 0." in page.text


def test_the_settings_tried_are_listed_with_what_they_gave(page: Page) -> None:
    assert page.tables["about"][0][1:] == [
        ["star", "train-sft.epochs=1", "50.0% ±1.0", ""],
        ["star", "train-sft.epochs=3", "62.5% ±1.0", "chosen"],
    ]


def test_the_rows_own_reports_are_named_by_the_command_that_writes_them(page: Page) -> None:
    commands = [line for line in map(str.strip, page.text.splitlines()) if line.startswith("score report ")]
    rows = ("base", "pair-sft", "score", "naive-multi-turn")
    assert commands == [f"score report seed-{seed}/{row}" for row in rows for seed in (0, 1)]


def test_what_was_not_measured_is_said_in_a_sentence(tmp_path: Path) -> None:
    page = report(write_study(tmp_path, conditions=("own",)))
    assert {"shift", "attempts", "collapse", "votes"} & set(page.tables) == set() and "edits" in page.tables
    for sentence in (
        "no row was measured on the base's first attempts",
        "no row was measured on more attempts",
        "no row was voted on",
        "no curves of naive-multi-turn or score",
        "No row's run folder lies beside study.parquet",
    ):
        assert sentence in page.text


def test_the_same_study_gives_the_same_bytes_wherever_it_lies(study: Path, tmp_path: Path) -> None:
    report(study, tmp_path / "one.html", tmp_path / "plots")
    shutil.copytree(study, tmp_path / "elsewhere" / "other-name")
    report(tmp_path / "elsewhere" / "other-name", tmp_path / "two.html", tmp_path / "again")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(names) == 2 * (3 + 3 + 2 + 1 + 1) and names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "plots" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_nothing_is_fetched_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data"} & set(attributes)
        links = {value or "" for name, value in attributes.items() if name.endswith("href")}
        assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_a_damaged_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.parquet").write_text("not a table")
    assert run_command(["report", str(tmp_path)]) == 2
    assert "study.parquet is not a whole Parquet file" in capsys.readouterr().err


def test_a_figure_draws_a_line_of_means_and_one_of_each_seed() -> None:
    points = [Point(2, Seeds({0: 0.2, 1: 0.4})), Point(4, Seeds({0: 0.6, 1: 0.8}))]
    with style():
        figure = lines_figure([Line("x", points)], across="n", up="%", doubling=True, marked=True)
    drawn = [(list(line.get_xdata()), [round(y, 9) for y in line.get_ydata()]) for line in figure.axes[0].lines]
    assert drawn == [([2, 4], [20, 60]), ([2, 4], [40, 80]), ([2, 4], [30, 70])]


def test_bars_are_means_over_seeds() -> None:
    seeds = Seeds({0: 0.1, 1: 0.3})
    with style():
        histogram = histogram_figure({(0.05, 0.10): seeds}, right=1, top=50)
        groups = groups_figure({"row": {"own": seeds, "given": Seeds({0: 0.4})}}, across="%")
    assert [bar.get_height() for bar in histogram.axes[0].patches] == [pytest.approx(20)]
    assert [bar.get_width() for bar in groups.axes[0].patches] == [pytest.approx(20), pytest.approx(40)]
    assert [list(line.get_ydata()) for line in histogram.axes[0].lines] == [[pytest.approx(10), pytest.approx(30)]]


def test_long_curves_are_moving_averages_of_each_seed() -> None:
    """Over 40 updates the window is 2: each value and its two neighbours, the ends alone."""
    line = curve_line("score", {0: curve([0.3, 0.6] * 20)}, "accuracy", 2)
    assert [round(point.seeds.mean, 9) for point in line.points[:3]] == [0.3, 0.4, 0.5]
    assert len(line.points) == 40
