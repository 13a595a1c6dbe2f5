"""The trainer scores the tokens that were sampled, where they were sampled."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from score_cli.sampling.engine import Decoding
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Trace
from score_cli.training import logprobs as logprobs_module
from score_cli.training.batching import MicroBatch, micro_batches
from score_cli.training.logprobs import batch_logprobs
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
        with torch.no_grad():
            scores = batch_logprobs(policy.model, batch, 1.0)
        for index, row in enumerate(batch.rows):
            tokens = torch.tensor(traces[row].token_ids.tolist())
            with torch.no_grad():
                alone = policy.model(input_ids=tokens[None]).logits[0].log_softmax(-1)
            for place, column in enumerate(batch.positions.tolist()):
                if column < len(tokens) and traces[row].attempt_ids[column] > 0:
                    expected = alone[column - 1, tokens[column]].item()
                    assert scores.logprobs[index, place].item() == pytest.approx(expected, abs=1e-5)
                    seen += 1
    assert seen == sum((trace.attempt_ids > 0).sum() for trace in traces)


def test_the_trainer_gives_the_logprobs_that_the_sampler_wrote(policy: Policy) -> None:
    traces = traces_of(policy)
    for batch in micro_batches(traces, 200):
        with torch.no_grad():
            scores = batch_logprobs(policy.model, batch, 1.0)
        taken = batch.sampled_attempt_ids > 0
        gap = (scores.logprobs - batch.sampler_logprobs[:, batch.positions]).abs()[taken]
        assert gap.max() < 1e-5


def test_micro_batches_hold_every_trace_once_and_keep_to_their_budget(policy: Policy) -> None:
    traces = traces_of(policy)
    batches = list(micro_batches(traces, 100))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(traces)))
    assert all(batch.token_ids.numel() <= 100 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) > 1


def test_logits_are_computed_at_sampled_positions_alone(policy: Policy) -> None:
    batch = next(micro_batches(traces_of(policy), 10_000))
    columns = batch.positions
    assert columns.tolist() == [t for t in range(batch.token_ids.shape[1]) if (batch.attempt_ids[:, t] > 0).any()]
    scores = batch_logprobs(policy.model, batch, 1.0, whole=True)
    assert scores.distribution is not None
    assert scores.distribution.shape[1] == len(columns) < batch.token_ids.shape[1]


@pytest.mark.parametrize("chunk", [1, 23 * 7, 2**26])
def test_scores_in_pieces_are_those_of_the_whole_distribution(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Logprobs, entropies and gradients against torch's own categorical distribution, at a temperature."""
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", chunk)
    model = policy.model.double()
    batch = next(micro_batches(traces_of(small_policy()), 10_000))
    columns = batch.positions
    pulls = torch.linspace(-1, 1, batch.token_ids[:, columns].numel(), dtype=torch.float64).view(-1, len(columns))

    found = batch_logprobs(model, batch, 0.7, entropy=True)
    (found.logprobs * pulls).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    logits = model(input_ids=batch.token_ids, attention_mask=batch.attention).logits[:, columns - 1]
    whole = torch.distributions.Categorical(logits=logits / 0.7)
    expected = whole.log_prob(batch.token_ids[:, columns])
    (expected * pulls).sum().backward()

    assert (found.logprobs - expected).abs().max() < 1e-12
    assert found.entropy is not None and (found.entropy - whole.entropy()).abs().max() < 1e-12
    exact = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert max(gradient.abs().max() for gradient in exact) > 1e-2
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(gradients, exact, strict=True))


@pytest.mark.parametrize(("whole", "bytes_a_logit"), [(False, 2), (True, 4)])
def test_without_the_distribution_only_the_model_s_own_bfloat16_logits_are_held(
    monkeypatch: pytest.MonkeyPatch, whole: bool, bytes_a_logit: int
) -> None:
    """What autograd saves between the passes, over 60 rows of 20,000 logits in pieces of 4 rows."""
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", 4 * 20_000)
    weights = torch.randn(1, 60, 20_000, requires_grad=True)

    class Model:
        device = torch.device("cpu")

        def __call__(self, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=weights.bfloat16())

    tokens = torch.arange(61)[None]
    batch = MicroBatch(
        [0], tokens, (tokens > 0).long(), torch.ones_like(tokens), torch.zeros(1, 61), torch.arange(1, 61)
    )
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = batch_logprobs(Model(), batch, 1.0, whole=whole)  # type: ignore[arg-type]
    assert sum(saved.values()) // (60 * 20_000) == bytes_a_logit
    found.logprobs.sum().backward()
    # The gradient of a log-softmax sums to zero over the vocabulary.
    assert weights.grad is not None and weights.grad.abs().max() > 0.5
    assert weights.grad.sum(-1).abs().max() < 1e-2
