"""A run on Ray whose training processes are actors: the policy of one process, and another start after a lost actor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from score_cli.cli import run_command
from score_cli.config import DataConfig
from score_cli.stages.data import write_problems
from score_cli.tables.checkpoints import load_policy
from tests.conftest import small_policy
from tests.processes import descendants
from tests.test_several_processes import write_run

ON_RAY = ["--ray", "local", "--trainers", "2", "--set", "sample.ray_samplers=1", "--set", "eval.ray_samplers=1"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--trainers", "2"], "--trainers are actors of a Ray cluster: say which with --ray"),
        (["--trainers", "0"], "--trainers"),
    ],
)
def test_trainers_need_a_cluster(given: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "pipelines/quickstart.toml", *given]) == 2
    assert line in capsys.readouterr().err


@pytest.fixture
def command(tmp_path: Path, checkpoint: Path) -> list[str]:
    write_run(tmp_path, updates=3)
    for split in ("train", "test"):
        write_problems("division", DataConfig(split=split, limit=8), out=tmp_path / f"{split}.parquet")
    inputs = ["--model", str(checkpoint), "--problems", str(tmp_path / "train.parquet")]
    run = [sys.executable, "-m", "score_cli", "run", str(tmp_path / "run.toml"), *inputs]
    return [*run, "--eval-problems", str(tmp_path / "test.parquet")]


def trainers(process: int) -> list[int]:
    """The actors that train, of a command that started a cluster."""
    names = {child: Path(f"/proc/{child}/cmdline") for child in descendants(process)}
    return [child for child, file in names.items() if file.exists() and file.read_bytes().startswith(b"ray::Trainer")]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def end(process: subprocess.Popen[str], *, code: int = 0) -> str:
    """Wait for a command, see how it ended, and return what it said of errors."""
    said = process.communicate(timeout=180)[1]
    assert process.returncode == code, said
    return said


@pytest.mark.pipeline
def test_a_trainer_is_killed_and_the_same_command_ends_in_the_policy_of_one_process(
    tmp_path: Path, command: list[str]
) -> None:
    pytest.importorskip("ray")
    several, alone = tmp_path / "several", tmp_path / "alone"
    running = start([*command, "--out", str(several), *ON_RAY])
    while not (several / "iterations" / "0000" / "metrics.parquet").exists():
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)
    [victim] = trainers(running.pid)
    os.kill(victim, signal.SIGKILL)
    said = end(running, code=1).strip().splitlines()[-1]
    assert "another process of this command has ended: a Ray trainer" in said

    end(start([*command, "--out", str(several), *ON_RAY]))
    end(start([*command, "--out", str(alone)]))
    # Adam makes a step of a gradient that is all rounding; the gradients themselves are compared in tests/sharded.py.
    ours, theirs = (dict(load_policy(folder / "stage2").model.named_parameters()) for folder in (several, alone))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 5e-4
    before = dict(small_policy().model.named_parameters())
    assert max((ours[name] - before[name]).abs().max().item() for name in ours) > 1e-3
    tokens = [
        pl.read_parquet(folder / "iterations/*/traces.parquet")["token_ids"].to_list() for folder in (several, alone)
    ]
    assert tokens[0][:24] == tokens[1][:24]
