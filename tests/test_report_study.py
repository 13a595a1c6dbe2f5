"""The study's report: its numbers by hand, whatever of the study is there."""

from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.report.plots import Bar, bars_figure, edits_figure, lines_figure, style
from score_cli.report.study import seeds_line
from score_cli.study.claims import judge_claims
from score_cli.study.results import Results, Seeds
from score_cli.tables.parquet import STUDY, TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer
from tests.report_support import study_rows, write_runs, write_study
from tests.test_report import Page, report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(write_study(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return report(study)


def test_the_table_holds_means_and_deviations_over_seeds_beside_the_paper(page: Page) -> None:
    """0.50 and 0.54: mean 0.52, deviation 0.04 / sqrt(2) = 0.0283."""
    titles, base, pair, score, naive = page.tables["results"][0]
    assert titles[:6] == ["row", "decoding", "acc@t1", "acc@t2", "delta", "i->c"]
    assert titles[6:] == ["c->i", "edit ratio", "changed", "paper", "seeds"]
    assert base[2:5] == ["52.0 ±2.8 (52.6)", "49.0 ±1.4 (41.4)", "-3.0 ±1.4 (-11.2)"]
    assert base[5:] == ["6.0 ±1.4 (4.6)", "9.0 ±2.8 (15.8)", "", "", "Table 2", "2"]
    assert score[:4] == ["score", "sampled", "62.0 ±2.8 (60.0)", "78.0 ±2.8 (64.4)"]
    # The paper has no line for it.
    assert naive == ["naive-multi-turn", "sampled", "71.0 ±1.4", "72.0 ±2.8", *[""] * 6, "2"] and pair[-2] == "Table 1"


def test_the_headline_goes_from_the_base_to_the_method(page: Page) -> None:
    expected = (
        "From base to score, sampled, mean over seeds: the first attempt went from 52.0% to 62.0%, the last went "
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
    titles, own, given, *score = page.tables["shift"][0]
    assert titles == ["row", "decoding", "first attempts", "acc@t1", "acc@t2", "delta", "i->c", "correction rate"]
    assert own == ["pair-sft", "sampled", "own", "51.0 ±0.0", "54.0 ±2.8", "+3.0 ±2.8", "8.0 ±2.8", "16.3 ±5.8"]
    assert given[2:] == ["base-first-attempts", "55.0 ±7.1", "", "", "18.0 ±2.8", "41.0 ±12.7"]
    assert [line[6] for line in score] == ["22.0 ±2.8", "19.0 ±1.4"]
    assert "Put right, of the wrong first attempts, sampled" in page.captions


def test_the_claims_are_those_that_the_study_judges(page: Page) -> None:
    titles, *claims = page.tables["claims"][0]
    assert titles == ["verdict", "claim", "criterion", "figures"]
    expected = [
        [claim.verdict, claim.text, claim.criterion, claim.figures] for claim in judge_claims(Results(study_rows()))
    ]
    assert claims == expected and len(claims) > 5
    # Two seeds, -2 and -4: Student's interval of one degree of freedom is 12.706 times a standard error of 1.
    figures = "-3.0 [-15.7, +9.7]"
    assert ["not decided", "the base loses by correcting itself", "delta of base below 0", figures] in claims


def test_votes_are_listed_by_the_number_of_responses_and_attempts_one_by_one(page: Page) -> None:
    votes, attempts = page.tables["votes"][0], page.tables["attempts"][0]
    assert votes[0] == ["row", "responses", "parallel", "sequential", "gain"]
    assert votes[1:] == [["score", "2", "62.0 ±2.8", "78.0 ±2.8", ""], ["score", "4", "68.0 ±2.8", "85.0 ±7.1", ""]]
    assert [(line[0], line[2], line[3]) for line in attempts] == [
        ("row", "attempt", "acc"),
        *[("base", f"t{n}", accuracy) for n, accuracy in ((1, "50.0 ±0.0"), (2, "45.0 ±7.1"), (3, "40.0 ±0.0"))],
        *[("score", f"t{n}", accuracy) for n, accuracy in ((1, "60.0 ±0.0"), (2, "75.0 ±7.1"), (3, "85.0 ±7.1"))],
    ]


def test_the_traces_of_the_first_seed_can_be_browsed_by_row(page: Page) -> None:
    titles = ["base, sampled", "score, sampled", "pair-sft, sampled", "naive-multi-turn, sampled"]
    assert [source["title"] for source in page.data["sources"]] == titles
    assert len(page.data["traces"]) == 4 * 6 and "Of seed 0." in page.text


def test_the_rows_own_reports_and_the_settings_tried_are_listed(page: Page) -> None:
    commands, tuning, _ = page.tables["about"]
    rows = ("base", "pair-sft", "score", "naive-multi-turn")
    assert commands[1:] == [[f"score report seed-{seed}/{row}"] for row in rows for seed in (0, 1)]
    assert tuning[1:] == [
        ["star", "train-sft.epochs=1", "50.0 ±1.0", ""],
        ["star", "train-sft.epochs=3", "62.5 ±1.0", "chosen"],
    ]


def test_a_study_of_neighbours_shows_their_tables_and_draws_what_they_logged(tmp_path: Path) -> None:
    """No row of the paper's: none of its sections. Accepted 0.6 and 0.9, right 0.5 and 0.6, in each of two seeds."""
    own = {"row": "judge", "condition": "own", "decoding": "sampled", "name": "acc@t1", "stderr": None, "count": 8}
    rows = [
        own | {"seed": seed, "policy": policy, "value": v}
        for seed in (0, 1)
        for policy, v in (("base", 0.5), ("stage2", 0.75))
    ]
    logs = own | {"condition": "training", "count": 1, "name": "judge_gap@t1"}
    rows += [
        logs | {"seed": seed, "policy": f"{end} 1 updates", "value": value}
        for seed in (0, 1)
        for end, value in (("first", 0.1), ("last", 0.3))
    ]
    table = {"rows": ["judge"], "columns": ["acc@t1"], "training": ["judge_gap@t1", "accuracy@t1"], "words": ""}
    footer = Footer(table=STUDY.name, stage="study", config={"tables": {"judge": table}})
    write_table(tmp_path / "study.parquet", STUDY, rows, footer)
    for seed in (0, 1):
        lines = [
            {"stage": "stage2", "iteration": update, "name": name, "attempt": attempt, "value": value}
            for update, gap, right in ((0, 0.1, 0.5), (1, 0.3, 0.6))
            for name, attempt, value in (("judge_gap", 1, gap), ("accuracy", 1, right))
        ]
        run = tmp_path / f"seed-{seed}" / "judge"
        write_table(run / "train_metrics.parquet", TRAIN_METRICS, lines, Footer(table="train_metrics", stage="run"))
    page = report(tmp_path)
    measured, trained = page.tables["judge"]
    assert measured[1:] == [["judge", "base", "sampled", "50.0 ±0.0"], ["judge", "stage2", "sampled", "75.0 ±0.0"]]
    assert trained[1:] == [
        ["judge", "first 1 updates", "sampled", "+10.0 ±0.0", ""],
        ["judge", "last 1 updates", "sampled", "+30.0 ±0.0", ""],
    ]
    assert "judge: what its updates logged" in page.captions and "Collapse over training" not in page.text
    gap = "judge: more passes for right than is"
    figures = "+10.0 ±0.0 before, +30.0 ±0.0 after: +20.0 [+20.0, +20.0]"
    assert ["appears", gap, "judge_gap@t1 rises", figures] in page.tables["claims"][0]


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


def test_a_damaged_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.parquet").write_text("not a table")
    assert run_command(["report", str(tmp_path)]) == 2
    assert "study.parquet is not a whole Parquet file" in capsys.readouterr().err


def test_a_figure_draws_a_line_of_means_over_one_of_each_seed() -> None:
    line = seeds_line("x", {2: Seeds({0: 0.2, 1: 0.4}), 4: Seeds({0: 0.6, 1: 0.8})})
    with style():
        figure = lines_figure([line], across="n", up="%", rules=[2.5], steps="doubling", marked=True)
    drawn = [(list(line.get_xdata()), [round(y, 9) for y in line.get_ydata()]) for line in figure.axes[0].lines]
    assert drawn == [([2, 4], [20, 60]), ([2, 4], [40, 80]), ([2, 4], [30, 70]), ([2.5, 2.5], [0, 1])]


def test_bars_are_means_over_seeds_in_percent_with_a_dot_for_each() -> None:
    bar = Bar(0.2, dots=[0.1, 0.3])
    with style():
        edits = edits_figure({(0.05, 0.10): bar}, right=1, top=0.5)
        groups = bars_figure({"row": {"own": bar, "given": Bar(0.4)}}, {"own": "blue", "given": "orange"}, across="%")
    assert [bar.get_height() for bar in edits.axes[0].patches] == [pytest.approx(20)]
    assert [bar.get_width() for bar in groups.axes[0].patches] == [pytest.approx(20), pytest.approx(40)]
    assert [list(line.get_ydata()) for line in edits.axes[0].lines] == [[pytest.approx(10), pytest.approx(30)]]
