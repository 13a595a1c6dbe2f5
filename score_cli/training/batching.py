"""Traces as padded tensors, cut into micro-batches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_cli.tables.records import Trace


class MicroBatch(NamedTuple):
    """Some traces, padded on the right: B traces, T tokens of the longest, A attempts.

    At P positions some trace has a sampled token; n tokens were sampled.

    Causal attention never looks right, so padding there cannot reach a real token, and no mask is needed.
    """

    rows: list[int]
    attempt_sizes: list[int]  # [A] sampled tokens of each attempt
    token_ids: Tensor  # [B, T] int64, 0 on padding
    attempt_ids: Tensor  # [B, T] int64, 0 on context and padding
    sampler_logprobs: Tensor  # [B, T] float32, 0 on context and padding
    positions: Tensor  # [P] int64, where any trace of the batch has a sampled token: states are kept there alone
    places: Tensor  # [n] int64, the sampled tokens among [B * P], attempt after attempt: logits are made there alone

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(self.rows, self.attempt_sizes, *(tensor.to(device) for tensor in self[2:]))

    @property
    def sampled_attempt_ids(self) -> Tensor:
        """[B, P] attempt numbers at the positions."""
        return self.attempt_ids[:, self.positions]

    @property
    def sampled_tokens(self) -> Tensor:
        """[n] the tokens at `places`."""
        return self.token_ids[:, self.positions].flatten()[self.places]


def micro_batches(
    traces: Sequence[Trace], token_budget: int, device: torch.device | str = "cpu"
) -> Iterator[MicroBatch]:
    """Cut traces, in order of length, into batches of at most `token_budget` padded tokens each.

    A trace longer than the budget makes a batch of its own. Together the batches hold every trace once.
    """
    order = sorted(range(len(traces)), key=lambda row: len(traces[row].token_ids))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(traces[order[stop]].token_ids) * (stop + 1 - start) <= token_budget:
            stop += 1
        yield _pad(traces, order[start:stop], device)
        start = stop


def empty_batch(attempts: int, device: torch.device | str) -> MicroBatch:
    """A batch of which no token was sampled: it takes part in a pass, and adds nothing to any sum."""
    nothing = torch.zeros(1, 2, dtype=torch.int64)
    found = MicroBatch([0], [0] * attempts, nothing, nothing, nothing.float(), torch.ones(1).long(), nothing[0, :0])
    return found.to(device)


def _pad(traces: Sequence[Trace], rows: list[int], device: torch.device | str) -> MicroBatch:
    width = max(len(traces[row].token_ids) for row in rows)
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    attempt_ids = np.zeros((len(rows), width), dtype=np.int64)
    logprobs = np.zeros((len(rows), width), dtype=traces[rows[0]].logprobs.dtype)
    for index, row in enumerate(rows):
        trace = traces[row]
        length = len(trace.token_ids)
        tokens[index, :length] = trace.token_ids
        attempt_ids[index, :length] = trace.attempt_ids
        logprobs[index, :length] = trace.logprobs
    positions = np.flatnonzero((attempt_ids > 0).any(0))
    owners = attempt_ids[:, positions].ravel()
    # A stable order, and no token of a context.
    places = np.argsort(owners, kind="stable")[np.count_nonzero(owners == 0) :]
    sizes = np.bincount(owners, minlength=len(traces[rows[0]].attempts) + 1)[1:].tolist()
    arrays = (tokens, attempt_ids, logprobs, positions, places)
    return MicroBatch(rows, sizes, *(torch.from_numpy(array).to(device) for array in arrays))
