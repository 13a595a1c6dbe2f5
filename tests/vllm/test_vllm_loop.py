"""The loop around vLLM: its traces train the policy, and a run keeps it warm and proved."""

from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from score_cli.cli import run_command
from score_cli.config import BaseConfig
from score_cli.tables.checkpoints import load_policy, stored_state
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.training.base_policy import train_base

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]

RECIPE = """
seed = 4
[sample]
engine = "vllm"
samples = 4
problems_per_iteration = 8
max_tokens = 14
[train-stage1]
learning_rate = 1e-3
[train-stage2]
learning_rate = 1e-3
[eval]
engine = "transformers"
samples = 2
max_tokens = 14
[run]
stage1_iterations = 2
stage2_iterations = 1
overlap = "keep"
"""


def score(*arguments: object) -> None:
    assert run_command([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe, base, problems = folder / "recipe.toml", folder / "base", folder / "problems.parquet"
    recipe.write_text(RECIPE)
    # Heads of 32 numbers, the least that vLLM has a kernel for on CPU; a base too young to be right often.
    train_base(BaseConfig(width=128, steps=150, batch_size=64, threads=1), out=base)
    score("data", "division", "--limit", 16, "--out", problems)
    score("run", recipe, "--model", base, "--problems", problems, "--eval-problems", problems, "--out", folder / "run")
    return folder / "run"


def test_a_run_trains_on_what_vllm_sampled_from_each_policy(run_folder: Path) -> None:
    """The trainer refuses traces whose logprobs are not its own, so a stale engine could not get here."""
    policies = []
    for iteration in range(3):
        footer = read_footer(run_folder / "iterations" / f"{iteration:04d}" / "traces.parquet", TRACES)
        assert footer is not None and footer.config["engine"] == "vllm"
        policies.append(footer.policy)
    assert policies[0] == load_policy(run_folder.parent / "base").state.fingerprint
    assert policies[2] == stored_state(run_folder / "stage1").fingerprint
    assert len(set(policies)) == 3
    curve = pl.read_parquet(run_folder / "train_metrics.parquet").filter(pl.col("name") == "logprob_diff_abs")
    assert len(curve) == 6 and curve["value"].max() < 1e-4 and curve["value"].min() > 0


def test_a_run_goes_on_from_the_same_problems_as_with_transformers(run_folder: Path, tmp_path: Path) -> None:
    """Which problems an iteration draws belongs to the seed, not to the engine."""
    own = pl.read_parquet(run_folder / "iterations" / "0000" / "traces.parquet")
    score(
        *("sample", "--config", run_folder.parent / "recipe.toml", "--engine", "transformers", "--seed", 4),
        *(
            "--model",
            run_folder.parent / "base",
            "--problems",
            run_folder / "train.parquet",
            "--out",
            tmp_path / "t.parquet",
        ),
    )
    other = pl.read_parquet(tmp_path / "t.parquet")
    assert own["problem_id"].to_list() == other["problem_id"].to_list()


def test_commands_train_on_vllms_traces(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same traces from `score sample` as from the run's warm engine, and an update from them."""
    monkeypatch.chdir(tmp_path)
    problems, base, recipe = run_folder / "train.parquet", run_folder.parent / "base", run_folder.parent / "recipe.toml"
    score("sample", "--config", recipe, "--model", base, "--problems", problems)
    columns = ["problem_id", "sample_index", "token_ids", "attempt_ids", "finish_reasons"]
    ours = pl.read_parquet("traces.parquet")
    theirs = pl.read_parquet(run_folder / "iterations" / "0000" / "traces.parquet")
    assert ours.select(columns).equals(theirs.select(columns))
    score("verify", "--problems", problems)
    score("train-stage1", "--model", base, "--learning-rate", "1e-3")
    state = stored_state(tmp_path / "ckpt-next")
    assert state.iteration == 1 and state.parent == load_policy(base).state.fingerprint
