"""The trainer scores the tokens that were sampled, where they were sampled."""

import numpy as np
import pytest
import torch

from score_cli.sampling.engine import Decoding
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Trace
from score_cli.training import logprobs as logprobs_module
from score_cli.training.batching import micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import TokenLoss, add_gradient, batch_logprobs, trace_logprobs
from tests.conftest import small_policy
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
        scores = batch_logprobs(Head(policy.model), batch, 1.0)
        for index, row in enumerate(batch.rows):
            tokens = torch.tensor(traces[row].token_ids.tolist())
            with torch.no_grad():
                alone = policy.model(input_ids=tokens[None]).logits[0].log_softmax(-1)
            for place, column in enumerate(batch.positions.tolist()):
                if column < len(tokens) and traces[row].attempt_ids[column] > 0:
                    expected = alone[column - 1, tokens[column]].item()
                    assert scores[index, place].item() == pytest.approx(expected, abs=1e-5)
                    seen += 1
    assert seen == sum((trace.attempt_ids > 0).sum() for trace in traces)


def test_the_trainer_gives_the_logprobs_that_the_sampler_wrote(policy: Policy) -> None:
    traces = traces_of(policy)
    for batch in micro_batches(traces, 200):
        scores = batch_logprobs(Head(policy.model), batch, 1.0)
        taken = batch.sampled_attempt_ids > 0
        gap = (scores - batch.sampler_logprobs[:, batch.positions]).abs()[taken]
        assert gap.max() < 1e-5


def test_micro_batches_hold_every_trace_once_and_keep_to_their_budget(policy: Policy) -> None:
    traces = traces_of(policy)
    batches = list(micro_batches(traces, 100))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(traces)))
    assert all(batch.token_ids.numel() <= 100 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) > 1


def test_states_are_kept_at_sampled_positions_and_logits_made_of_sampled_tokens_alone(policy: Policy) -> None:
    batch = next(micro_batches(traces_of(policy), 10_000))
    columns = [t for t in range(batch.token_ids.shape[1]) if (batch.attempt_ids[:, t] > 0).any()]
    assert batch.positions.tolist() == columns
    assert len(Head(policy.model).states(batch)) == len(batch.places)
    owners = [int(batch.attempt_ids[row, t]) for row in range(len(batch.rows)) for t in columns]
    by_attempt = [[place for place, owner in enumerate(owners) if owner == attempt] for attempt in (1, 2)]
    assert batch.places.tolist() == by_attempt[0] + by_attempt[1]
    assert batch.attempt_sizes == [len(places) for places in by_attempt]
    assert 0 < len(batch.places) < len(owners) < batch.token_ids.numel()
    scores = batch_logprobs(Head(policy.model), batch, 1.0)
    assert (scores.flatten() == 0).nonzero()[:, 0].tolist() == [p for p, owner in enumerate(owners) if owner == 0]


@pytest.mark.parametrize("chunk", [1, 23 * 7, 2**26])
def test_scores_and_gradients_in_chunks_are_those_of_the_whole_distribution(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Logprobs, entropies and gradients against torch's own categorical distribution, at a temperature."""
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", {"cpu": chunk})
    monkeypatch.setattr(logprobs_module, "BLOCK_ELEMENTS", {"cpu": 23 * 2})
    model = policy.model.double()
    batch = next(micro_batches(traces_of(small_policy()), 10_000))
    taken = batch.sampled_attempt_ids > 0
    pulls = torch.linspace(-1, 1, taken.numel(), dtype=torch.float64).view(taken.shape)

    def loss_of(tokens: TokenLoss) -> torch.Tensor:
        return (tokens.logprobs * pulls.flatten()[tokens.places]).sum(0, keepdim=True)

    found = add_gradient(Head(model), batch, 0.7, loss_of, Gradients(model))
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    logits = model(input_ids=batch.token_ids).logits[:, batch.positions - 1]
    whole = torch.distributions.Categorical(logits=logits / 0.7)
    expected = whole.log_prob(batch.token_ids[:, batch.positions])
    (expected * pulls)[taken].sum().backward()

    assert (found.logprobs - expected)[taken].abs().max() < 1e-12
    assert (found.entropy - whole.entropy())[taken].abs().max() < 1e-12
    assert (batch_logprobs(Head(model), batch, 0.7) - found.logprobs).abs().max() < 1e-12
    exact = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert max(gradient.abs().max() for gradient in exact) > 1e-2
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(gradients, exact, strict=True))


@pytest.mark.parametrize("budget", [1, 100])
def test_logprobs_of_traces_stand_at_their_tokens_whatever_is_scored_together(policy: Policy, budget: int) -> None:
    """Against a pass over each trace alone; 0 on context and past the end."""
    traces = traces_of(policy)
    found = trace_logprobs(policy.model, traces, 0.7, budget)
    assert found.shape == (len(traces), max(len(trace.token_ids) for trace in traces))
    for trace, row in zip(traces, found, strict=True):
        tokens = torch.tensor(trace.token_ids.tolist())
        with torch.no_grad():
            alone = (policy.model(input_ids=tokens[None]).logits[0] / 0.7).log_softmax(-1)
        expected = torch.zeros(found.shape[1])
        for place in np.flatnonzero(trace.attempt_ids > 0).tolist():
            expected[place] = alone[place - 1, tokens[place]]
        assert (row - expected).abs().max() < 1e-5
