"""The whole loop for real: it learns, it survives being killed, and commands give the bytes that a run gives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from score_cli.tables.provenance import file_sha256

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

# A base too young to be right, which is enough to see files and bytes.
TINY = """
seed = 4
[base]
steps = 40
[sample]
samples = 4
problems_per_iteration = 16
max_tokens = 14
batch_size = 64
chunk_problems = 8
[train-stage1]
learning_rate = 5e-4
kl = "full"
[train-stage2]
learning_rate = 2e-4
[eval]
samples = 2
max_tokens = 14
[run]
stage1_iterations = 3
stage2_iterations = 3
save_every = 2
"""

# The quickstart, shortened: thirty iterations of Stage I alone.
SHORT = """
[base]
threads = 1
[sample]
threads = 1
samples = 8
problems_per_iteration = 32
max_tokens = 14
batch_size = 256
[train-stage1]
threads = 1
learning_rate = 5e-4
beta2 = 0.25
kl = "full"
micro_batch_tokens = 16384
[eval]
threads = 1
samples = 8
max_tokens = 14
batch_size = 256
[run]
stage1_iterations = 30
"""


def score(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "score_cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a whole run of it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "recipe.toml").write_text(TINY)
    score("run", folder / "recipe.toml", "--out", folder / "run")
    return folder


def digests(run: Path) -> dict[str, str]:
    files = [*run.glob("*.parquet"), *run.glob("iterations/*/*.parquet"), *run.glob("eval/*.parquet")]
    weights = run.glob("*/model.safetensors")
    return {str(path.relative_to(run)): file_sha256(path) for path in [*files, *weights]}


def test_plain_commands_give_the_bytes_of_the_run(tiny: Path) -> None:
    script = [ROOT / "pipelines" / "score.sh", tiny / "recipe.toml", tiny / "commands", "3", "3"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    run, commands = digests(tiny / "run"), digests(tiny / "commands")
    shared = {name for name in run if name.split("/")[-1] not in ("train_metrics.parquet", "metrics.parquet")}
    assert len([name for name in shared if name.startswith("iterations")]) == 12
    assert {name: run[name] for name in shared} == {name: commands.get(name) for name in shared}
    assert run["metrics.parquet"] == commands["metrics.parquet"]


def test_a_killed_run_resumes_to_the_same_bytes(tiny: Path) -> None:
    """Killed without warning at five moments, then run to its end."""
    again = tiny / "again"
    command = [sys.executable, "-m", "score_cli", "run", str(tiny / "recipe.toml"), "--out", str(again)]
    marks = ["train.parquet", "base", "iterations/0001", "iterations/0003/traces.parquet", "eval"]
    for mark in marks:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
        deadline = time.monotonic() + 120
        while not (again / mark).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    score("run", tiny / "recipe.toml", "--out", again)
    assert digests(again) == digests(tiny / "run")


def test_a_finished_run_prints_its_table_again_and_other_settings_are_refused(tiny: Path) -> None:
    shown = score("run", tiny / "recipe.toml", "--out", tiny / "run").stdout
    *lines, last = shown.splitlines()
    assert [line.split()[:2] for line in lines[2:] if line] == [
        [name, decoding] for name in ("base", "stage1", "stage2") for decoding in ("sampled", "greedy")
    ]
    assert last.startswith(f"{tiny / 'run' / 'stage2'}: the policy")
    command = [sys.executable, "-m", "score_cli", "run", tiny / "recipe.toml", "--out", tiny / "run", "--seed", "5"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert refused.returncode == 2
    assert "was begun with other settings (base.seed was 4, is 5" in refused.stderr


def test_the_curve_has_every_update(tiny: Path) -> None:
    curve = pl.read_parquet(tiny / "run" / "train_metrics.parquet")
    assert curve.group_by("stage").agg(pl.col("iteration").unique().sort()).sort("stage").rows() == [
        ("stage1", [0, 1, 2]),
        ("stage2", [3, 4, 5]),
    ]


def test_splits_share_no_problem(tiny: Path) -> None:
    parts = [set(pl.read_parquet(tiny / "run" / f"{s}.parquet")["problem_id"]) for s in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [3000, 200, 400]
    assert len(set.union(*parts)) == 3600


def test_stage_one_raises_delta_and_leaves_the_first_attempt_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(SHORT)
    score("run", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    metrics = pl.read_parquet(tmp_path / "run" / "metrics.parquet").filter(pl.col("decoding") == "sampled")
    values = {(policy, name): value for policy, name, value in metrics.select("policy", "name", "value").rows()}
    errors = {(policy, name): error for policy, name, error in metrics.select("policy", "name", "stderr").rows()}
    # The base revises without gain: its delta is small, of either sign from seed to seed.
    assert abs(values["base", "delta@t2"]) < 0.08
    rise = values["stage1", "delta@t2"] - values["base", "delta@t2"]
    assert rise > 4 * errors["stage1", "delta@t2"]
    assert abs(values["stage1", "acc@t1"] - values["base", "acc@t1"]) < 0.08


# Pair-SFT from a base trained just long enough to be right now and then.
SUPERVISED = """
[base]
threads = 1
steps = 500
[sample]
threads = 1
samples = 8
max_tokens = 14
batch_size = 256
[train-sft]
threads = 1
method = "pair-sft"
learning_rate = 3e-4
micro_batch_tokens = 16384
[eval]
threads = 1
samples = 4
max_tokens = 14
batch_size = 256
[run]
sft_rounds = 2
sft_problems = 150
"""


def test_supervised_rounds_lower_the_loss_and_make_the_policy_change_its_answers(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(SUPERVISED)
    score("run", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet")
    losses = {name: curve.filter(pl.col("name") == name)["value"].to_list() for name in ("loss_before", "loss_after")}
    assert all(after < 0.95 * before for before, after in zip(*losses.values(), strict=True)), losses
    metrics = pl.read_parquet(tmp_path / "run" / "metrics.parquet").filter(pl.col("decoding") == "sampled")
    found = {(policy, name): (value, error) for policy, _, name, value, error, _ in metrics.rows()}
    # It was shown nothing but second answers that differ from the first.
    for name in ("changed@t2", "edit_ratio@t2"):
        (before, _), (after, error) = found["base", name], found["sft", name]
        assert error is not None and after - before > 4 * error, (name, before, after)
