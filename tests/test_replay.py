"""An update taken again from a run's files: the same policy, and a gradient that is the sum of what is shown."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from score_cli.config import SampleConfig, Stage2Config
from score_cli.errors import JobError, UserError
from score_cli.replay import TraceName, replay
from score_cli.run import Run, RunInputs
from score_cli.run_config import RunConfig
from score_cli.sampling.sampler import Sampler
from score_cli.settings import config_of
from score_cli.tables.checkpoints import stored_state
from score_cli.tables.records import Verdict
from score_cli.tables.updates import Updates
from score_cli.tasks import division
from score_cli.training.token_credit import token_credit
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader
from tests.conftest import rewrite, small_policy
from tests.runs import invent, recipe

CONFIG = Stage2Config(learning_rate=1e-3, threads=1, beta1=0.3, micro_batch_tokens=200)


@pytest.mark.parametrize("other_engine", [False, True])
def test_the_gradient_is_the_sum_of_what_tokens_are_credited_with(other_engine: bool) -> None:
    """Minus weight x advantage x the gradient of the logprob, over the traces: by a plain pass for each trace."""
    policy, reference = small_policy(seed=1), small_policy(seed=2)
    policy = replace(policy, state=replace(policy.state, reference=reference.state.fingerprint))
    sampling = SampleConfig(samples=3, max_tokens=5, threads=1)
    traces = Sampler(sampling, policy).sample(division.split_problems("train")[:2])
    if other_engine:  # its logprobs differ, by more than 2 in ratio for some tokens
        shifts = torch.linspace(-1.5, 1.5, len(traces)).tolist()
        traces = [
            replace(t, logprobs=t.logprobs - (t.attempt_ids > 0) * s) for t, s in zip(traces, shifts, strict=True)
        ]
    rewards = [[0.0, 1.0], [1.0, 1.0], [None, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    names = {None: "unscored", 0.0: "incorrect", 1.0: "correct"}
    verdicts = [
        Verdict(t.problem_id, t.sample_index, [None] * 2, [names[value] for value in row], list(row))
        for t, row in zip(traces, rewards, strict=True)
    ]
    trainer = Trainer(CONFIG, policy, reference)
    batch = trainer.prepare(traces, verdicts, other_engine=other_engine)
    trainer.forward_backward(batch)
    found = [parameter.grad.clone() for parameter in policy.model.parameters()]

    loss = torch.zeros(())
    for row, trace in enumerate(traces):
        tokens = torch.tensor(trace.token_ids, dtype=torch.long)
        logprobs = policy.model(tokens[None]).logits[0].log_softmax(-1)
        known = reference.model(tokens[None]).logits[0].log_softmax(-1)
        credits = token_credit(trainer, batch, row)
        assert [each.position for each in credits] == (trace.attempt_ids > 0).nonzero()[0].tolist()
        for each in credits:
            own = logprobs[each.position - 1, each.token]
            assert each.trainer == pytest.approx(own.item(), abs=1e-5)
            assert each.reference == pytest.approx(known[each.position - 1, each.token].item(), abs=1e-5)
            assert each.weight == pytest.approx(
                min(2.0, own.exp().item() / 2.718281828**each.sampler) if other_engine else 1, rel=1e-4
            )
            loss = loss - each.weight * each.advantage * own / len(traces)
    policy.model.zero_grad()
    loss.backward()
    scale = max(gradient.abs().max().item() for gradient in found)
    for gradient, parameter in zip(found, policy.model.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max().item() < 1e-5 * scale
    # The first attempt of the third trace was not scored: nothing is learned from it.
    assert {each.advantage for each in token_credit(trainer, batch, 2) if each.attempt == 1} == {0.0}


def test_a_config_comes_back_from_its_json() -> None:
    config = RunConfig(stage1_iterations=7, offline_first_attempts=0.5)
    assert config_of(RunConfig, {"stage1_iterations": 7, "offline_first_attempts": 0.5}) == config


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path, problems: Path, monkeypatch: pytest.MonkeyPatch) -> RunInputs:
    monkeypatch.setattr(Grader, "grade", invent)
    return RunInputs(model=checkpoint, problems=problems, eval_problems=problems)


@pytest.mark.pipeline
@pytest.mark.parametrize(("compact_every", "places"), [(100, ["0001", "0003"]), (1, ["0001-0001", "0003"])])
def test_every_update_of_a_run_gives_its_policy_again(
    start: RunInputs, tmp_path: Path, compact_every: int, places: list[str]
) -> None:
    folder, model = tmp_path / "run", tmp_path / "ckpt"
    Run(recipe(stage1_iterations=2, stage2_iterations=2, compact_every=compact_every), folder, start).execute()
    for iteration, proof in enumerate(
        [f"iterations/{places[0]}/traces.parquet", "stage1", f"iterations/{places[1]}/traces.parquet", "stage2"]
    ):
        found = replay(folder, iteration, model=model)
        assert found.proved_by == folder / proof
        if iteration % 2:
            assert found.policy == stored_state(folder / proof).fingerprint
        else:
            footer = Updates(folder / "iterations").traces_footer(iteration + 1)
            assert footer is not None and footer.policy == found.policy
    row = pl.read_parquet(folder / "iterations" / places[0] / "traces.parquet").row(5, named=True)
    again = replay(folder, 1, model=model, trace=TraceName(row["problem_id"], row["sample_index"]))
    columns = zip(row["token_ids"], row["attempt_ids"], row["logprobs"], strict=True)
    assert [(c.token, c.attempt, c.sampler) for c in again.credits] == [each for each in columns if each[1] > 0]


@pytest.mark.pipeline
def test_changed_files_and_what_is_not_there_are_said(start: RunInputs, tmp_path: Path) -> None:
    folder, model = tmp_path / "run", tmp_path / "ckpt"
    Run(recipe(stage1_iterations=2, sft_rounds=1), folder, start).execute()
    with pytest.raises(UserError, match="update 0 is a supervised round: `score train-sft`"):
        replay(folder, 0, model=model)
    with pytest.raises(UserError, match=r"plans no update 3, expected one from 0 to 2"):
        replay(folder, 3, model=model)
    with pytest.raises(UserError, match=r"has no trace nobody 0, expected a problem such as"):
        replay(folder, 2, model=model, trace=TraceName("nobody", 0))
    with pytest.raises(UserError, match=r"base is not there, and the update started from it: name the policy"):
        replay(folder, 1)
    with pytest.raises(UserError, match="holds no run"):
        replay(tmp_path, 0)
    rewards = folder / "iterations" / "0002" / "rewards.parquet"
    rewrite(rewards, lambda row: row.update(rewards=[1 - value for value in row["rewards"]]))
    with pytest.raises(JobError, match="update 2 taken again gives policy .*: the files were changed, or this machine"):
        replay(folder, 2, model=model)


def test_a_runs_folder_without_settings_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(3))
    with pytest.raises(UserError, match="holds no run"):
        replay(tmp_path, 0)
