"""A round of supervised training: examples on disk, cross-entropy on the second attempt, a checkpoint of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from score_cli.cli import run_command
from score_cli.config import SftConfig, Stage2Config
from score_cli.errors import JobError, UserError
from score_cli.stages.train import train
from score_cli.stages.train_sft import train_sft
from score_cli.tables.checkpoints import load_optimizer, load_policy
from score_cli.tables.parquet import EXAMPLES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.training.sft import fine_tune, learned_trace, sft_forward_backward
from score_cli.training.sft_examples import Example
from tests.conftest import make_batch, rewrite, small_model, write_checkpoint
from tests.test_train import reward_some

CONFIG = SftConfig(learning_rate=1e-3, batch_size=8, threads=1)


@pytest.fixture
def rewarded(batch: Path) -> Path:
    reward_some(batch)
    # An untrained policy never ends an attempt; what was cut off would not be learned.
    rewrite(batch / "traces.parquet", lambda row: row.update(finish_reasons=["stop", "stop"]))
    rewrite(batch / "rewards.parquet", lambda row: None, keep_footer=False)
    return batch


def round_of(folder: Path, out: str, config: SftConfig = CONFIG, **other: object) -> Path:
    arguments: dict[str, object] = {
        "model": folder / "ckpt",
        "traces": folder / "traces.parquet",
        "rewards": folder / "rewards.parquet",
        "learned": folder / f"{out}.parquet",
        "allow_foreign": True,
    }
    train_sft(config, out=folder / out, **(arguments | other))  # type: ignore[arg-type]
    return folder / out


def example(tokens: list[int], owners: list[int]) -> Example:
    return Example(
        problem_id="p",
        method="star",
        sample_index=0,
        target_sample_index=0,
        target_attempt=2,
        attempts=["", ""],
        verdicts=["incorrect", "correct"],
        token_ids=np.array(tokens, dtype=np.int32),
        attempt_ids=np.array(owners, dtype=np.int8),
    )


EXAMPLES_BY_HAND = [
    example([3, 4, 5, 6, 7, 8, 9], [0, 0, 1, 1, 0, 2, 2]),
    example([3, 4, 10, 7, 2], [0, 0, 1, 0, 2]),
    example([4, 5, 11, 12, 7, 1, 2, 3, 4], [0, 0, 1, 1, 0, 2, 2, 2, 2]),
]


def loss_by_torch(model: PreTrainedModel, examples: list[Example], owners: set[int]) -> torch.Tensor:
    """torch's own cross-entropy over labels, one unpadded example at a time, divided by the tokens of all."""
    total, count = torch.zeros(()), 0
    for one in examples:
        tokens = torch.from_numpy(one.token_ids).long()
        labels = torch.where(torch.tensor([int(o) in owners for o in one.attempt_ids]), tokens, -100)
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        total = total + cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize(("loss_on", "owners", "count"), [("second", {2}, 7), ("both", {1, 2}, 12)])
@pytest.mark.parametrize("budget", [1, 12, 4096])
def test_loss_and_gradient_are_torchs_cross_entropy(loss_on: str, owners: set[int], count: int, budget: int) -> None:
    """Padding and micro-batches included: a token counts the same wherever it stands."""
    config = replace(CONFIG, loss_on=loss_on, micro_batch_tokens=budget)  # type: ignore[arg-type]
    ours, theirs = small_model(), small_model()
    rows = [learned_trace(one, config.loss_on) for one in EXAMPLES_BY_HAND]
    assert sum(int((row.attempt_ids > 0).sum()) for row in rows) == count
    loss = sft_forward_backward(ours, rows, config)
    expected = loss_by_torch(theirs, EXAMPLES_BY_HAND, owners)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if b.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-5)  # type: ignore[arg-type]
    assert max(p.grad.abs().max().item() for p in ours.parameters() if p.grad is not None) > 1e-2


def test_one_batch_and_one_epoch_is_one_adam_step_by_hand() -> None:
    """With fresh moments and no weight decay each weight moves by lr * g / (|g| + eps)."""
    config = replace(CONFIG, max_grad_norm=1e9)
    model, start = small_model(), small_model()
    loss_by_torch(start, EXAMPLES_BY_HAND, {2}).backward()  # type: ignore[no-untyped-call]
    measured = fine_tune(model, EXAMPLES_BY_HAND, config)
    assert measured["steps"] == 1 and measured["examples"] == 3
    assert measured["loss_before"] == pytest.approx(loss_by_torch(start, EXAMPLES_BY_HAND, {2}).item(), rel=1e-5)
    assert measured["loss_after"] == pytest.approx(loss_by_torch(model, EXAMPLES_BY_HAND, {2}).item(), rel=1e-5)
    for old, new in zip(start.parameters(), model.parameters(), strict=True):
        gradient = torch.zeros_like(old) if old.grad is None else old.grad
        # Where a gradient is mere rounding its sign is, too.
        sure = gradient.abs() > 1e-5
        assert torch.allclose(new[sure], (old - 1e-3 * gradient / (gradient.abs() + 1e-8))[sure], atol=2e-6)


def test_each_epoch_learns_every_example_once_in_another_order() -> None:
    from score_cli.training.sft import _batches

    rows = [replace(learned_trace(EXAMPLES_BY_HAND[0], "second"), sample_index=index) for index in range(20)]
    batches = list(_batches(rows, replace(CONFIG, epochs=2), 0))
    assert [len(batch) for batch in batches] == [8, 8, 4] * 2
    epochs = [[row.sample_index for batch in part for row in batch] for part in (batches[:3], batches[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1] != list(range(20)) != epochs[0]


def test_a_round_lowers_the_loss_of_its_examples_and_leaves_a_checkpoint_that_says_so(rewarded: Path) -> None:
    config = replace(CONFIG, method="pair-sft", epochs=5)
    done = round_of(rewarded, "next", config)
    before, after = load_policy(rewarded / "ckpt"), load_policy(done)
    assert after.state.stage == "sft" and after.state.iteration == 1
    assert after.state.parent == after.state.reference == before.state.fingerprint != after.state.fingerprint
    assert load_optimizer(done) is None
    curve = pl.read_parquet(done / "trainer" / "metrics.parquet")
    values = dict(curve.filter(pl.col("attempt").is_null()).select("name", "value").rows())
    table = pl.read_parquet(rewarded / "next.parquet")
    assert values["examples"] == len(table) and values["steps"] == 5 * -(-len(table) // 8)
    assert values["loss_after"] < values["loss_before"] - 0.5
    wrong_first = pl.read_parquet(rewarded / "rewards.parquet")["rewards"].list.first() == 0
    assert len(table) == wrong_first.sum()


def test_the_examples_say_where_they_came_from(rewarded: Path) -> None:
    round_of(rewarded, "next")
    footer = read_footer(rewarded / "next.parquet", EXAMPLES)
    assert footer is not None and footer.config == {"method": "star"}
    assert footer.inputs == {name: file_sha256(rewarded / f"{name}.parquet") for name in ("traces", "rewards")}


def test_the_same_inputs_give_the_same_bytes(rewarded: Path) -> None:
    first, second = round_of(rewarded, "first"), round_of(rewarded, "second")
    assert file_sha256(first / "model.safetensors") == file_sha256(second / "model.safetensors")
    assert file_sha256(rewarded / "first.parquet") == file_sha256(rewarded / "second.parquet")
    other = round_of(rewarded, "third", replace(CONFIG, seed=1))
    assert file_sha256(first / "model.safetensors") != file_sha256(other / "model.safetensors")


def test_reinforcement_learning_goes_on_from_a_round_against_the_same_reference(rewarded: Path) -> None:
    done = round_of(rewarded, "next")
    folder = rewarded / "b"
    folder.mkdir()
    make_batch(folder, done, rewarded / "problems.parquet")
    reward_some(folder)
    traces, rewards = folder / "traces.parquet", folder / "rewards.parquet"
    config = Stage2Config(threads=1, learning_rate=1e-3)
    train(config, model=done, reference=rewarded / "ckpt", traces=traces, rewards=rewards, out=folder / "after")
    state = load_policy(folder / "after").state
    assert state.iteration == 2 and state.reference == load_policy(rewarded / "ckpt").state.fingerprint


@pytest.fixture
def proved(batch: Path) -> Path:
    """Traces and rewards with their footers; some examples are there for pair-sft."""
    reward_some(batch)
    return batch


def test_traces_of_a_policy_that_this_one_was_not_made_from_need_leave(proved: Path) -> None:
    other = write_checkpoint(proved / "other", seed=1)
    with pytest.raises(UserError, match="which was not made from it: resample, or pass --allow-foreign"):
        round_of(proved, "next", model=other, allow_foreign=False)
    assert not (proved / "next").exists() and not (proved / "next.parquet").exists()
    with pytest.raises(UserError, match="was not made by score.*--allow-foreign"):
        rewrite(proved / "rewards.parquet", lambda row: None, keep_footer=False)
        round_of(proved, "next", allow_foreign=False)


def test_traces_of_the_parent_are_taken(proved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STaR may learn what its own start has sampled, without leave."""
    monkeypatch.setattr("score_cli.training.sft_examples.STOP", "length")  # an untrained policy never stops
    first = round_of(proved, "first", allow_foreign=False)
    assert load_policy(round_of(proved, "second", model=first, allow_foreign=False)).state.iteration == 2


def test_no_example_is_a_failed_job_that_leaves_nothing(batch: Path) -> None:
    rewrite(batch / "rewards.parquet", lambda row: row.update(rewards=[0.0, 0.0], verdicts=["incorrect"] * 2))
    with pytest.raises(JobError, match="give no example of method star"):
        round_of(batch, "next")
    assert not (batch / "next").exists() and not (batch / "next.parquet").exists()


def test_another_number_of_attempts_is_refused(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    make_batch(tmp_path, checkpoint, problems, attempts=3)
    with pytest.raises(UserError, match="has 3 attempts, expected 2: sample with --attempts 2"):
        round_of(tmp_path, "next")


def test_the_command_writes_examples_and_checkpoint_and_keeps_what_exists(
    rewarded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--{name}={rewarded / name}.parquet" for name in ("traces", "rewards")]
    command = ["train-sft", "--method", "pair-sft-plus", "--allow-foreign", f"--model={rewarded / 'ckpt'}", *files]
    command += [f"--out={rewarded / 'next'}", f"--learned={rewarded / 'sft.parquet'}", "--threads", "1"]
    assert run_command(command) == 0
    assert "(pair-sft-plus); 48 examples of 48 traces, 1 steps" in capsys.readouterr().err
    assert set(pl.read_parquet(rewarded / "sft.parquet")["method"]) == {"pair-sft-plus"}
    assert run_command(command) == 2
    assert "sft.parquet exists: pass --overwrite" in capsys.readouterr().err
    assert run_command([*command, "--overwrite"]) == 0
