"""Sampling in actors of a real local Ray cluster: the rows of one process, whoever dies on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.run import Run, RunInputs
from score_cli.sampling import ray_sampler
from score_cli.sampling.ray_sampler import RaySampler, StoredPolicy
from score_cli.sampling.sampler import Sampler
from score_cli.stages.sample import sample
from score_cli.tables import cluster as clusters
from score_cli.tables.checkpoints import Policy, load_policy
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import file_sha256
from tests.conftest import small_policy
from tests.runs import digests, recipe

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.pipeline

ONE = SampleConfig(samples=3, chunk_problems=2, max_tokens=12, threads=1, iteration=0)
TWO = replace(ONE, ray="local", ray_samplers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    return load_policy(checkpoint, device="cpu")


@pytest.fixture
def two(policy: Policy) -> Iterator[RaySampler]:
    with RaySampler(TWO, policy) as sampler:
        assert isinstance(sampler, RaySampler)
        yield sampler


def pids(sampler: RaySampler) -> list[int]:
    return [ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for actor in sampler._all_actors()]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    rows = [
        [(t.problem_id, t.sample_index, t.token_ids.tolist(), t.logprobs.tolist()) for t in x] for x in (ours, theirs)
    ]
    return rows[0] == rows[1]


def test_two_actors_write_the_bytes_of_one_process(policy: Policy, problems: Path, tmp_path: Path) -> None:
    for name, config in (("one", ONE), ("two", TWO)):
        sample(config, policy=policy, problems=problems, out=tmp_path / f"{name}.parquet")
    assert file_sha256(tmp_path / "one.parquet") == file_sha256(tmp_path / "two.parquet")


def test_both_actors_work(two: RaySampler, problems: Path) -> None:
    before = set(pids(two))
    assert len(before) == 2
    asked = read_problems(problems)
    assert len(two.sample(asked)) == 3 * len(asked)


def test_a_killed_actor_costs_time_alone(two: RaySampler, policy: Policy, problems: Path) -> None:
    asked = read_problems(problems) * 1
    expected = Sampler(ONE, policy).sample(asked)
    victims = pids(two)
    timer = threading.Timer(0.05, lambda: os.kill(victims[0], signal.SIGKILL))
    timer.start()
    found = two.sample(asked)
    timer.join()
    deadline = time.monotonic() + 60
    while victims[0] in (now := pids(two)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert victims[0] not in now and len(set(now)) == 2
    assert same(found, expected)
    # The actor that was started anew holds no policy until a task brings it.
    assert same(two.sample(asked), expected)


def test_after_an_update_every_actor_samples_from_the_new_policy(two: RaySampler, problems: Path) -> None:
    asked = read_problems(problems)
    old = two.sample(asked)
    newer = small_policy(seed=5)
    two.load(newer)
    expected = Sampler(ONE, newer)
    found = two.sample(asked)
    assert same(found, expected.sample(asked)) and not same(found, old)
    ours, theirs = two.token_logprobs(found, 1.0), expected.token_logprobs(found, 1.0)
    assert max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)) < 1e-6


def test_weights_that_are_not_those_sent_are_refused(two: RaySampler, policy: Policy, problems: Path) -> None:
    two._stored = StoredPolicy(policy.state.fingerprint, (ray.put(small_policy(seed=6)),))
    with pytest.raises(JobError, match="did not reach a Ray actor as it was sent"):
        two.sample(read_problems(problems))


def test_the_logprob_that_one_actor_has_by_itself_is_the_one_reported() -> None:
    assert ray_sampler._farthest([-1.0, -1.0, -9.0, -1.0]) == -9.0
    assert ray_sampler._farthest([-1.0, -1.0001]) in (-1.0, -1.0001)


def test_an_actor_that_always_dies_is_one_line(
    two: RaySampler, problems: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(ray_sampler.SamplingActor):
        def sample(self, *arguments: Any) -> Any:
            os._exit(1)

    monkeypatch.setattr(ray_sampler, "SamplingActor", Dying)
    monkeypatch.setattr(clusters, "TASK_RETRIES", 1)
    with (
        RaySampler(replace(TWO, ray_samplers=1), policy) as dying,
        pytest.raises(JobError, match="a Ray sampler died 2 times over one chunk"),
    ):
        two.close()  # there is room for two actors
        dying.sample(read_problems(problems))


def test_more_actors_than_the_cluster_has_room_for_are_refused(policy: Policy, problems: Path) -> None:
    with (
        RaySampler(replace(TWO, ray_samplers=3), policy) as sampler,
        pytest.raises(UserError, match=r"3 Ray samplers of 1 CPUs each are asked for, and the cluster has 2: lower"),
    ):
        sampler.sample(read_problems(problems))


def test_a_run_gives_the_same_bytes(tmp_path: Path, checkpoint: Path, problems: Path, monkeypatch: Any) -> None:
    from score_cli.verification.grader import Grader
    from tests.runs import invent

    monkeypatch.setattr(Grader, "grade", invent)
    start = RunInputs(model=checkpoint, problems=problems, eval_problems=problems)
    for name in ("one", "two"):
        plan = recipe(stage1_iterations=2, stage2_iterations=1)
        if name == "two":
            plan.change(["sample.ray=local", "sample.ray_samplers=2", "sample.chunk_problems=3", "eval.ray=local"])
        else:
            plan.change(["sample.chunk_problems=3"])
        Run(plan, tmp_path / name, start).execute()
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
