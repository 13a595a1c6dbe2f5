"""What several workers cost and give: the same rows by one process, two shards and two Ray workers; a killed worker.

    OMP_NUM_THREADS=1 python benchmarks/ray_workers.py --out /tmp/ray-workers

The policy is the built-in task's base after 240 steps. Grading is by a function of a user's own that takes 5 ms, in
processes therefore. Rows are compared by the sha256 of their sorted columns, files by their own.
"""

import argparse
import hashlib
import importlib
import json
import logging
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from kills_spread import REWARD

from score_cli.config import BaseConfig, DataConfig, SampleConfig, VerifyConfig
from score_cli.sampling import ray_sampler
from score_cli.sampling.ray_sampler import RaySampler, StoredPolicy
from score_cli.stages.data import write_problems
from score_cli.stages.sample import merge, sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, load_policy
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import file_sha256
from score_cli.training.base_policy import train_base, untrained_policy
from score_cli.verification.grader import make_graders
from score_cli.verification.ray_grader import RayGrader
from score_cli.verification.task_grader import Item

ray: Any = importlib.import_module("ray")
ONE = SampleConfig(samples=4, max_tokens=14, chunk_problems=16, threads=1, iteration=0)
PARTS = (
    "into the store, once",
    "out of the store, by both actors at once",
    "the fingerprint of what came",
    "all of what an actor does before it samples from them: out of the store, fingerprint, into the engine",
)
TWO = replace(ONE, ray="local", ray_samplers=2)
SLOW = REWARD.replace("    answer =", "    import time\n    time.sleep(0.005)\n    answer =")


def rows_sha256(path: Path) -> str:
    """The digest of a table's rows, ordered by problem and sample, column by column in the order of their names."""
    table, digest = pl.read_parquet(path).sort("problem_id", "sample_index"), hashlib.sha256()
    for name in sorted(table.columns):
        digest.update(json.dumps([name, table[name].to_list()]).encode())
    return digest.hexdigest()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that something takes, and what it gives."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def compare_ways(out: Path, policy: Policy, problems: Path) -> None:
    """Sample and grade by one process, by two shards and by two Ray workers."""
    (out / "reward.py").write_text(SLOW)
    graded = VerifyConfig(workers=1, grader=f"{out / 'reward.py'}:grade")

    def one(config: SampleConfig, grading: VerifyConfig, name: str) -> None:
        sample(config, policy=policy, problems=problems, out=out / f"{name}.parquet")
        verify(grading, traces=out / f"{name}.parquet", problems=problems, out=out / f"{name}.rewards.parquet")

    def shards() -> None:
        names = [out / f"shard{part}.parquet" for part in (1, 2)]
        for part, name in enumerate(names, 1):
            sample(replace(ONE, shard=f"{part}/2"), policy=policy, problems=problems, out=name)
        merge(names, out=out / "shards.parquet")
        verify(graded, traces=out / "shards.parquet", problems=problems, out=out / "shards.rewards.parquet")

    on_ray = replace(graded, ray="local", ray_graders=2)
    ways: dict[str, Callable[[], None]] = {
        "one": lambda: one(ONE, graded, "one"),
        "shards": shards,
        "ray": lambda: one(TWO, on_ray, "ray"),
    }
    print("| by | s | traces: rows | file | rewards: rows | file |\n|---|---|---|---|---|---|")
    for name, way in ways.items():
        seconds, _ = timed(way)
        files = [out / f"{name}.parquet", out / f"{name}.rewards.parquet"]
        digests = [digest(file)[:12] for file in files for digest in (rows_sha256, file_sha256)]
        print(f"| {name} | {seconds:.1f} | " + " | ".join(f"`{each}`" for each in digests) + " |", flush=True)


class Workers:
    """Actors of which one is killed while they work."""

    def __init__(self, name: str, actors: Callable[[], list[Any]], work: Callable[[], Any]) -> None:
        self.name = name
        self._actors = actors
        self._work = work

    def measure(self, times: int) -> None:
        """Work undisturbed and with a kill in turn, and print what a kill cost."""
        expected, quiet, killed, back = self._work(), [], [], []
        for _ in range(times):
            seconds, result = timed(self._work)
            assert result == expected
            quiet.append(seconds)
            fraction = (len(killed) + 0.5) / times
            took, returned = self._killed_after(fraction * statistics.mean(quiet), expected)
            killed.append(took)
            back.append(returned)
        cost = [b - a for a, b in zip(quiet, killed, strict=True)]
        print(
            f"| {self.name} | {spread(quiet)} | {spread(killed)} | {spread(cost)} | {spread(back)} |",
            flush=True,
        )

    def _killed_after(self, seconds: float, expected: Any) -> tuple[float, float]:
        """What the work takes where a worker is killed so many seconds into it, and when that works again."""
        victim, at = pid(self._actors()[0]), [0.0]

        def kill() -> None:
            time.sleep(seconds)
            at[0] = time.perf_counter()
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        took, result = timed(self._work)
        killer.join()
        assert result == expected, "a killed worker changed the rows"
        while pid(self._actors()[0]) == victim:
            time.sleep(0.05)
        return took, time.perf_counter() - at[0]


def pid(actor: Any) -> int:
    """The process that an actor is in, once it is there."""
    while True:
        try:
            return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
        except ray.exceptions.RayActorError:
            time.sleep(0.05)


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def cost_of_kills(out: Path, policy: Policy, problems: Path, times: int) -> None:
    """What a killed sampler and a killed grader cost."""
    columns = ["killed", "undisturbed, s", "with a kill, s", "cost of a kill, s", "worker back after, s"]
    print("\n| " + " | ".join(columns) + " |\n|---|---|---|---|---|")
    asked = read_problems(problems)
    with RaySampler(TWO, policy) as sampler:
        assert isinstance(sampler, RaySampler)

        def work() -> list[Any]:
            return [
                (t.problem_id, t.sample_index, t.token_ids.tolist(), t.logprobs.tolist()) for t in sampler.sample(asked)
            ]

        Workers("one of two samplers", sampler._all_actors, work).measure(times)
    config = VerifyConfig(workers=1, grader=f"{out / 'reward.py'}:grade", ray="local", ray_graders=2)
    [grader] = make_graders({"division"}, config).values()
    assert isinstance(grader, RayGrader)
    items = [Item(problem, f"\\boxed{{{number}}}") for problem in asked for number in range(8)]
    Workers("one of two graders", lambda: grader._actors._actors, lambda: grader.grade(items)).measure(times)
    grader.close()


class TimedActor(ray_sampler.SamplingActor):
    """An actor that says what taking a policy takes it."""

    def take(self, policy: StoredPolicy) -> tuple[float, float, float]:
        """Seconds for the weights out of the store, for their fingerprint, and for all that a task for them takes."""
        began = time.perf_counter()
        fetched: Policy = ray.get(policy.held[0])
        got = time.perf_counter()
        assert fingerprint(fetched.model) == policy.fingerprint
        proved = time.perf_counter()
        del fetched
        self._holding(policy)
        return got - began, proved - got, time.perf_counter() - proved


def object_store(megabytes: float, times: int) -> None:
    """Hand weights of so many megabytes to two actors through the object store, again and again."""
    ray_sampler.SamplingActor = TimedActor  # type: ignore[misc]
    width = round((megabytes * 1e6 / 4 / (12 * 12)) ** 0.5 / 64) * 64
    model = untrained_policy(BaseConfig(layers=12, width=width, heads=width // 64))
    size = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    found: dict[str, list[float]] = {}
    with RaySampler(TWO, model) as sampler:
        assert isinstance(sampler, RaySampler)
        ray.get([actor.work.remote(0, "take", sampler._policy_in_store()) for actor in sampler._all_actors()])
        for _ in range(times):
            with torch.no_grad():
                next(model.model.parameters()).add_(1e-3)
            state = TrainerState(fingerprint=fingerprint(model.model))
            sampler.load(Policy(model.model, model.tokenizer, state, ""))
            put, stored = timed(sampler._policy_in_store)
            asked = [actor.work.remote(0, "take", stored) for actor in sampler._all_actors()]
            parts = zip(*(each for _, each in ray.get(asked)), strict=True)
            slowest = dict(zip(PARTS, [put, *map(max, parts)], strict=True))
            for name, value in slowest.items():
                found.setdefault(name, []).append(value)
    print(f"\n| {size / 1e9:.2f} GB of weights | s |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {spread(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    parser.add_argument("--problems", type=int, default=192)
    parser.add_argument("--times", type=int, default=5, help="Of each measurement.")
    parser.add_argument("--megabytes", type=float, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out.resolve()
    out.mkdir(parents=True)
    problems = out / "problems.parquet"
    write_problems("division", DataConfig(limit=options.problems), out=problems)
    train_base(BaseConfig(steps=240, threads=1), out=out / "base")
    policy = load_policy(out / "base", device="cpu")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        compare_ways(out, policy, problems)
        cost_of_kills(out, policy, problems, options.times)
        object_store(options.megabytes, options.times)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
