"""What a changed policy costs on its way to vLLM's engines in Ray actors: through the object store, or broadcast.

Both ways end with engines that hold the policy by proof. They are taken in turns, from one process, on one machine:

    python benchmarks/weight_transfer.py
"""

import argparse
import logging
import time
from collections.abc import Callable

import psutil
import ray  # noqa: TID253
import torch

from score_cli.config import BaseConfig, SampleConfig
from score_cli.sampling import ray_sampler
from score_cli.sampling.ray_sampler import RaySampler, StoredPolicy
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint
from score_cli.tasks import division
from score_cli.training.base_policy import untrained_policy


class HoldingActor(ray_sampler.SamplingActor):
    """An actor that takes a policy and samples nothing."""

    def take(self, policy: StoredPolicy) -> None:
        self._holding(policy)


def processor_seconds() -> float:
    """Of this process and all below it: Ray's, the actors, vLLM's and the sender."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def cost(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and processor seconds."""
    began, used = time.perf_counter(), processor_seconds()
    work()
    return time.perf_counter() - began, processor_seconds() - used


def changed(policy: Policy) -> Policy:
    """The same policy after a step."""
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=1e-4)
    return Policy(policy.model, policy.tokenizer, TrainerState(fingerprint=fingerprint(policy.model)), "changed")


def spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--samplers", type=int, default=2)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    width = round((options.megabytes * 1e6 / 4 / (12 * 12)) ** 0.5 / 64) * 64
    policy = untrained_policy(BaseConfig(layers=12, width=width, heads=width // 64))
    config = SampleConfig(
        engine="vllm",
        device="cpu",
        threads=1,
        samples=1,
        chunk_problems=1,
        max_tokens=4,
        iteration=0,
        ray="local",
        ray_samplers=options.samplers,
        ray_weights="broadcast",
    )
    ray_sampler.SamplingActor = HoldingActor  # type: ignore[misc]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with RaySampler(config, policy) as sampler:
        assert isinstance(sampler, RaySampler) and sampler._broadcast is not None
        broadcast = sampler._broadcast
        traces = sampler.sample(division.split_problems("train")[: 2 * options.samplers])
        sampler.token_logprobs(traces[:1], 1.0)  # every engine has started

        def by_store() -> None:
            stored = sampler._policy_in_store()
            ray.get([actor.work.remote(0, "take", stored) for actor in sampler._actors])

        def by_broadcast() -> None:
            assert broadcast.send(sampler._actors, sampler.policy)

        ways = {"object store": by_store, "broadcast": by_broadcast}
        sampler.load(changed(policy))
        print(f"the first broadcast, in which the group meets: {cost(by_broadcast)[0]:.1f} s")
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.times):
            for way, work in ways.items():
                sampler.load(changed(policy))
                found[way].append(cost(work))
    size = sum(weight.nbytes for weight in policy.model.parameters())
    print(f"\n| {size / 1e9:.2f} GB of weights to {options.samplers} engines | s | processor s |\n|---|---|---|")
    for way, values in found.items():
        print(f"| {way} | {spread([each[0] for each in values])} | {spread([each[1] for each in values])} |")
    for place, name in enumerate(("seconds", "processor seconds")):
        ratios = [b[place] / s[place] for s, b in zip(found["object store"], found["broadcast"], strict=True)]
        print(f"{name}, broadcast by object store: {spread(ratios)}")
    ray.shutdown()


if __name__ == "__main__":
    main()
