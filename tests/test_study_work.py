"""The study at work: which recipes its rows are, what is tried and chosen, what is refused; and a tiny one, cut."""

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
from score_cli.study.jobs import Job, run_jobs
from score_cli.study.plan import Study, attempts_that_fit, choose, expand_grid, read_study
from score_cli.study.work import Work
from score_cli.tables.atomic import locked_folder
from score_cli.tables.parquet import METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256

ROOT = Path(__file__).parents[1]


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
        ('rows = "base"\nseeds = [0]', '[study] rows is "base", expected a list of texts without repetitions'),
        ('rows = ["base"]\nseeds = [0, 0]', "expected a list of whole numbers without repetitions"),
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


def test_a_folder_without_recipes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[study]\nrecipes = "nowhere"\nrows = ["base"]\nseeds = [0]')
    with pytest.raises(UserError, match="nowhere holds no recipes: give .study. recipes the folder"):
        read(path)


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
