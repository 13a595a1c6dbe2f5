"""What each token of a trace is credited with in an update: the gradient, traced back to row and token."""

from typing import NamedTuple

import torch

from score_cli.training import losses
from score_cli.training.step import TrainBatch
from score_cli.training.trainer import Trainer


class TokenCredit(NamedTuple):
    """One sampled token. The update's loss is minus the sum over tokens of weight x advantage x trainer's logprob,
    over the number of traces, and with `kl = "full"` the KL terms besides.

    Attributes:
        position: in the trace's tokens; attempt: from 1.
        advantage: 0 where the attempt does not take part; KL that is sampled is in it.
        weight: importance weight; 1 where the trainer's own engine sampled.
        sampler, trainer, reference: logprobs, nats.
    """

    position: int
    attempt: int
    token: int
    advantage: float
    weight: float
    sampler: float
    trainer: float
    reference: float


def token_credit(trainer: Trainer, batch: TrainBatch, row: int) -> list[TokenCredit]:
    """The sampled tokens of a trace, as a batch that `trainer` has prepared credits them.

    Args:
        row: of the trace among the batch's.
    """
    trace = batch.traces[row]
    [own] = trainer.token_logprobs([trace], batch.temperature)
    [known] = trainer.token_logprobs([trace], batch.temperature, trainer.reference.model)
    advantages = _advantages(batch, row)
    found = []
    for position, attempt in enumerate(trace.attempt_ids.tolist()):
        if attempt == 0:
            continue
        sampler = trace.logprobs[position].item()
        weight = 1.0
        if batch.other_engine:
            cap = trainer.config.importance_sampling_cap
            weight = losses.importance_weights(torch.tensor(own[position]), torch.tensor(sampler), cap).item()
        advantage = advantages[position] * batch.trainable[row, attempt - 1].item()
        token = int(trace.token_ids[position])
        found.append(TokenCredit(position, attempt, token, advantage, weight, sampler, own[position], known[position]))
    return found


def _advantages(batch: TrainBatch, row: int) -> dict[int, float]:
    """Position -> advantage."""
    number, micro = next((n, micro) for n, micro in enumerate(batch.micro_batches) if row in micro.rows)
    place = micro.rows.index(row)
    found = {}
    for index, position in enumerate(micro.positions.tolist()):
        attempt = int(micro.attempt_ids[place, position])
        if attempt:
            by_token = batch.token_advantages[number][place, attempt - 1, index] if batch.token_advantages else None
            found[position] = (batch.advantages[row, attempt - 1] if by_token is None else by_token).item()
    return found
