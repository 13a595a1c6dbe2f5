"""Sampling and grading in actors of a real local Ray cluster: the rows of one process, whoever dies on the way."""

import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from score_cli.config import SampleConfig, VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.run import Run, RunInputs
from score_cli.sampling import ray_sampler
from score_cli.sampling.ray_sampler import RaySampler, StoredPolicy
from score_cli.sampling.sampler import Sampler
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables import cluster as clusters
from score_cli.tables import trainers
from score_cli.tables.checkpoints import Policy, load_policy
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT, INCORRECT, NO_ANSWER, TIMEOUT
from score_cli.verification.grader import make_graders
from score_cli.verification.ray_grader import RayGrader
from score_cli.verification.task_grader import Item
from tests.conftest import small_policy
from tests.processes import descendants, runs
from tests.programs_support import item
from tests.runs import digests, recipe

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.pipeline

ONE = SampleConfig(samples=3, chunk_problems=2, max_tokens=12, threads=1, iteration=0)
TWO = replace(ONE, ray="local", ray_samplers=2)
GRADERS = VerifyConfig(ray="local", ray_graders=2, workers=1)
# Rewards that depend on the response alone; each call leaves the number of the server that its process was forked by.
REWARD = """
import hashlib, os, time
from pathlib import Path

def grade(problem, response):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(f"{os.getppid()}\\n")
    time.sleep(0.01)
    return hashlib.sha256(response.encode()).digest()[0] % 4 / 4
"""


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[Any]:
    """A cluster of two machines, as far as Ray can tell."""
    with pytest.MonkeyPatch.context() as patch:
        # The GPUs are Ray's to count, and need not be there.
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        each = {"num_cpus": 1, "num_gpus": 1}
        found = importlib.import_module("ray.cluster_utils").Cluster(
            initialize_head=True, head_node_args=each | {"include_dashboard": False}
        )
        found.add_node(**each)
        ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


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


def test_two_actors_work_and_tell_of_solves_when_their_chunk_is_done(
    two: RaySampler, policy: Policy, problems: Path
) -> None:
    assert len(set(pids(two))) == 2
    job, told = two.plan(read_problems(problems)), ([], [])  # type: tuple[list[Any], list[Any]]
    assert len(two.run(job, lambda problem, text: told[0].append((problem.problem_id, text)))) == 3 * len(job.problems)
    Sampler(ONE, policy).run(job, lambda problem, text: told[1].append((problem.problem_id, text)))
    assert sorted(told[0]) == sorted(told[1]) and told[0]


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


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    path = tmp_path / "own" / "reward.py"
    path.parent.mkdir()
    path.write_text(REWARD)
    return path


def calls(reward: Path) -> list[str]:
    """The servers that the calls of the function came from, one a call."""
    return reward.with_name("calls").read_text().split()


def test_two_graders_write_the_bytes_of_one_process(batch: Path, reward: Path) -> None:
    inputs = {"traces": batch / "traces.parquet", "problems": batch / "problems.parquet"}
    own = f"{reward}:grade"
    verify(VerifyConfig(workers=1, grader=own), out=batch / "one.parquet", **inputs)
    alone = calls(reward)
    counts = verify(replace(GRADERS, grader=own), out=batch / "two.parquet", **inputs)
    assert file_sha256(batch / "one.parquet") == file_sha256(batch / "two.parquet")
    assert len(alone) > 20 and counts.counts["incorrect"] > 10
    assert len(calls(reward)) == 2 * len(alone) and len(set(calls(reward)) - set(alone)) == 2


def test_graders_on_ray_run_programs_in_the_sandbox_that_they_have_here() -> None:
    config = VerifyConfig(workers=1, program_timeout_seconds=1, allow_unsandboxed=True)
    codes = [
        "def add(a, b):\n    return a + b",
        "def add(a, b):\n    return a * b",
        "def add(a, b):\n    while 1: pass",
    ]
    given = [item(code)._replace(problem=replace(item(code).problem, task="mbpp")) for code in codes]
    algebra = Problem(problem_id="m", task="math", question="What is 6 * 7?", answer="42", source="me")
    answers = [Item(algebra, "The answer is $42$."), Item(algebra, "I do not know.")]
    here, there = make_graders({"mbpp", "math"}, config), make_graders({"mbpp", "math"}, replace(config, ray="local"))
    try:
        assert {task: grader.describe() for task, grader in there.items()} == {
            task: grader.describe() for task, grader in here.items()
        }
        programs, texts = there["mbpp"].grade(given * 12), there["math"].grade(answers)
        assert [each.verdict for each in programs] == [CORRECT, INCORRECT, TIMEOUT] * 12
        assert [each.verdict for each in texts] == [CORRECT, NO_ANSWER]
        assert programs[:3] == here["mbpp"].grade(given) and texts == here["math"].grade(answers)
    finally:
        for each in (*here.values(), *there.values()):
            each.close()


def test_a_killed_grader_costs_time_alone(reward: Path) -> None:
    config = replace(GRADERS, grader=f"{reward}:grade")
    problem = Problem(problem_id="p", task="own", question="?", answer=None, source="me")
    items = [Item(problem, f"response {number}") for number in range(100)]
    alone = make_graders({"own"}, replace(config, ray=None))["own"]
    expected = alone.grade(items)
    alone.close()
    before = len(calls(reward))
    grader = make_graders({"own"}, config)["own"]
    assert isinstance(grader, RayGrader)
    actors = grader._actors._actors
    victim = ray.get(actors[0].__ray_call__.remote(lambda self: os.getpid()))
    below = list(descendants(victim))

    def kill() -> None:
        while len(calls(reward)) < before + 30:
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert grader.grade(items) == expected
    killer.join()
    # What it was at was graded again, by the one that took its place or by the other.
    assert len(calls(reward)) > before + len(items)
    assert grader.grade(items) == expected
    assert ray.get(actors[0].__ray_call__.remote(lambda self: os.getpid())) != victim
    assert below and not any(runs(each) for each in below)
    grader.close()


def test_an_actor_keeps_a_gpu_of_this_machine_for_the_first_process() -> None:
    each = {"num_cpus": 1, "num_gpus": 1}
    actors = [trainers._beside(ray, each), ray.remote(trainers.Trainer).options(**each).remote()]
    try:
        assert trainers._ready(ray, actors) == [["0"], ["0"]]
    finally:
        for actor in actors:
            ray.kill(actor)


def test_a_run_gives_the_same_bytes(tmp_path: Path, checkpoint: Path, problems: Path, reward: Path) -> None:
    start = RunInputs(model=checkpoint, problems=problems, eval_problems=problems)
    for name, settings in (
        ("one", ["verify.workers=1"]),
        (
            "two",
            [
                "sample.ray_samplers=2",
                "verify.ray_graders=1",
                *(f"{t}.ray=local" for t in ("sample", "eval", "verify")),
            ],
        ),
    ):
        plan = recipe(stage1_iterations=2, stage2_iterations=1)
        plan.change(["sample.chunk_problems=3", f"verify.grader={reward}:grade", *settings])
        Run(plan, tmp_path / name, start).execute()
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_an_actor_that_has_no_place_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So Ray leaves one whose machine is lost: it may start it anew one day, and calls no task of it failed."""
    monkeypatch.setattr(clusters, "GRACE_SECONDS", 0.5)
    remote = ray.remote(Echo)
    there = [remote.options(num_cpus=0).remote() for _ in range(2)]
    nowhere = remote.options(num_cpus=1000).remote()
    asked = [
        actor.work.remote(0, "say", word) for actor, word in zip([there[0], nowhere, there[1]], "abc", strict=True)
    ]
    assert clusters.present(asked) == ["a", "c"]
    for actor in (*there, nowhere):
        ray.kill(actor)


class Echo(clusters.Actor):
    def say(self, word: str) -> str:
        return word


def test_a_lost_machine_costs_time_alone(
    machines: Any, two: RaySampler, policy: Policy, problems: Path, reward: Path
) -> None:
    asked = read_problems(problems)
    expected = Sampler(ONE, policy).sample(asked)
    [grader] = make_graders({"own"}, VerifyConfig(ray="local", workers=1, grader=f"{reward}:grade")).values()
    problem = Problem(problem_id="p", task="own", question="?", answer=None, source="me")
    items = [Item(problem, f"response {number}") for number in range(100)]
    graded = grader.grade(items)
    assert same(two.sample(asked), expected)
    lost = next(node for node in machines.list_all_nodes() if node is not machines.head_node)
    timer = threading.Timer(0.2, lambda: machines.remove_node(lost, allow_graceful=False))
    timer.start()
    assert grader.grade(items) == graded
    timer.join()
    # There is no room for the second sampler any more: the first does everything, and is the one that is asked.
    traces = two.sample(asked)
    assert same(traces, expected) and len(two.token_logprobs(traces, 1.0)) == len(traces)
    grader.close()
