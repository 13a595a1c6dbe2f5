"""Randomness that belongs to one sample: no batch, shard, neighbour or order of work can change it."""

import hashlib
import json
import math

import numpy as np
from numpy.typing import NDArray


def sample_digest(seed: int, iteration: int, problem_id: str, sample_index: int, attempt: int) -> bytes:
    """sha256 of what names one attempt of one sample; the seed of everything drawn for it.

    Attempts count from 1; 0 stands for what is drawn for the sample as a whole.
    """
    name = json.dumps([seed, iteration, problem_id, sample_index, attempt], ensure_ascii=True)
    return hashlib.sha256(name.encode()).digest()


def offline_samples(seed: int, iteration: int, problem_id: str, samples: int, share: float) -> list[int]:
    """Which of a problem's samples take a given first attempt: `share` of them, to the nearest whole number.

    Returns:
        Sample indices in ascending order; a pure function of the arguments.
    """
    keys = [sample_digest(seed, iteration, problem_id, index, 0) for index in range(samples)]
    return sorted(sorted(range(samples), key=keys.__getitem__)[: math.floor(share * samples + 0.5)])


def attempt_uniforms(digest: bytes, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1); the t-th one chooses the attempt's t-th token.

    Raw Philox output, because NumPy keeps a bit generator's stream fixed for good but not what
    its distributions make of it.
    """
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    uniforms: NDArray[np.float64] = (generator.random_raw(count) >> np.uint64(11)) * np.float64(2.0**-53)
    return uniforms


def batch_order(seed: int, epoch: int, problem_ids: list[str]) -> list[int]:
    """The order in which an epoch visits the problems: a shuffle keyed by each problem's own id."""
    keys = [hashlib.sha256(json.dumps([seed, epoch, name]).encode()).digest() for name in problem_ids]
    return sorted(range(len(problem_ids)), key=keys.__getitem__)


def draw_problems(seed: int, iteration: int, problem_ids: list[str], count: int) -> list[int]:
    """The problems of one iteration: consecutive slices of shuffled epochs, each problem once an epoch.

    A slice may run over into the next epoch; that epoch then leaves the problems the slice already
    holds for last, so that no iteration holds a problem twice.

    Args:
        count: how many problems an iteration uses, at most as many as there are.
    Returns:
        [count] row numbers, in the order drawn.
    """
    size = len(problem_ids)
    drawn: list[int] = []
    held: set[int] = set()
    for epoch in range((iteration * count + count - 1) // size + 1):
        order = sorted(batch_order(seed, epoch, problem_ids), key=held.__contains__)
        offset = epoch * size
        drawn += order[max(0, iteration * count - offset) : max(0, (iteration + 1) * count - offset)]
        # What the slice that crosses into the next epoch holds of this one.
        crossing = (offset + size) % count
        held = set(order[size - crossing :]) if crossing else set()
    return drawn
