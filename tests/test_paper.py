"""The page docs/results.md says what the runs measured, and `make paper` goes on where it was stopped."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import paper
import results_page

from score_cli.recipe import read_recipe
from score_cli.study.plan import read_study
from score_cli.study.results import Results
from score_cli.tables.parquet import METRICS, TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer
from tests.report_support import curve, write_study

ROOT = Path(__file__).resolve().parents[1]
Measured = Mapping[tuple[str, str], tuple[float, float]]  # policy, metric -> value, error


def write_run(run: Path, measured: Measured) -> None:
    rows = [
        {"policy": policy, "decoding": "sampled", "name": name, "value": value, "stderr": error, "count": 50}
        for (policy, name), (value, error) in measured.items()
    ]
    write_table(run / "metrics.parquet", METRICS, rows, Footer(table="metrics", stage="eval"))
    write_table(
        run / "train_metrics.parquet", TRAIN_METRICS, curve([0.5, 0.7]), Footer(table="train_metrics", stage="")
    )


def cells(text: str, *key: str) -> list[str]:
    """What stands behind the cells `key` in the first line that begins with them."""
    lines = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines() if "|" in line]
    return next(line[len(key) :] for line in lines if line[: len(key)] == list(key))


def test_the_quickstart_is_a_mean_over_seeds_with_its_deviation(tmp_path: Path) -> None:
    for seed, second in enumerate((0.5, 0.7)):
        write_run(
            tmp_path / "quickstart" / f"seed-{seed}",
            {("base", "acc@t1"): (0.4, 0.01), ("base", "acc@t2"): (second, 0.01)},
        )
    results_page.write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    # The deviation of 50 and 70 is 20 / sqrt 2.
    assert cells(page, "base", "sampled")[:2] == ["40.0 ±0.0", "60.0 ±14.1"]
    assert "N = 0, 1." in page
    assert (tmp_path / "figures" / "results-quickstart-dark.svg").exists()


def test_a_part_that_is_not_there_is_left_out_and_each_says_who_made_it(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    session = {"commit": "c0ffee1", "machine": "a CPU, 2 cores", "versions": {"torch": "2.13.0"}, "began": "then"}
    (tmp_path / "study" / "made.json").write_text(json.dumps([session | {"seconds": 5400, "note": "by pieces"}]))
    results_page.write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert re.findall("^## (.*)", page, re.MULTILINE) == ["Study"]
    assert cells(page, "study", "c0ffee1") == ["a CPU, 2 cores", "torch 2.13.0", "then", "1.50", "by pieces"]
    # By hand: 76 and 80 percent at the second attempt of score, 48 and 50 of base.
    assert cells(page, "score", "sampled")[1] == "78.0 ±2.8 (64.4)"
    assert cells(page, "base", "acc@t2") == ["48.0", "50.0"]


def test_what_becomes_of_first_attempts_is_a_share_of_those_there_are() -> None:
    """Of 0.6 wrong ones 0.24 change, 0.06 of them for the better; nothing is right at first in the other seed."""
    rows = [
        {"row": "score", "condition": "own", "policy": "p", "decoding": "sampled", "name": name, "seed": seed}
        | {"value": value, "stderr": None, "count": 8}
        for seed, values in enumerate(((0.4, 0.3, 0.06, 0.06), (0.0, 0.0, 0.0, 0.0)))
        for name, value in zip(("acc@t1", "changed@t2", "i_to_c@t2", "c_to_i@t2"), values, strict=True)
    ]
    # 0.24 / 0.6 and 0 of 1; 0.06 / 0.24; 0.06 / 0.4.
    assert results_page.guesses_table(Results(rows)).lines == [["score", "20.0 ±28.3", "25.0", "15.0"]]


def test_experiments_and_smollm_show_single_runs_with_their_own_errors(tmp_path: Path) -> None:
    measured: Measured = {
        ("base", "acc@t1"): (0.3, 0.03),
        ("stage2", "acc@t1"): (0.5, 0.04),
        ("stage2 - base", "acc@t1"): (0.2, 0.02),
    }
    for run in ("experiments/longer/seed-4/score", "smollm/seed-1/score", "smollm/seed-1/naive-multi-turn"):
        write_run(tmp_path / run, measured)
    results_page.write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert cells(page, "score, seed 4, stage2", "sampled")[0] == "50.0 ±4.0"
    assert cells(page, "naive-multi-turn, seed 1, base", "sampled")[0] == "30.0 ±3.0"
    assert cells(page, "score, seed 1, stage2 - base", "sampled")[0] == "20.0 ±2.0"
    assert "50 held-out problems" in page
    # The curve's first update and its second, of either run; nothing of the runs says what their KL was.
    lines = results_page.runs_lines({"run": tmp_path / "smollm/seed-1/score"}, "changed@t2", None)
    assert [line.parts for line in lines] == [[[(0, 0.25), (1, 0.35)]]]
    assert "results-smollm-changed.svg" in page and "results-smollm-kl.svg" not in page


def test_what_is_done_is_left_out_and_what_fails_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(folder: Path, small: bool) -> list[paper.Step]:
        return [paper.Step(folder / name, ["touch", folder / name]) for name in ("a", "b")]

    folder = tmp_path / "part"
    monkeypatch.setitem(paper.PARTS, "part", steps)
    folder.mkdir()
    (folder / "a").touch()
    before = (folder / "a").stat().st_mtime_ns
    for _ in range(2):
        paper.make("part", folder, False)
    assert (folder / "b").exists() and (folder / "a").stat().st_mtime_ns == before
    assert len(json.loads((folder / "made.json").read_text())) == 1
    monkeypatch.setitem(paper.PARTS, "part", lambda folder, small: [paper.Step(folder / "c", ["false"])])
    with pytest.raises(subprocess.CalledProcessError):
        paper.make("part", folder, False)
    assert len(json.loads((folder / "made.json").read_text())) == 2


def test_the_study_that_is_tried_out_has_every_row_of_reinforcement_and_every_setting(tmp_path: Path) -> None:
    path = paper.small_study(tmp_path)
    small = read_study(path, read_recipe(path))
    whole_path = paper.PIPELINES / "study-eight.toml"
    whole = read_study(whole_path, read_recipe(whole_path))
    assert (small.config.seeds, small.tuning_seeds) == ([0, 1], [0])
    for key in ("grid", "tuned_like", "first_attempts_of_base"):
        assert getattr(small.config, key) == getattr(whole.config, key)
    ends = {row: small.policy_of(row) for row in small.config.rows}
    assert ends == {row: whole.policy_of(row) for row in whole.config.rows if row != "star-plus"}


def test_experiments_and_smollm_are_short_where_they_are_tried_out(tmp_path: Path) -> None:
    (tmp_path / "smollm" / "smollm").mkdir(parents=True)
    (tmp_path / "smollm" / "smollm" / "config.json").touch()  # nothing is to be downloaded
    steps = [*paper.experiment_steps(tmp_path / "experiments", True), *paper.smollm_steps(tmp_path / "smollm", True)]
    runs = [list(map(str, step.command)) for step in steps if "run" in step.command]
    assert len(runs) == sum(map(len, paper.EXPERIMENTS.values())) + 2
    for command in runs:
        assert command[-1] == "--try-out"
        lengths = [int(part.split("=")[1]) for part in command if part.startswith(("run.", "base.steps"))]
        assert max(lengths, default=0) <= 2


def test_every_experiment_is_of_a_row_of_the_study_and_is_explained() -> None:
    path = paper.PIPELINES / "study-eight.toml"
    study = read_study(path, read_recipe(path))
    assert set(paper.EXPERIMENTS) == set(results_page.SAYS)
    for each in [each for experiments in paper.EXPERIMENTS.values() for each in experiments]:
        assert each.row in study.config.rows and set(each.seeds) <= set(study.config.seeds)
        study.recipes[each.row].change([f"{key}={value}" for key, value in each.settings.items()])


def lines_of(page: str, head: str) -> list[list[str]]:
    """The lines of the page's table that begins with `head`."""
    lines = (ROOT / page).read_text().split(head, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]


def section(title: str) -> str:
    page = (ROOT / "docs" / "results.md").read_text()
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize(
    ("page", "head", "key"),
    [
        ("README.md", "| policy | acc@t1 | acc@t2 | delta | i->c | c->i |", lambda line: [line[0], "sampled"]),
        ("docs/tutorial.md", "| policy | decoding | acc@t1 | acc@t2 | delta |", lambda line: line[:2]),
        ("benchmarks/RESULTS.md", "| policy | decoding | acc@t1 | acc@t2 | delta |", lambda line: line[:2]),
    ],
)
def test_pages_repeat_the_quickstart_as_it_was_measured(
    page: str, head: str, key: Callable[[list[str]], list[str]]
) -> None:
    table = lines_of(page, head)
    assert len(table) >= 3
    for line in table:
        figures = [cell for cell in line if cell[:1] in "+-0123456789"]
        assert cells(section("Quickstart"), *key(line))[: len(figures)] == figures


def test_the_study_repeats_its_rows_and_their_distances_from_score() -> None:
    table = lines_of("docs/study.md", "| row | acc@t1 | acc@t2 | delta | acc@t2 less SCoRe's, paired |")
    assert len(table) >= 9
    study = section("Study")
    against = study.split("Each row less score", 1)[1]
    for row, *figures in table:
        assert [cell.split(" (")[0] for cell in cells(study, row, "sampled")[:3]] == figures[:3]
        if row != "score":
            assert cells(against, row, "sampled")[1:3] == figures[3:5]
