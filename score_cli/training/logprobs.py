"""What a policy gives the sampled tokens of a batch, and the gradient of a loss made of it.

No tensor of tokens times vocabulary is ever held. A loss is a sum over tokens, so its derivative by a token's logprob
is known as soon as that logprob is: the gradient of the logits of a chunk of tokens is made right after the logits.

Shapes: B traces, P positions with a sampled token, n sampled tokens, m of a chunk, V vocabulary, A parts of the loss.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.tables.device import compute_precision
from score_cli.tables.processes import ALONE, Share
from score_cli.tables.records import Trace
from score_cli.training.batching import MicroBatch, empty_batch, micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head, Logits

# Logits held at a time: 64 MiB in float32 on the CPU, 256 MiB on a GPU, which needs more rows to be busy.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
# Logits gone through at a time: what a CPU's cache holds twice.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}


class Scores(NamedTuple):
    """What a policy gives the tokens of a batch, nats: [B, P], 0 where none was sampled; [m] of a chunk."""

    logprobs: Tensor
    entropy: Tensor  # of the distribution that the token was drawn from
    divergence: Tensor | None = None  # exact KL of that distribution from the reference's, where there is one
    reference_logprobs: Tensor | None = None


class TokenLoss(NamedTuple):
    """One chunk's tokens as a loss sees them: their places among [B * P], logprobs and divergences, [m]."""

    places: Tensor
    logprobs: Tensor
    divergence: Tensor | None


# The summed loss of a chunk's tokens, one entry a part: [A]. Of two parts each token belongs to one.
LossOf = Callable[[TokenLoss], Tensor]


@torch.no_grad()
def batch_logprobs(head: Head, batch: MicroBatch, temperature: float) -> Tensor:
    """[B, P] logprobs of the sampled tokens, without gradient; 0 where none was sampled.

    Args:
        temperature: divides the logits, as it did when the tokens were sampled.
    """
    states, tokens = _States(head, head.states(batch), temperature), batch.sampled_tokens
    found = []
    for rows in states.chunks(0, len(tokens)):
        logits = states.logits(states.operand(rows)).values
        found += [_of_tokens(logits[block].log_softmax(-1), tokens[rows][block]) for block in _blocks(logits)]
    head.release()
    return _spread(torch.cat(found), batch)


@torch.no_grad()
def trace_logprobs(
    model: PreTrainedModel, traces: Sequence[Trace], temperature: float, token_budget: int, share: Share = ALONE
) -> Tensor:
    """[M, T] logprobs of the sampled tokens of M traces, at their places in them, without gradient; 0 elsewhere.

    Args:
        token_budget: padded tokens a pass, which changes the last bits at most.
        share: of the passes, where other processes make the rest over parts of the same model.
    """
    head = Head(model)
    found = None
    # Held around all passes, so that a GPU casts the weights once.
    with compute_precision(model):
        for batch in share.own(micro_batches(traces, token_budget, model.device)):
            own = batch_logprobs(head, batch or empty_batch(1, model.device), temperature)
            if found is None:
                found = own.new_zeros(len(traces), max(len(trace.token_ids) for trace in traces))
            if batch is not None:
                found[torch.tensor(batch.rows)[:, None].to(own.device), batch.positions] = own
    assert found is not None, "there are no traces"
    return share.add_up(found)


def add_gradient(
    head: Head,
    batch: MicroBatch,
    temperature: float,
    loss_of: LossOf,
    gradients: Gradients,
    *,
    reference: Head | None = None,
) -> Scores:
    """Add the gradient of a loss over the batch's sampled tokens, with one pass forward and one back.

    Args:
        loss_of: is asked for the loss of each chunk of tokens, and differentiated by their logprobs and divergences.
        gradients: of several parts, where the loss of each attempt is a part.
        reference: what the divergence is measured from.
    """
    hidden, tokens = head.states(batch), batch.sampled_tokens
    states = _States(head, hidden.detach(), temperature)
    known = None
    if reference is not None:
        with torch.no_grad():
            known = _States(reference, reference.states(batch), temperature)
    pulled = [torch.zeros_like(states.values) for _ in range(gradients.parts)]
    measured = []
    first, sizes = 0, batch.attempt_sizes if gradients.parts > 1 else [len(tokens)]
    for part, size in enumerate(sizes):
        for rows in states.chunks(first, first + size):
            operand = states.operand(rows)
            logits, slope = states.logits(operand, slope=True)
            other = None if known is None else known.logits(known.operand(rows)).values
            measured.append(found := _measure(logits, tokens[rows], other))
            _to_gradient(logits, tokens[rows], other, found, _pulls(loss_of, batch.places[rows], found))
            pulled[part][rows] = head.pull_back(operand, states.before_scaling(logits, slope), gradients, part)
        first += size
    gradients.add(hidden, pulled)
    for each in (head, reference):
        if each is not None:
            each.release()
    found = _joined(measured)
    return Scores(*(None if values is None else _spread(values, batch) for values in found))  # type: ignore[arg-type]


class _States(NamedTuple):
    """What a pass gives the head, [n, d], and the temperature that its logits are divided by."""

    head: Head
    values: Tensor
    temperature: float

    def chunks(self, first: int, last: int) -> Iterator[slice]:
        """Rows from first to last in about equal pieces, the largest first, one at least, of at most so many logits."""
        limit = max(1, CHUNK_ELEMENTS[self.values.device.type] // self.head.vocabulary(self.values))
        count = max(1, math.ceil((last - first) / limit))
        ends = [last - (last - first) * (count - number) // count for number in range(count + 1)]
        return itertools.starmap(slice, itertools.pairwise(ends))

    def operand(self, rows: slice) -> Tensor:
        """[m, d] some states as the head multiplies them."""
        return self.head.operand(self.values[rows])

    def logits(self, operand: Tensor, *, slope: bool = False) -> Logits:
        """[m, V] logits at the temperature."""
        found = self.head.logits(operand, slope=slope)
        if self.temperature != 1.0:
            found.values.div_(self.temperature)
        return found

    def before_scaling(self, gradient: Tensor, slope: Tensor | None) -> Tensor:
        """From the gradient of such logits that of what the head's layer gave, in place."""
        if slope is not None:
            gradient *= slope
        factor = self.head.scale / self.temperature
        return gradient if factor == 1.0 else gradient.mul_(factor)


@torch.no_grad()
def _measure(logits: Tensor, tokens: Tensor, other: Tensor | None) -> Scores:
    """[m] scores; turns [m, V] logits into probabilities in place, and the reference's into log-ratios to it."""
    found = []
    for block in _blocks(logits):
        values, own, divergence, known = logits[block], tokens[block], None, None
        scores = values.log_softmax(-1)
        logprobs = _of_tokens(scores, own)
        torch.exp(scores, out=values)
        if other is not None:
            theirs = other[block].log_softmax(-1)
            known = _of_tokens(theirs, own)
            torch.sub(scores, theirs, out=other[block])
            divergence = torch.mul(values, other[block], out=theirs).sum(-1)
        found.append(Scores(logprobs, -scores.mul_(values).sum(-1), divergence, known))
    return _joined(found)


def _joined(parts: Sequence[Scores]) -> Scores:
    """The scores of one after another."""
    logprobs, entropies, divergences, known = zip(*parts, strict=True)
    optional = (None if values[0] is None else torch.cat(values) for values in (divergences, known))
    return Scores(torch.cat(logprobs), torch.cat(entropies), *optional)


def _pulls(loss_of: LossOf, places: Tensor, found: Scores) -> tuple[Tensor, ...]:
    """The derivatives of the loss by each token's logprob, and by its divergence if there is one: [m] each."""
    leaves = [values.detach().requires_grad_() for values in (found.logprobs, found.divergence) if values is not None]
    with torch.enable_grad():
        loss = loss_of(TokenLoss(places, leaves[0], leaves[1] if len(leaves) > 1 else None)).sum()
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


@torch.no_grad()
def _to_gradient(
    probabilities: Tensor, tokens: Tensor, ratios: Tensor | None, found: Scores, pulls: Sequence[Tensor]
) -> None:
    """Turn [m, V] probabilities into the gradient of the logits that they come from, in place.

    By a logit, the token's logprob has the derivative [it is the token's] - p, and KL has p x (log-ratio - KL).
    """
    by_logprob = pulls[0]
    if ratios is None:
        probabilities *= -by_logprob[:, None]
    else:
        assert found.divergence is not None
        for block in _blocks(probabilities):
            each = ratios[block].sub_(found.divergence[block, None])
            each.mul_(pulls[1][block, None]).sub_(by_logprob[block, None])
            probabilities[block].mul_(each)
    probabilities[torch.arange(len(tokens), device=tokens.device), tokens] += by_logprob


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Rows of a chunk in pieces, one at least."""
    rows = max(1, BLOCK_ELEMENTS[logits.device.type] // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, max(1, len(logits)), rows))


def _of_tokens(scores: Tensor, tokens: Tensor) -> Tensor:
    return scores.gather(-1, tokens[:, None])[:, 0]


def _spread(values: Tensor, batch: MicroBatch) -> Tensor:
    """[n] values of the sampled tokens to where they stand in [B, P]; 0 elsewhere."""
    shape = len(batch.rows), len(batch.positions)
    return values.new_zeros(shape).flatten().index_copy(0, batch.places, values).view(shape)
