"""The trainer scores the tokens that were sampled, where they were sampled."""

import numpy as np
import pytest
import torch

from score_cli.sampling.engine import Decoding
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.tables.checkpoints import Policy
from score_cli.tables.traces import Trace
from score_cli.training.batching import micro_batches
from score_cli.training.scoring import sampled_columns, score_batch
from tests.test_sampling import rollouts


def traces_of(policy: Policy) -> list[Trace]:
    grown = rollouts(policy)
    TransformersEngine(policy.model, batch_size=64).generate(grown, Decoding())
    return [
        Trace(
            r.problem_id,
            r.sample_index,
            ["", ""],
            r.finish_reasons,
            np.array(r.token_ids, dtype=np.int32),
            np.array(r.attempt_ids, dtype=np.int8),
            np.array(r.logprobs, dtype=np.float32),
            0,
        )
        for r in grown
    ]


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_padding_and_batching_do_not_change_logprobs(policy: Policy, budget: int) -> None:
    """Every sampled token of every trace against a pass over that trace alone, shifted by hand."""
    traces = traces_of(policy)
    seen = 0
    for batch in micro_batches(traces, budget):
        columns = sampled_columns(batch)
        with torch.no_grad():
            scores = score_batch(policy.model, batch, columns, 1.0)
        for index, row in enumerate(batch.rows):
            tokens = torch.tensor(traces[row].token_ids.tolist())
            with torch.no_grad():
                alone = policy.model(input_ids=tokens[None]).logits[0].log_softmax(-1)
            for place, column in enumerate(columns.tolist()):
                if column < len(tokens) and traces[row].attempt_ids[column] > 0:
                    expected = alone[column - 1, tokens[column]].item()
                    assert scores.logprobs[index, place].item() == pytest.approx(expected, abs=1e-5)
                    seen += 1
    assert seen == sum((trace.attempt_ids > 0).sum() for trace in traces)


def test_the_trainer_gives_the_logprobs_that_the_sampler_wrote(policy: Policy) -> None:
    traces = traces_of(policy)
    for batch in micro_batches(traces, 200):
        columns = sampled_columns(batch)
        with torch.no_grad():
            scores = score_batch(policy.model, batch, columns, 1.0)
        taken = batch.attempt_ids[:, columns] > 0
        gap = (scores.logprobs - batch.sampler_logprobs[:, columns]).abs()[taken]
        assert gap.max() < 1e-5


def test_micro_batches_hold_every_trace_once_and_keep_to_their_budget(policy: Policy) -> None:
    traces = traces_of(policy)
    batches = list(micro_batches(traces, 100))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(traces)))
    assert all(batch.token_ids.numel() <= 100 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) > 1


def test_logits_are_computed_at_sampled_positions_alone(policy: Policy) -> None:
    batch = next(micro_batches(traces_of(policy), 10_000))
    columns = sampled_columns(batch)
    assert columns.tolist() == [t for t in range(batch.token_ids.shape[1]) if (batch.attempt_ids[:, t] > 0).any()]
    scores = score_batch(policy.model, batch, columns, 1.0)
    assert scores.distribution.shape[1] == len(columns) < batch.token_ids.shape[1]
