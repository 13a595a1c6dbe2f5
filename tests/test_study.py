"""The study: what is averaged, claimed, tried and chosen, by hand; and a tiny one, interrupted."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import polars as pl
import pytest

from score_cli.cli import run_command
from score_cli.errors import JobError, UserError
from score_cli.recipe import read_recipe
from score_cli.study.claims import judge_claims
from score_cli.study.intervals import Verdict, interval, t_quantile
from score_cli.study.jobs import Job, run_jobs
from score_cli.study.own_tables import own_tables
from score_cli.study.plan import Study, attempts_that_fit, choose, expand_grid, read_study
from score_cli.study.results import PAPER, Results, Seeds, logged, study_markdown, study_tables
from score_cli.study.work import Work
from score_cli.tables.atomic import locked_folder
from score_cli.tables.parquet import METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256

ROOT = Path(__file__).parents[1]


def rows_of(
    row: str, name: str, *values: float, condition: str = "own", policy: str = "p", decoding: str = "sampled"
) -> list[dict[str, object]]:
    key = {"row": row, "condition": condition, "policy": policy, "decoding": decoding, "name": name}
    return [key | {"seed": seed, "value": value, "stderr": None, "count": 8} for seed, value in enumerate(values)]


def test_figures_are_means_over_seeds_with_the_deviation_between_them() -> None:
    """0.1, 0.2, 0.6: mean 0.3, squared deviations 0.04 + 0.01 + 0.09 = 0.14, over n - 1 = 2: 0.07."""
    seeds = Seeds({0: 0.1, 1: 0.2, 2: 0.6})
    assert seeds.mean == pytest.approx(0.3) and seeds.deviation == pytest.approx(0.07**0.5)
    assert Seeds({0: 0.25}).deviation is None and str(seeds) == "30.0 ±26.5"


def test_the_grid_is_tried_in_the_order_written_the_last_key_fastest() -> None:
    assert expand_grid({"a.x": [1, 2], "b.y": ["u", "v"]}) == [
        {"a.x": 1, "b.y": "u"},
        {"a.x": 1, "b.y": "v"},
        {"a.x": 2, "b.y": "u"},
        {"a.x": 2, "b.y": "v"},
    ]


def test_the_best_setting_is_chosen_and_of_equal_ones_the_first() -> None:
    assert choose([0.2, 0.5, 0.4]) == 1
    assert choose([0.2, 0.5, 0.5]) == 1


@pytest.mark.parametrize(("most", "expected"), [(10, 4), (3, 3)])
def test_as_many_attempts_as_the_context_holds(most: int, expected: int) -> None:
    """7 + 4 x 12 + 3 x 1 = 58 of 64 tokens; five attempts would take 71."""
    assert attempts_that_fit(context=64, prompt=7, bridge=1, attempt=12, most=most) == expected
    assert attempts_that_fit(context=58, prompt=7, bridge=1, attempt=12, most=10) == 4
    assert attempts_that_fit(context=57, prompt=7, bridge=1, attempt=12, most=10) == 3


YES, NO, OPEN = Verdict.APPEARS, Verdict.ABSENT, Verdict.OPEN


def verdicts(rows: list[dict[str, object]]) -> dict[str, Verdict]:
    return {claim.text: claim.verdict for claim in judge_claims(Results(rows))}


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ((-0.03, -0.0301), YES),
        ((0.03, 0.0301), NO),
        ((-0.03, -0.01), OPEN),  # -0.02 ± 12.706 x 0.01: two seeds say little
        ((-0.03, -0.01, -0.02, -0.025, -0.015), YES),  # -0.02 ± 2.776 x 0.0079 / sqrt(5), which is 0.0098
        ((-0.03,), OPEN),  # of one seed there is no interval
    ],
)
def test_the_base_claim_is_about_the_interval_of_delta(deltas: tuple[float, ...], expected: Verdict) -> None:
    assert verdicts(rows_of("base", "delta@t2", *deltas)) == {"the base loses by correcting itself": expected}


def test_rows_are_compared_seed_by_seed() -> None:
    """Deltas range over 20 points, but each seed's is 2.0 or 2.1 below SCoRe's: 2.05 ± 12.706 x 0.05 is below 0."""
    for gaps, expected in (((0.02, 0.021), YES), ((0.02, 0.05), OPEN), ((-0.02, -0.021), NO)):
        rows = rows_of("score", "delta@t2", 0.1, 0.3) + rows_of("star", "delta@t2", 0.1 - gaps[0], 0.3 - gaps[1])
        assert verdicts(rows)["supervised training falls short: star"] is expected


def test_a_seed_that_only_one_row_has_is_in_no_difference() -> None:
    (claim,) = [
        claim
        for claim in judge_claims(
            Results(rows_of("score", "acc@t2", 0.5, 0.6, 0.9) + rows_of("star", "acc@t2", 0.4, 0.5))
        )
        if claim.text.endswith("of the baselines")
    ]
    assert claim.figures == "66.7 against 45.0 of star: +10.0 [+10.0, +10.0]" and claim.verdict is YES


def test_collapse_needs_fewer_changes_and_a_smaller_delta() -> None:
    known = rows_of("base", "changed@t2", 0.2, 0.2) + rows_of("score", "delta@t2", 0.1, 0.1)
    for changed, delta, expected in (
        ((0.1, 0.1), (0.0, 0.0), YES),
        ((0.3, 0.3), (0.0, 0.0), NO),
        ((0.1, 0.1), (0.2, 0.2), NO),
        ((0.1, 0.1), (0.0, 0.09), OPEN),
        ((0.3, 0.3), (0.0, 0.09), NO),  # whatever the other part is
    ):
        rows = [*known, *rows_of("no-stage1", "changed@t2", *changed), *rows_of("no-stage1", "delta@t2", *delta)]
        assert verdicts(rows)["no-stage1 collapses to answering the same twice"] is expected


def test_score_is_largest_only_above_every_row_of_its_kind() -> None:
    """Against star-plus 0.1 and 0.11 are not decided: -0.01 to 0.22 with t = 12.706 would need a gap of 0.06."""
    rows = rows_of("score", "acc@t2", 0.5, 0.5) + rows_of("star", "acc@t2", 0.4, 0.4)
    (claim,) = judge_claims(Results(rows))
    assert (claim.verdict, claim.figures) == (YES, "50.0 against 40.0 of star: +10.0 [+10.0, +10.0]")
    rows += rows_of("star-plus", "acc@t2", 0.3, 0.4)
    (claim,) = judge_claims(Results(rows))
    assert claim.verdict is OPEN
    assert claim.figures == "50.0 against 40.0 of star: +10.0 [+10.0, +10.0]; nor decided against star-plus"
    rows += rows_of("pair-sft", "acc@t2", 0.6, 0.6)
    (claim,) = judge_claims(Results(rows))
    assert claim.verdict is NO and claim.figures.startswith("50.0 against 60.0 of pair-sft: -10.0")


def test_score_is_compared_with_its_rivals_as_sampled_and_as_decoded_greedily() -> None:
    rows = rows_of("score", "acc@t2", 0.5, 0.5) + rows_of("no-stage1", "acc@t2", 0.6, 0.6)
    rows += rows_of("score", "acc@t2", 0.9, 0.9, decoding="greedy")
    rows += rows_of("no-stage1", "acc@t2", 0.8, 0.8, decoding="greedy")
    title = "SCoRe has the largest accuracy at the second attempt, of the ablations"
    found = {claim.text: (claim.verdict, claim.figures) for claim in judge_claims(Results(rows))}
    assert found == {
        title: (NO, "50.0 against 60.0 of no-stage1: -10.0 [-10.0, -10.0]"),
        f"{title}, decoded greedily": (YES, "90.0 against 80.0 of no-stage1: +10.0 [+10.0, +10.0]"),
    }


@pytest.mark.parametrize(
    ("freedom", "confidence", "table"),
    # W. S. Gosset's t, two-sided, as printed in the NIST/SEMATECH handbook, section 1.3.6.7.2.
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (7, 0.95, 2.365), (30, 0.95, 2.042), (7, 0.99, 3.499)],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom: int, confidence: float, table: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(table, abs=5e-4)


def test_quantiles_of_students_t_have_a_closed_form_at_one_and_two_degrees() -> None:
    """Of one degree tan(pi p / 2); of two p sqrt(2 / (1 - p^2))."""
    for p in (0.5, 0.9, 0.95, 0.99):
        assert t_quantile(1, p) == pytest.approx(math.tan(math.pi * p / 2), rel=1e-9)
        assert t_quantile(2, p) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-9)


def test_an_interval_is_students_about_the_mean() -> None:
    """1, 2, 3, 4, 5 points: deviation sqrt(2.5), over sqrt(5) 0.7071, times 2.7764 is 1.9632."""
    found = interval([0.01, 0.02, 0.03, 0.04, 0.05])
    assert found.half == pytest.approx(0.019632, abs=1e-6) and str(found) == "+3.0 [+1.0, +5.0]"
    assert [found.above(border) for border in (0.0, 0.02, 0.06)] == [YES, OPEN, NO]
    assert [found.below(border) for border in (0.0, 0.02, 0.06)] == [NO, OPEN, YES]
    assert [found.within(radius) for radius in (0.06, 0.04, 0.01)] == [YES, OPEN, NO]
    assert str(interval([0.01])) == "+1.0 [one seed]" and interval([0.01]).above() is OPEN


def test_every_row_is_shown_seed_by_seed_and_less_score() -> None:
    rows = rows_of("score", "acc@t2", 0.5, 0.75) + rows_of("star", "acc@t2", 0.4, 0.55)
    tables = study_tables(Results(rows), [])
    assert tables["seeds"].titles == ["row", "", "seed 0", "seed 1"]
    assert tables["seeds"].lines == [["score", "acc@t2", "50.0", "75.0"], ["star", "acc@t2", "40.0", "55.0"]]
    # -15 ± 12.706 x 5, in points: the deviation of -10 and -20 over sqrt(2) is 5.
    assert tables["against"].lines == [["star", "sampled", "", "-15.0 [-78.5, +48.5]", ""]]
    for row, value in (("score", 0.5), ("star", 0.4)):
        rows += rows_of(row, "acc@t2", value, value, decoding="greedy")
    assert study_tables(Results(rows), [])["against"].lines[1] == ["star", "greedy", "", "-10.0 [-10.0, -10.0]", ""]
    assert {"seeds", "against"} & set(study_tables(Results(rows_of("score", "acc@t2", 0.5)), [])) == set()


def test_the_correction_rate_is_a_share_of_wrong_first_attempts() -> None:
    """On its own 0.1 of 0.5 wrong is a fifth; after the base's 0.2 of 0.4 wrong is a half."""
    rows = rows_of("star", "acc@t1", 0.5, 0.5) + rows_of("star", "i_to_c@t2", 0.1, 0.1)
    for name, value in (("acc@t1", 0.6), ("i_to_c@t2", 0.2)):
        rows += rows_of("star", name, value, value, condition="base-first-attempts")
    own = Results(rows).correction_rate("star")
    assert own is not None and own.values == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}
    assert verdicts(rows) == {"star corrects the base's first attempts better than its own": YES}


def test_each_budget_of_votes_is_a_claim() -> None:
    rows = rows_of("score", "majority@gain[4]", 0.04, 0.04, condition="votes")
    rows += rows_of("score", "majority@gain[8]", -0.02, 0.0, condition="votes")
    rows += rows_of("score", "majority@gain[16]", -0.02, -0.02, condition="votes")
    assert list(verdicts(rows).values()) == [YES, OPEN, NO]


def test_the_papers_figures_stand_beside_ours() -> None:
    rows = rows_of("score", "acc@t1", 0.5, 0.6) + rows_of("score", "delta@t2", 0.1, 0.1)
    table = study_tables(Results(rows), [])["results"]
    (line,) = table.lines
    shown = dict(zip(table.titles, line, strict=True))
    assert (shown["acc@t1"], shown["delta"], shown["paper"]) == ("55.0 ±7.1 (60.0)", "+10.0 ±0.0 (+4.4)", "Table 2")
    claims = judge_claims(Results(rows + rows_of("base", "delta@t2", 0.1, 0.1)))
    page = study_markdown([table], claims)
    assert (
        "- does not appear: the base loses by correcting itself (delta of base below 0): +10.0 [+10.0, +10.0]" in page
    )


def test_the_paper_s_figures_agree_with_one_another() -> None:
    """Delta is the second attempt minus the first, and put right minus broken; the paper rounds to a tenth."""
    for row, (_, (first, second, delta, *flow)) in PAPER.items():
        assert second - first == pytest.approx(delta, abs=1.1e-3), row
        if flow:
            assert flow[0] - flow[1] == pytest.approx(delta, abs=2.1e-3), row


def study_at(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(f'[study]\nrecipes = "{ROOT / "pipelines" / "ablations"}"\n{text}')
    return path


def read(path: Path) -> Study:
    return read_study(path, read_recipe(path))


def test_the_studys_own_tables_hold_for_rows_that_do_not_say_otherwise(tmp_path: Path) -> None:
    text = 'rows = ["base", "no-stage1"]\nseeds = [0]\n[run]\nstage1_iterations = 7\nsave_every = 3\n'
    study = read(study_at(tmp_path, text))
    (tmp_path / "row.toml").write_text(study.recipe("no-stage1", {"train-stage2.alpha": 5.0}).as_toml())
    whole = (tmp_path / "row.toml").read_text()
    assert "stage1_iterations = 0" in whole and "save_every = 3" in whole and "alpha = 5.0" in whole
    assert whole.count("threads = 1") == 6 and read_recipe(tmp_path / "row.toml").as_toml() == whole
    assert (study.policy_of("base"), study.policy_of("no-stage1")) == ("base", "stage2")


def test_the_study_of_the_paper_tries_as_many_settings_for_score_as_for_each_baseline() -> None:
    study = read(ROOT / "pipelines" / "study.toml")
    assert {row: len(expand_grid(grid)) for row, grid in study.config.grid.items()} == dict.fromkeys(
        ["star", "pair-sft", "score"], 4
    )
    assert study.tuned_by("star-plus") == ["star"]
    assert study.tuned_by("star-for-stage2") == ["score", "star"] and study.tuned_by("base") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('rows = ["base", "scor"]\nseeds = [0]', "no recipe of a row scor: did you mean score"),
        ('rows = ["base"]\nseeds = []', "has no seeds"),
        ('rows = ["base"]\nseeds = [0, 0]', "expected a list without repetitions"),
        ('rows = ["base"]\nseeds = [0]\ntuning_seeds = [0, 3]', "tunes on seed 3, which its seeds lack"),
        ('rows = ["base"]\nseeds = [0]\n[study.tables.A]\nrows = ["score"]\ncolumns = ["x"]', "speaks of row score"),
        ('rows = ["base"]\nseeds = [0]\n[study.tables.A]\nrows = ["base"]', "[study.tables.A] has no columns"),
        ('rows = ["base"]\nseeds = [0]\n[study.tables.A]\nrow = ["base"]', "no key row: did you mean rows"),
        ('rows = ["base"]\nseeds = [0]\nworker = 2', "no key worker: did you mean workers"),
        ('rows = ["base"]\nseeds = [0]\nworkers = 0', "expected a whole number of at least 1"),
        ('rows = ["base"]\nseeds = [0]\nfurther = "score"', "speaks of row score, which its rows lack"),
        (
            'rows = ["base", "star"]\nseeds = [0]\n[study.grid.star]\n"train-sft.epoch" = [1]',
            "[train-sft] has no key epoch: did you mean epochs",
        ),
        ('rows = ["base", "star"]\nseeds = [0]\n[study.grid.star]\nepochs = [1]', "expected TABLE.KEY"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", str(study_at(tmp_path, text)), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_settings_are_chosen_by_their_mean_over_the_tuning_seeds(tmp_path: Path) -> None:
    """Seed 0 alone would choose the first value, 0.6 against 0.5; over both seeds the second leads, 0.6 to 0.55.

    Errors of 0.03 and 0.04 within the seeds are 0.05 / 2 of their mean.
    """
    text = 'rows = ["base", "star", "star-plus"]\nseeds = [0, 1, 2]\ntuning_seeds = [0, 1]\n'
    text += '[study.tuned_like]\nstar-plus = ["star"]\n[study.grid.star]\n"train-sft.epochs" = [1, 3]'
    study = read(study_at(tmp_path, text))
    measured = {"policy": study.policy_of("star"), "decoding": "sampled", "name": "acc@t2", "count": 8}
    for number, values in enumerate(((0.6, 0.5), (0.5, 0.7))):
        for seed, (value, stderr) in enumerate(zip(values, (0.03, 0.04), strict=True)):
            path = tmp_path / "run" / "tuning" / "star" / str(number) / f"seed-{seed}" / "metrics.parquet"
            footer = Footer(table=METRICS.name, stage="evaluate")
            write_table(path, METRICS, [measured | {"value": value, "stderr": stderr}], footer)
    work = Work(study, tmp_path / "run", None)
    jobs = {job.name: job for job in work.jobs()}
    trials = [f"star, seed {seed}, settings {n} (train-sft.epochs={1 + 2 * n})" for seed in (0, 1) for n in (0, 1)]
    assert [name for name in jobs if "settings" in name] == trials
    assert sorted(jobs["star-plus, seed 2"].needs) == sorted(["base, seed 2", *trials])
    tuning = [(line["value"], line["stderr"], line["count"], line["chosen"]) for line in work.tuning()]
    assert tuning == [(pytest.approx(0.55), pytest.approx(0.025), 16, False), (pytest.approx(0.6), ANY, 16, True)]
    recipe = Path(str(jobs["star-plus, seed 2"].arguments()[1]))
    assert "epochs = 3" in recipe.read_text()


def test_a_folder_of_another_study_or_of_a_study_at_work_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"study": {"seeds": [1]}}')
    path = study_at(tmp_path, 'rows = ["base"]\nseeds = [0]')
    assert run_command(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    with locked_folder(tmp_path / "other"):
        assert run_command(["run", str(path), "--out", str(tmp_path / "other")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "other settings" in errors[0] and "another process is at work" in errors[1] and len(errors) == 2


def test_a_failed_part_ends_the_study_with_its_name_and_message(tmp_path: Path) -> None:
    job = Job(name="star, seed 1", output=tmp_path / "o", needs=[], arguments=lambda: ["show", str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"^star, seed 1: .*none does not exist"):
        run_jobs([job], workers=2)


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (2, 2), (1, 1), (77, 1)])
def test_a_failed_part_s_exit_code_is_the_study_s_where_it_says_more_than_failed(
    code: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 is a full disk: the same command may be run again once there is room."""
    (tmp_path / "python").write_text(f"#!/bin/sh\necho sampling >&2\necho score: disk full >&2\nexit {code}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    job = Job(name="star, seed 1", output=tmp_path / "o", needs=[], arguments=list)
    with pytest.raises((UserError, JobError), match="^star, seed 1: disk full$") as caught:
        run_jobs([job], workers=1)
    assert caught.value.exit_code == expected


def test_rows_with_equal_bases_share_the_one_of_the_first_or_of_a_row_that_is_nothing_else(tmp_path: Path) -> None:
    """A script changes what the base is trained on, its length included; what comes after the base does not."""
    study = read(ROOT / "pipelines" / "neighbours.toml")
    assert {row: study.base_row(row) for row in study.config.rows if row in FIRST_SIX} == {
        "s2r": "s2r",
        "s2r-outcome": "s2r",
        "reflexicoder": "reflexicoder",
        "reflexicoder-own-turn": "reflexicoder",
        "rlsf": "reflexicoder",
        "judge": "judge",
    }
    paper = read(study_at(tmp_path, 'rows = ["score", "self-refine", "base"]\nseeds = [0]'))
    assert {row: paper.base_row(row) for row in paper.config.rows} == dict.fromkeys(paper.config.rows, "self-refine")


FIRST_SIX = ("s2r", "s2r-outcome", "reflexicoder", "reflexicoder-own-turn", "rlsf", "judge")


def test_a_row_of_its_own_table_is_shown_before_and_after_by_its_own_measures() -> None:
    """(0.5 + 0.7) / 2 = 0.6, deviation 0.2 / sqrt(2) = 0.1414; claims on wrong solves: (300 + 100) / 2 = 200."""
    rows = rows_of("s2r", "verify_acc", 0.5, 0.7, policy="base") + rows_of(
        "s2r", "verify_acc", 0.9, 0.9, policy="stage2"
    )
    rows += rows_of("s2r", "mean_trials", 1.5, 1.25, policy="stage2")
    rows += [
        row | {"count": count}
        for row, count in zip(rows_of("s2r", "error_recall", 0.5, 0.5, policy="stage2"), (300, 100), strict=True)
    ]
    rows += rows_of("score", "acc@t1", 0.5, 0.5)
    tables = {"S2R": {"rows": ["s2r"], "columns": ["verify_acc", "error_recall", "mean_trials"], "words": "w"}}
    tables["S2R"]["training"] = []
    shown = own_tables(Results(rows), tables)["S2R"]
    assert shown.titles == ["row", "policy", "decoding", "verify_acc", "error_recall", "mean_trials"]
    assert shown.lines == [
        ["s2r", "base", "sampled", "60.0 ±14.1", "", ""],
        ["s2r", "stage2", "sampled", "90.0 ±0.0", "50.0 ±0.0 of 200", "1.38 ±0.18"],
    ]
    (paper,) = study_tables(Results(rows), [], apart={"s2r"})["results"].lines
    assert paper[0] == "score"


def test_what_a_run_logged_is_shown_of_its_first_and_its_last_ten_updates() -> None:
    """Updates 0 to 21 log their number as the accepted share: means 4.5 and 16.5. Three updates: the first and last."""
    lines = [{"iteration": n, "name": "judged", "attempt": None, "value": float(n)} for n in range(22)]
    lines += [{"iteration": n, "name": "accuracy", "attempt": 1, "value": 0.25} for n in range(22)]
    found = {(row["policy"], row["name"]): (row["value"], row["count"]) for row in logged(lines)}
    assert found == {
        ("first 10 updates", "judged"): (4.5, 10),
        ("last 10 updates", "judged"): (16.5, 10),
        ("first 10 updates", "accuracy@t1"): (0.25, 10),
        ("last 10 updates", "accuracy@t1"): (0.25, 10),
    }
    assert [(row["policy"], row["value"]) for row in logged(lines[:3])] == [
        ("first 1 updates", 0.0),
        ("last 1 updates", 2.0),
    ]


def neighbours(row: str, name: str, before: tuple[float, ...], after: tuple[float, ...]) -> list[dict[str, object]]:
    return rows_of(row, name, *before, policy="base") + rows_of(row, name, *after, policy="stage2")


def test_a_neighbour_s_measure_is_judged_by_how_far_each_seed_moved() -> None:
    for after, expected in (((0.6, 0.7), YES), ((0.9, 0.4), OPEN), ((0.3, 0.4), NO)):
        claims = verdicts(neighbours("s2r", "verify_acc", (0.5, 0.6), after))
        assert claims == {"s2r: tells its right solves from its wrong ones better": expected}
    falls = verdicts(neighbours("judge", "error_recall", (0.5, 0.5), (0.4, 0.4)))
    assert falls == {"judge: its own claims, which nobody pays, find fewer errors": YES}


def test_process_and_outcome_are_set_side_by_side() -> None:
    rows = rows_of("s2r", "verify_acc", 0.7, 0.7) + rows_of("s2r-outcome", "verify_acc", 0.6, 0.6)
    rows += rows_of("s2r", "error_recall", 0.7, 0.7) + rows_of("s2r-outcome", "error_recall", 0.6, 0.6)
    assert list(verdicts(rows).values()) == [YES, NO]


@pytest.mark.parametrize(
    ("mended", "after", "expected", "verdict"),
    [(0.35, 0.4, "sags", YES), (0.35, 0.6, "sags", NO), (0.2, 0.6, "gains", YES), (0.2, 0.4, "gains", NO)],
)
def test_the_first_attempt_sags_only_where_the_base_mends_most_of_its_errors(
    mended: float, after: float, expected: str, verdict: Verdict
) -> None:
    """Half of the first attempts are wrong: 0.35 mends 70 percent of them, 0.2 mends 40; the turn-over is at 56."""
    rows = neighbours("reflexicoder", "acc@t1", (0.5, 0.5), (after, after))
    rows += neighbours("reflexicoder", "i_to_c@t2", (mended, mended), (0.1, 0.1))
    ((text, found),) = verdicts(rows).items()
    assert f"the first attempt {expected}" in text and found is verdict


def test_greedy_answers_are_unmoved_within_two_points() -> None:
    for after, expected in ((0.81, YES), (0.77, NO)):
        greedy = [row | {"decoding": "greedy"} for row in neighbours("rlsf", "acc@t1", (0.8, 0.8), (after, after))]
        ((text, found),) = verdicts(greedy).items()
        assert text.startswith("rlsf: greedy answers stay") and found is expected


def test_the_judge_s_gap_is_that_of_the_last_updates_against_the_first() -> None:
    for last, expected in ((0.2, YES), (0.02, NO)):
        rows = rows_of("judge", "judge_gap@t1", 0.03, 0.03, condition="training", policy="first 10 updates")
        rows += rows_of("judge", "judge_gap@t1", last, last, condition="training", policy="last 10 updates")
        assert verdicts(rows) == {"judge: more passes for right than is": expected}


def test_a_supervised_start_is_where_reinforcement_learning_is_measured_from() -> None:
    """The base reads no verdict; from the start on claims grow truer in both seeds, and find fewer errors in one.

    Truer by 0.2 and 0.19: 0.195 ± 12.706 x 0.005.
    """
    rows = rows_of("s2r-start", "verify_acc", 0.0, 0.0, policy="base")
    rows += rows_of("s2r-start", "verify_acc", 0.5, 0.6, policy="start")
    rows += rows_of("s2r-start", "verify_acc", 0.7, 0.79, policy="stage2")
    rows += rows_of("s2r-start", "error_recall", 0.4, 0.4, policy="start")
    rows += rows_of("s2r-start", "error_recall", 0.5, 0.3, policy="stage2")
    assert verdicts(rows) == {
        "s2r-start: tells its right solves from its wrong ones better": YES,
        "s2r-start: finds more of its errors": OPEN,
    }


def test_a_trained_critic_is_set_beside_its_base_and_not_beside_the_oracle() -> None:
    """The oracle comes last. A thousandth of a point between two arms' first attempts is a difference."""
    for first, same in ((0.5, YES), (0.50001, NO)):
        rows = rows_of("ctrl", "acc@t1", 0.5, policy="none") + rows_of("ctrl", "acc@t1", first, policy="oracle")
        for policy, mended in (("base", 0.1), ("stage2", 0.2), ("oracle", 0.05)):
            rows += rows_of("ctrl", "i_to_c@t2", mended, mended, policy=policy)
        assert verdicts(rows) == {
            "ctrl: every arm revises the same solves": same,
            "ctrl: its critiques put more solves right": YES,
        }


TINY = """
rows = ["base", "score"]
seeds = [0, 1]
[base]
steps = 30
[sample]
samples = 2
problems_per_iteration = 4
[eval]
samples = 1
[run]
stage1_iterations = 1
stage2_iterations = 1
"""


@pytest.mark.pipeline
def test_an_interrupted_study_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    recipe = study_at(tmp_path, TINY)
    command = [sys.executable, "-m", "score_cli", "run", str(recipe), "--limit", "6", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, cwd=ROOT, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "cut")], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    # Early: where the machine is busy the rest may be over before the signal arrives.
    while not (tmp_path / "cut" / "seed-0" / "base" / "base").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert not (tmp_path / "cut" / "study.parquet").exists()
    subprocess.run([*command, str(tmp_path / "cut")], check=True, cwd=ROOT, capture_output=True)
    for name in ("study.parquet", "study.md"):
        assert file_sha256(tmp_path / "cut" / name) == file_sha256(tmp_path / "whole" / name), name
    found = pl.read_parquet(tmp_path / "whole" / "study.parquet")
    assert set(found["row"]) == {"base", "score"} and set(found["seed"]) == {0, 1}
    assert set(found.filter(pl.col("row") == "score")["policy"]) == {"stage1", "stage2"}
