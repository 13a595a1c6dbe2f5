"""Several processes of `torchrun` train one policy: the gradient, the files and the errors are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from score_cli.cli import run_command
from score_cli.config import DataConfig, Stage2Config
from score_cli.errors import UserError
from score_cli.stages.data import write_problems
from score_cli.tables.checkpoints import load_optimizer, load_policy, stored_state
from score_cli.tables.processes import Share
from score_cli.training.learner import check_shardable
from tests.conftest import small_model
from tests.sharded import go_on
from tests.test_train import rewarded  # noqa: F401

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]

# Two updates of Stage II on an untrained policy, which is never right: it is paid for an odd number of letters.
RUN = """
[verify]
grader = "FOLDER/reward.py:grade"
[sample]
samples = 4
problems_per_iteration = 6
max_tokens = 6
threads = 1
[train-stage2]
threads = 1
micro_batch_tokens = 200
learning_rate = 1e-3
[eval]
threads = 1
samples = 1
max_tokens = 6
[run]
stage1_iterations = 0
stage2_iterations = 2
"""


def write_run(folder: Path, updates: int = 2) -> None:
    (folder / "reward.py").write_text("def grade(problem, response):\n    return len(response) % 2\n")
    (folder / "run.toml").write_text(
        RUN.replace("FOLDER", str(folder)).replace("stage2_iterations = 2", f"stage2_iterations = {updates}")
    )


def torchrun(processes: int, *arguments: str, expected: int = 0) -> str:
    """What a command of several processes prints; its errors where it is expected to fail."""
    command = [*TORCHRUN, str(processes), "-m", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode != 0) == (expected != 0), done.stderr
    return done.stderr if expected else done.stdout


@pytest.mark.parametrize(("items", "size"), [(0, 2), (1, 2), (4, 2), (5, 2), (5, 3), (7, 3), (2, 5)])
def test_processes_share_all_items_and_go_round_equally_often(items: int, size: int) -> None:
    taken = [list(Share(rank, size).own(range(items))) for rank in range(size)]
    assert len({len(each) for each in taken}) == 1
    assert sorted(item for each in taken for item in each if item is not None) == list(range(items))


def test_what_cannot_be_in_shards_is_refused_in_one_line() -> None:
    model = small_model()
    for config, word in (
        (Stage2Config(optimizer="adam8bit"), "optimizer is adam8bit"),
        (Stage2Config(log_grad_norm_by_attempt=True), "log_grad_norm_by_attempt is on"),
    ):
        with pytest.raises(UserError, match=word):
            check_shardable(config, model)
    with pytest.raises(UserError, match="no layers are known of Linear"):
        check_shardable(Stage2Config(), torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_other_commands_are_refused_under_torchrun_by_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run_command(["eval", "--out", "x"]) == 2
    assert "eval under torchrun, which is for train-stage1" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert run_command(["eval", "--out", "x"]) == 2
    assert capsys.readouterr().err == ""


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    moments = load_optimizer(checkpoint)
    assert moments is not None
    return dict(load_policy(checkpoint).model.named_parameters()) | moments


@pytest.mark.pipeline
def test_two_processes_then_one_then_three_train_what_one_trains(rewarded: Path) -> None:  # noqa: F811
    write_run(rewarded)
    write_problems("division", DataConfig(split="test", limit=4), out=rewarded / "other.parquet")
    found: dict[str, Any] = json.loads(torchrun(2, "tests.sharded", str(rewarded)).splitlines()[-1])
    trap, code, run = found.pop("trap"), found.pop("command"), found.pop("run")
    assert code == 0
    assert len(found) == 5 and max(found.values()) < 1e-9, found
    # In float32, where Adam makes steps of rounding.
    assert run < 2e-4
    # Half the gradient: of the first moments half is missing.
    assert trap > 1e-3

    # The same batch three times: by two processes, then one, then three; and by one alone.
    go_on(rewarded, "first", "second")
    torchrun(3, "tests.sharded", str(rewarded), "second", "third")
    for start, end in (("ckpt", "alone1"), ("alone1", "alone2"), ("alone2", "alone3")):
        go_on(rewarded, start, end)
    for several, alone in (("first", "alone1"), ("second", "alone2"), ("third", "alone3")):
        ours, theirs = tensors_of(rewarded / several), tensors_of(rewarded / alone)
        assert ours.keys() == theirs.keys()
        assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5, several
    assert stored_state(rewarded / "third").iteration == 3
