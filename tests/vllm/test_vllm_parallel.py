"""One vLLM engine over several workers, in a Ray cluster: each takes its part of every policy."""

import importlib
import os
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from score_cli.sampling.ray_sampler import RaySampler
from tests.vllm.conftest import noisy_policy
from tests.vllm.test_vllm_engine import plain_logprobs
from tests.vllm.test_vllm_transfer import PROBLEMS, SENT, by_store

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None or find_spec("ray") is None, reason="vLLM or Ray is not installed"),
]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers of one engine are bound to a core each")
def test_both_workers_of_one_engine_take_their_parts_of_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallelism: whether stored or sent, the policy that samples is the trainer's."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    ray = importlib.import_module("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        with RaySampler(replace(SENT, ray_samplers=1, tensor_parallel_size=2), noisy_policy(0)) as sampler:
            assert isinstance(sampler, RaySampler)
            sampler.sample(PROBLEMS[:1])
            by_seed = {}
            for seed in (1, 2):
                policy = noisy_policy(seed)
                stored = by_store(sampler, seed)
                sampler.load(policy)
                traces = sampler.sample(PROBLEMS)
                assert sampler._stored is not None and sampler._stored.sent and not sampler._stored.held
                by_seed[seed] = [tokens for _, _, tokens, _ in stored]
                assert [trace.token_ids.tolist() for trace in traces] == by_seed[seed]
                for trace, (*_, logprobs) in zip(traces, stored, strict=True):
                    sampled = trace.attempt_ids > 0
                    plain = np.array(plain_logprobs(policy.model, trace.token_ids.tolist()))[sampled]
                    assert trace.logprobs[sampled] == pytest.approx(plain, abs=1e-4)
                    assert np.array(logprobs)[sampled] == pytest.approx(plain, abs=1e-4)
            assert by_seed[1] != by_seed[2]
    finally:
        ray.shutdown()
