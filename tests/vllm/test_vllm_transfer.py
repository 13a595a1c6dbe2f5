"""Policies sent to two vLLM engines of a Ray cluster at once: the rows of the object store, whoever dies on the way."""

import importlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from score_cli.errors import JobError
from score_cli.sampling import weight_transfer
from score_cli.sampling.ray_sampler import RaySampler
from score_cli.sampling.vllm_weights import Place
from score_cli.tables.records import Trace
from score_cli.tasks import division
from tests.vllm.conftest import CONFIG, noisy_policy
from tests.vllm.test_vllm_engine import plain_logprobs

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None or find_spec("ray") is None, reason="vLLM or Ray is not installed"),
]

SENT = replace(CONFIG, ray="local", ray_samplers=2, ray_weights="broadcast", threads=1, samples=2, chunk_problems=1)
PROBLEMS = division.split_problems("train")[:6]


@pytest.fixture(scope="module")
def two() -> Iterator[RaySampler]:
    """Two actors whose engines run, holding the policy of seed 0."""
    ray = importlib.import_module("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    with RaySampler(SENT, noisy_policy(0)) as sampler:
        assert isinstance(sampler, RaySampler)
        sampler.sample(PROBLEMS)
        # Each engine has started, whoever was quicker.
        probe = sampler.sample(PROBLEMS)[:2]
        sampler.token_logprobs(probe, 1.0)
        yield sampler
    ray.shutdown()


def rows(traces: list[Trace]) -> list[Any]:
    return [(t.problem_id, t.sample_index, t.token_ids.tolist(), t.logprobs.tolist()) for t in traces]


def by_store(sampler: RaySampler, seed: int) -> list[Any]:
    """The rows of a policy that came through the object store, whatever the engines held before."""
    broadcast, sampler._broadcast = sampler._broadcast, None
    try:
        sampler.load(noisy_policy(seed))
        return rows(sampler.sample(PROBLEMS))
    finally:
        sampler._broadcast = broadcast


def seats(sampler: RaySampler) -> list[str | None]:
    ray = importlib.import_module("ray")
    return [ray.get(actor.work.remote(0, "seat"))[1][0] for actor in sampler._actors]


def test_policies_that_are_sent_give_the_rows_of_those_that_were_stored(two: RaySampler) -> None:
    expected = {seed: by_store(two, seed) for seed in (1, 2)}
    assert expected[1] != expected[2]
    groups = []
    for seed in (1, 2):
        policy = noisy_policy(seed)
        two.load(policy)
        traces = two.sample(PROBLEMS)
        assert two._stored is not None and two._stored.sent and not two._stored.held  # it never was in the store
        assert rows(traces) == expected[seed]
        for trace in traces:
            plain = plain_logprobs(policy.model, trace.token_ids.tolist())
            sampled = trace.attempt_ids > 0
            assert trace.logprobs[sampled].tolist() == pytest.approx(np.array(plain)[sampled].tolist(), abs=1e-4)
        groups.append(seats(two))
    assert len({group for each in groups for group in each}) == 1 and groups[0][0]  # both engines, one group


def test_a_weight_that_changes_on_the_way_is_refused(two: RaySampler, monkeypatch: pytest.MonkeyPatch) -> None:
    class Corrupting(weight_transfer.Sender):
        def send(self, path: Path, places: list[Place]) -> None:
            memory = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
            memory[places[3].start] ^= 1
            super().send(path, places)

    monkeypatch.setattr(weight_transfer, "Sender", Corrupting)
    assert two._broadcast is not None
    two._broadcast.close()
    two.load(noisy_policy(3))
    with pytest.raises(JobError, match="vLLM did not take the policy's weights .* and 0 more of"):
        two.sample(PROBLEMS)
    two._broadcast.close()


def test_a_killed_actor_takes_the_policy_from_the_store_and_is_in_the_next_group(two: RaySampler) -> None:
    expected = {seed: by_store(two, seed) for seed in (4, 5)}
    two.load(noisy_policy(6))
    two.sample(PROBLEMS)
    before = set(seats(two))
    ray = importlib.import_module("ray")
    victim = ray.get(two._actors[0].__ray_call__.remote(lambda self: os.getpid()))
    os.kill(victim, signal.SIGKILL)
    two.load(noisy_policy(4))
    assert rows(two.sample(PROBLEMS)) == expected[4]
    two.load(noisy_policy(5))
    assert rows(two.sample(PROBLEMS)) == expected[5]
    assert not before & set(seats(two))
