"""Log-probabilities of the sampled tokens of a batch, computed where they were sampled and nowhere else."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.tables.machine import compute_precision
from score_cli.training.batching import Batch


class Scores(NamedTuple):
    """Next-token log-probabilities at the columns where some trace of the batch has a sampled token.

    Shapes: B traces, C such columns, V vocabulary.
    """

    columns: Tensor  # [C] token positions
    distribution: Tensor  # [B, C, V] log-probabilities of the token at each column
    logprobs: Tensor  # [B, C] of the tokens that stand there


def sampled_columns(batch: Batch) -> Tensor:
    """[C] positions at which any trace of the batch has a sampled token."""
    return (batch.attempt_ids > 0).any(0).nonzero()[:, 0]


def score_batch(model: PreTrainedModel, batch: Batch, columns: Tensor, temperature: float) -> Scores:
    """Score the tokens of a batch with one forward pass over the whole conversations.

    Logits exist for `columns` alone: the output at position t - 1 predicts the token at t.

    Args:
        temperature: divides the logits, as it did when the tokens were sampled.
    """
    with compute_precision(model):
        output = model(
            input_ids=batch.token_ids,
            attention_mask=batch.attention,
            use_cache=False,
            logits_to_keep=columns - 1,
        )
    # At least float32: a log-softmax of bfloat16 logits would lose the logprobs' third digit.
    logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
    distribution = (logits / temperature).log_softmax(-1)
    tokens = batch.token_ids[:, columns]
    return Scores(columns, distribution, distribution.gather(-1, tokens[..., None])[..., 0])
