"""What docs/ tells a reader to do, done: on a tiny untrained model, and less of it."""

from pathlib import Path

import pytest

from score_cli.tables.problems import read_problems
from tests.conftest import write_checkpoint
from tests.pages import run_page

ROOT = Path(__file__).parents[1]
SMALL = ["sample.samples=2", "sample.max_tokens=6", "eval.samples=1", "eval.max_tokens=6"]
SMALL += ["run.stage1_iterations=1", "run.stage2_iterations=1", "sample.threads=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that has the recipes, as a clone has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    return tmp_path


def smaller(command: list[str]) -> list[str]:
    """A run of two updates of a tiny model in place of a real one."""
    if command[:2] != ["score", "run"]:
        return command
    model = command.index("--model") + 1
    command = [*command[:model], "ckpt", *command[model + 1 :]]
    return [*command, "--limit", "3", *(part for change in SMALL for part in ("--set", change))]


@pytest.mark.pipeline
def test_the_page_on_ones_own_problems(folder: Path) -> None:
    write_checkpoint(folder / "ckpt")
    run_page(ROOT / "docs" / "own-problems.md", smaller)
    assert (folder / "runs" / "sums" / "metrics.parquet").exists()
    given = read_problems(folder / "rg-train.parquet")[:3]
    assert read_problems(folder / "runs" / "sums" / "train.parquet") == given
    assert all(problem.extra["entry"]["metadata"]["num_terms"] >= 2 for problem in given)
