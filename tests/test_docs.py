"""What docs/ tells a reader to do, done: on a tiny untrained model, and less of it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import REWARDS, read_footer
from score_cli.tables.problems import read_problems
from score_cli.tables.traces import read_verdicts
from tests.conftest import write_checkpoint
from tests.pages import blocks, run_page

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


def quicker(command: list[str]) -> list[str]:
    """The same with a base that has hardly learned."""
    more = {
        "base": ["--steps", "2", "--layers", "1", "--batch-size", "8"],
        "sample": ["--samples", "2", "--max-tokens", "6", "--problems-per-iteration", "4"],
    }
    return smaller([*command, *more.get(command[1], [])])


@pytest.mark.pipeline
def test_the_page_on_ones_own_reward(folder: Path) -> None:
    run_page(ROOT / "docs" / "own-reward.md", quicker)
    footer = read_footer(folder / "runs" / "near" / "iterations" / "0000" / "rewards.parquet", REWARDS)
    assert footer is not None
    digest = hashlib.sha256((folder / "reward.py").read_bytes()).hexdigest()
    assert footer.config["graders"]["near"]["sha256"] == digest
    rewards = [reward for each in read_verdicts(folder / "rewards.parquet") for reward in each.rewards]
    assert all(reward is None or abs(reward * 10 - round(reward * 10)) < 1e-5 for reward in rewards)
    assert load_policy(folder / "runs" / "near" / "stage2", device="cpu").state.stage == "stage2"


def test_the_reward_of_the_page(folder: Path) -> None:
    [source] = [block.text for block in blocks(ROOT / "docs" / "own-reward.md") if block.file == "reward.py"]
    assert len(source.splitlines()) <= 20
    space: dict[str, Any] = {}
    exec(source, space)
    problem = {"dividend": 264, "divisor": 5}
    given = [r"\boxed{52}: product 260", r"\boxed{53}", r"\boxed{52} \boxed{49}", r"\boxed{90}", "52"]
    assert [space["grade"](problem, response) for response in given] == [1, 0.9, 0.7, 0, 0]
