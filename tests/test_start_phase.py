"""A run with a supervised start: its place among the phases, where KL is measured from, and kills that do not show."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from score_cli import run_phases
from score_cli.config import SftConfig, Stage1Config, Stage2Config
from score_cli.errors import UserError
from score_cli.phases import plan_phases
from score_cli.recipe import read_recipe
from score_cli.run import Run, RunInputs
from score_cli.run_config import RunConfig
from score_cli.stages.train_sft import train_start
from score_cli.tables.checkpoints import load_policy, stored_state
from score_cli.tables.provenance import file_sha256
from score_cli.training.sft import sft_round
from tests.scripts import S2R_TOML, script, write_scripted

RECIPE = f"""seed = 3
{S2R_TOML}
[dialogues]
size = 16
[sample]
samples = 4
problems_per_iteration = 4
max_tokens = 14
threads = 1
[pay]
solve = {{ format = 1.0 }}
verify = {{ format = 1.0 }}
[train-sft]
loss_on = "verify,last-solve"
learning_rate = 1e-3
batch_size = 8
threads = 1
[train-stage2]
learning_rate = 1e-3
threads = 1
[eval]
samples = 1
max_tokens = 14
threads = 1
[run]
start = "author"
start_rounds = 2
stage2_iterations = 1
overlap = "keep"
"""
STAGES = {"stage1": Stage1Config(), "stage2": Stage2Config(), "attempts": 2}


def test_the_start_comes_first_and_what_follows_is_pinned_to_it() -> None:
    run = RunConfig(start="d.jsonl", start_rounds=3, stage1_iterations=2, stage2_iterations=4, sft_rounds=1)
    phases = plan_phases(run, sft=SftConfig(), **STAGES)  # type: ignore[arg-type]
    assert [(p.name, p.first, p.last, p.reference) for p in phases] == [
        ("start", 0, 3, "base"),
        ("sft", 3, 4, "start"),
        ("stage1", 4, 6, "start"),
        ("stage2", 6, 10, "start"),
    ]
    run = replace(run, start=None, stage1_by_attempt=True)
    phases = plan_phases(run, sft=SftConfig(method="search"), **(STAGES | {"attempts": 3}))  # type: ignore[arg-type]
    assert [(p.name, p.attempts, p.reference) for p in phases] == [
        ("sft", 3, "base"),
        ("stage1-t2", 2, "base"),
        ("stage1-t3", 3, "stage1-t2"),
        ("stage2", 3, "base"),
    ]


@pytest.fixture
def inputs(tmp_path: Path, problems: Path) -> RunInputs:
    write_scripted(tmp_path / "ckpt", script())
    (tmp_path / "r.toml").write_text(RECIPE)
    return RunInputs(model=tmp_path / "ckpt", problems=problems, eval_problems=problems)


def made(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.parquet"), *folder.glob("iterations/*/*.parquet"), *folder.glob("*/*.safetensors")]
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


@pytest.mark.pipeline
def test_a_start_is_two_rounds_of_the_command_and_a_kill_between_them_does_not_show(
    inputs: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(tmp_path / "r.toml")
    rows = Run(recipe, tmp_path / "whole", inputs).execute()
    assert {row["policy"] for row in rows if " - " not in row["policy"]} == {"base", "start", "stage2"}
    states = {name: stored_state(tmp_path / "whole" / name) for name in ("start", "stage2")}
    base = load_policy(tmp_path / "ckpt").state.fingerprint
    assert (states["start"].iteration, states["start"].reference) == (2, base)
    assert (states["stage2"].iteration, states["stage2"].reference) == (3, states["start"].fingerprint)
    losses = pl.read_parquet(tmp_path / "whole" / "train_metrics.parquet").filter(pl.col("stage") == "sft")
    assert losses.filter(pl.col("name") == "examples")["value"].to_list() == [16, 16]

    # The commands, one by one.
    model, sampling = tmp_path / "ckpt", Run(recipe, tmp_path / "x", inputs).configs
    for number in range(2):
        learned = tmp_path / f"l{number}.parquet"
        files: dict[str, Any] = {"model": model, "out": tmp_path / f"n{number}", "learned": learned}
        train_start(sampling.sft, sampling.sample, examples=tmp_path / "whole" / "dialogues.jsonl", **files)
        model = files["out"]
        assert learned.read_bytes() == (tmp_path / f"whole/iterations/000{number}/sft.parquet").read_bytes()
    assert file_sha256(model / "model.safetensors") == file_sha256(tmp_path / "whole" / "start" / "model.safetensors")

    # Killed in the second round.
    calls: list[int] = []

    def dying(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sft_round(*arguments, **named)

    monkeypatch.setattr(run_phases, "sft_round", dying)
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, tmp_path / "killed", inputs).execute()
    assert not (tmp_path / "killed" / "start").exists()
    Run(recipe, tmp_path / "killed", inputs).execute()
    assert len(calls) == 3, "the first round was not taken again"
    assert made(tmp_path / "killed") == made(tmp_path / "whole")


def test_a_run_takes_a_file_of_dialogues_and_refuses_a_bad_one_before_any_work(
    inputs: RunInputs, tmp_path: Path
) -> None:
    recipe = read_recipe(tmp_path / "r.toml")
    recipe.change([f"run.start={json.dumps(str(tmp_path / 'none.jsonl'))}"])
    with pytest.raises(UserError, match="none.jsonl is no file: name the dialogues to learn from"):
        Run(recipe, tmp_path / "run", inputs)
    turns = [{"role": "solve", "text": "\\boxed{1"}, {"role": "solve", "text": "2"}]
    row = {"question": "Divide 264 by 5. ", "task": "division", "turns": turns}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    recipe.change([f"run.start={json.dumps(str(tmp_path / 'd.jsonl'))}"])
    with pytest.raises(UserError, match="line 1, turn 2 is a solve turn, and there the recipe has a verify turn"):
        Run(recipe, tmp_path / "run", inputs).execute()
    assert not (tmp_path / "run" / "iterations").exists()
    recipe.change(["train-sft.method=star", "run.sft_rounds=1"])
    with pytest.raises(
        UserError, match="train-sft.method star learns from two solves: with .script. name one of right"
    ):
        Run(recipe, tmp_path / "run", inputs)
