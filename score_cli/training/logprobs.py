"""Log-probabilities of the sampled tokens of a batch, computed where they were sampled and nowhere else."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from score_cli.tables.device import compute_precision
from score_cli.training.batching import MicroBatch

# Logits whose log-softmax is held at a time: 256 MiB in float32.
CHUNK_ELEMENTS = 2**26


class Logprobs(NamedTuple):
    """What a policy gives the tokens at the positions where some trace of the batch has a sampled one.

    Shapes: B traces, P such positions, V vocabulary.
    """

    logprobs: Tensor  # [B, P] of the tokens that stand there
    distribution: Tensor | None  # [B, P, V] log-probabilities of every token, where asked for
    entropy: Tensor | None  # [B, P] of the distribution, nats, without gradient, where asked for


def batch_logprobs(
    model: PreTrainedModel,
    batch: MicroBatch,
    temperature: float,
    *,
    whole: bool = False,
    entropy: bool = False,
) -> Logprobs:
    """Score the tokens of a batch with one forward pass over the whole conversations.

    Logits exist for `batch.positions` alone: the output at position t - 1 predicts the token at t.

    Args:
        temperature: divides the logits, as it did when the tokens were sampled.
        whole: keep the whole distribution, with gradient. Without it, a log-softmax over a large vocabulary is done
            piece by piece, and again in the backward pass, so that no float32 copy of the logits is ever held.
        entropy: measure the distribution's entropy too.
    """
    with compute_precision(model):
        output = model(
            input_ids=batch.token_ids,
            attention_mask=batch.attention,
            use_cache=False,
            logits_to_keep=batch.positions - 1,
        )
    tokens = batch.token_ids[:, batch.positions]
    if whole:
        distribution = _log_softmax(output.logits, temperature)
        logprobs = _of_tokens(distribution, tokens)
        return Logprobs(logprobs, distribution, _entropy(distribution) if entropy else None)
    logits = output.logits.flatten(0, 1)
    pieces = logits.split(max(1, CHUNK_ELEMENTS // logits.shape[1]))
    owns = tokens.flatten().split(len(pieces[0]))
    found = [
        checkpoint(_score_rows, piece, own, temperature, use_reentrant=False, preserve_rng_state=False)
        for piece, own in zip(pieces, owns, strict=True)
    ]
    logprobs = torch.cat(found).view(tokens.shape)
    if not entropy:
        return Logprobs(logprobs, None, None)
    entropies = [_entropy(_log_softmax(piece.detach(), temperature)) for piece in pieces]
    return Logprobs(logprobs, None, torch.cat(entropies).view(tokens.shape))


def _score_rows(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """[n] logprob of each row's token, from [n, V] logits."""
    return _of_tokens(_log_softmax(logits, temperature), tokens)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # At least float32: a log-softmax of bfloat16 logits would lose the logprobs' third digit.
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def _of_tokens(distribution: Tensor, tokens: Tensor) -> Tensor:
    return distribution.gather(-1, tokens[..., None])[..., 0]


def _entropy(distribution: Tensor) -> Tensor:
    with torch.no_grad():
        return -(distribution.exp() * distribution).sum(-1)
