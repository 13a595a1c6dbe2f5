"""Small models and tables shared by the tests. Torch runs on one thread: the machine may be small.

Tests run on the CPU, wherever they run: a GPU is hidden from them and from the processes that they start, unless
SCORE_TEST_GPU is set, as `make test-gpu` does for tests/gpu.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before the first import that asks the driver, which reads it once.
if not os.environ.get("SCORE_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from transformers import PreTrainedModel

from score_cli.config import BaseConfig, DataConfig, SampleConfig, Stage1Config, Stage2Config, VerifyConfig
from score_cli.sampling.engine import Engine
from score_cli.sampling.sampler import Sampler
from score_cli.stages.data import write_problems
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, load_policy, save_policy
from score_cli.tables.records import Trace
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.training.base_policy import make_model
from score_cli.training.step import StepStats, TrainBatch, forward_backward, prepare
from score_cli.verification.grader import Grader

if TYPE_CHECKING:
    from score_cli.run import RunInputs

torch.set_num_threads(1)

ARCHITECTURES = ("gpt2", "llama", "qwen2")
# Real data, where a copy is at hand; tests that want it skip where it is not.
SHARED_DATA = Path(os.environ.get("SCORE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def small_model(architecture: str = "gpt2", seed: int = 0, scale: float = 3.0, *, attempts: int = 2) -> PreTrainedModel:
    """An untrained two-layer model whose weights are scaled up, so that its distributions are not flat."""
    config = BaseConfig(
        architecture=architecture,  # type: ignore[arg-type]
        width=32,
        heads=4,
        seed=seed,
        attempts=attempts,
    )
    model = make_model(config, make_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= scale
    return model


def small_policy(architecture: str = "gpt2", seed: int = 0, *, attempts: int = 2) -> Policy:
    model = small_model(architecture, seed, attempts=attempts)
    return Policy(model, make_tokenizer(), TrainerState(fingerprint=fingerprint(model)), "small")


@pytest.fixture(params=ARCHITECTURES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return small_policy(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained checkpoint on disk."""
    return write_checkpoint(tmp_path / "ckpt")


def write_checkpoint(path: Path, architecture: str = "gpt2", seed: int = 0, *, attempts: int = 2) -> Path:
    """An untrained checkpoint with room for so many attempts."""
    made = small_policy(architecture, seed, attempts=attempts)
    path.mkdir()
    save_policy(path, made.model, made.tokenizer, made.state)
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Twelve division problems."""
    path = tmp_path / "problems.parquet"
    write_problems("division", DataConfig(limit=12), out=path)
    return path


@pytest.fixture
def batch(tmp_path: Path, checkpoint: Path, problems: Path) -> Path:
    """The folder of a checkpoint with its problems, traces and rewards (four samples of twelve problems)."""
    make_batch(tmp_path, checkpoint, problems)
    return tmp_path


def make_batch(folder: Path, checkpoint: Path, problems: Path, **settings: object) -> None:
    chosen = {"samples": 4, "max_tokens": 6, "threads": 1} | settings
    sample(
        SampleConfig(**chosen),  # type: ignore[arg-type]
        policy=load_policy(checkpoint),
        problems=problems,
        out=folder / "traces.parquet",
    )
    verify(VerifyConfig(), traces=folder / "traces.parquet", problems=problems, out=folder / "rewards.parquet")


def take_gradient(
    model: object,
    reference: object,
    traces: Sequence[Trace],
    rewards: torch.Tensor,
    config: Stage1Config | Stage2Config,
    **given: Any,
) -> tuple[TrainBatch, StepStats]:
    """Leave the gradient of a batch in the model's `.grad`, by the two verbs that a trainer goes through."""
    batch = prepare(model, reference, traces, rewards, config, **given)  # type: ignore[arg-type]
    return batch, forward_backward(model, reference, batch, config)  # type: ignore[arg-type]


def sampler_of(engine: Engine, policy: Policy) -> Sampler:
    """A sampler around an engine that is there."""
    sampler = Sampler(SampleConfig(threads=1), policy)
    sampler._engine = engine
    return sampler


def rewrite(path: Path, change: Callable[[dict[str, object]], object], *, keep_footer: bool = True) -> None:
    """Rewrite a table row by row, as another tool might."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    schema = table.schema if keep_footer else table.schema.remove_metadata()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def as_row(record: object) -> dict[str, object]:
    return asdict(record)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path, problems: Path, monkeypatch: pytest.MonkeyPatch) -> "RunInputs":
    """What a small run starts from, with invented verdicts."""
    from score_cli.run import RunInputs
    from tests.runs import invent

    monkeypatch.setattr(Grader, "grade", invent)
    return RunInputs(model=checkpoint, problems=problems, eval_problems=problems)
