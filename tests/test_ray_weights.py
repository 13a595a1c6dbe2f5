"""Policies sent to all actors of a real local Ray cluster, over a plain store in place of vLLM and its broadcast."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from score_cli.config import SampleConfig
from score_cli.errors import JobError
from score_cli.sampling import ray_sampler, weight_transfer
from score_cli.sampling.ray_sampler import RaySampler
from score_cli.sampling.sampler import Sampler
from score_cli.sampling.vllm_engine import PolicyGoneError
from score_cli.sampling.vllm_weights import Held, Place, Taken, read_weights, tensor_digest
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem, Trace
from tests.conftest import small_policy

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.pipeline

ONE = SampleConfig(samples=3, chunk_problems=1, max_tokens=12, threads=1, iteration=0)
TWO = replace(ONE, ray="local", ray_samplers=2)


def store(meeting: Mapping[str, Any], *, first: bool) -> Any:
    place = meeting["master_address"], meeting["master_port"], None, first
    return torch.distributed.TCPStore(*place, timeout=timedelta(seconds=20), wait_for_workers=False)


class FakeSender(weight_transfer.Sender):
    """Lays the bytes of each weight into a store, for every round anew."""

    def meet(self, meeting: Mapping[str, Any]) -> None:
        self._store, self._round = store(meeting, first=True), 0

    def send(self, path: Path, places: Sequence[Place]) -> None:
        for name, weight in read_weights(path, places):
            self._store.set(f"{self._round} {name}", self.altered(name, weight).numpy().tobytes())
        self._round += 1

    def altered(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight


class CorruptingSender(FakeSender):
    def altered(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.nextafter(torch.tensor(9.0)) if name == "transformer.ln_f.bias" else weight


class FakeVllm:
    """Takes weights as vLLM does, into the model that the transformers engine of its actor samples from."""

    def __init__(self, sampler: Sampler) -> None:
        self.group = ""
        self._sampler = sampler

    def join(self, group: str, seat: Mapping[str, Any]) -> None:
        self.group, self._store, self._round = group, store(seat, first=False), 0

    def receive(self, coming: Mapping[str, Any]) -> list[Taken]:
        own, digests = dict(self._sampler.policy.model.named_parameters()), {}
        for name, shape in zip(coming["names"], coming["shapes"], strict=True):
            sent = bytearray(self._store.get(f"{self._round} {name}"))
            weight = torch.frombuffer(sent, dtype=torch.float32).view(shape)
            digests[name] = tensor_digest(weight)
            own[name].data.copy_(weight)
        self._round += 1
        return [Taken(digests, {n: Held("float32", list(w.shape), tensor_digest(w)) for n, w in own.items()})]


class FakeActor(ray_sampler.SamplingActor):
    """Dies of the next policy that is sent, or finds that its engine has to start again, when a test says so."""

    dies = starts_again = False

    def receive(self, sent: str, coming: Mapping[str, Any]) -> list[Taken]:
        if self.dies:
            os._exit(1)
        return super().receive(sent, coming)

    def _asked(self, policy: Any, answer: Any) -> Any:
        def first(sampler: Sampler) -> Any:
            if self.starts_again:
                self.starts_again = False
                raise PolicyGoneError
            return answer(sampler)

        return super()._asked(policy, first)

    def _vllm(self) -> Any:
        assert self._sampler is not None
        engine: Any = self._sampler.engine
        if not hasattr(engine, "fake"):
            engine.fake = FakeVllm(self._sampler)
        return engine.fake


@pytest.fixture(scope="module")
def actors() -> Iterator[RaySampler]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_sampler, "SamplingActor", FakeActor)
        with RaySampler(TWO, small_policy()) as sampler:
            yield sampler
    ray.shutdown()


@pytest.fixture
def asked(problems: Path) -> list[Problem]:
    return read_problems(problems)


@pytest.fixture
def two(actors: RaySampler, monkeypatch: pytest.MonkeyPatch, asked: list[Problem]) -> Iterator[RaySampler]:
    """Two actors that hold a policy, from the store, and are sent the next."""
    monkeypatch.setattr(weight_transfer, "Sender", FakeSender)
    actors._broadcast = None
    actors.load(small_policy(seed=9))
    actors.token_logprobs(actors.sample(asked)[:1], 1.0)
    actors._broadcast = weight_transfer.Broadcast(workers=1, cuda=False)
    yield actors
    if actors._broadcast is not None:
        actors._broadcast.close()


def rows(traces: list[Trace]) -> list[Any]:
    return [(t.problem_id, t.sample_index, t.token_ids.tolist(), t.logprobs.tolist()) for t in traces]


def expected(seed: int, asked: list[Problem]) -> list[Any]:
    return rows(Sampler(ONE, small_policy(seed=seed)).sample(asked))


def seats(sampler: RaySampler) -> list[str | None]:
    return [ray.get(actor.work.remote(0, "seat"))[1][0] for actor in sampler._actors]


def pid(actor: Any) -> int:
    found: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    return found


def test_two_policies_that_are_sent_in_one_group_give_the_rows_of_one_process(
    two: RaySampler, asked: list[Problem]
) -> None:
    for seed in (1, 2):
        two.load(small_policy(seed=seed))
        found = two.sample(asked)
        assert rows(found) == expected(seed, asked)
        assert two._stored is not None and two._stored.sent and not two._stored.held  # it never was in the store
        assert len(two.token_logprobs(found, 1.0)) == len(found)
    assert len(set(seats(two))) == 1 and seats(two)[0]


def test_a_weight_that_changes_on_the_way_is_refused_and_sampled_from_by_nobody(
    two: RaySampler, asked: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_transfer, "Sender", CorruptingSender)
    newer = small_policy(seed=3)
    two.load(newer)
    with pytest.raises(JobError, match=r"did not take the policy's weights \(transformer.ln_f.bias and 0 more of"):
        two.sample(asked)
    # Whoever goes on all the same gets the policy from the store.
    two._broadcast = None
    assert rows(two.sample(asked)) == expected(3, asked)


def test_an_actor_started_anew_takes_the_policy_from_the_store_and_is_in_the_next_group(
    two: RaySampler, asked: list[Problem]
) -> None:
    two.load(small_policy(seed=1))
    two.sample(asked)
    before, victim = seats(two)[0], pid(two._actors[0])
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while pid_or_none(two._actors[0]) in (None, victim) and time.monotonic() < deadline:
        time.sleep(0.1)
    # The policy is the one that was sent: the other goes on with it, and this one has to be given it.
    assert rows(two.sample(asked)) == expected(1, asked)
    assert two._stored is not None and two._stored.sent and two._stored.held
    two.load(small_policy(seed=2))
    assert rows(two.sample(asked)) == expected(2, asked)
    assert two._stored.sent and not two._stored.held and len(set(seats(two))) == 1 and seats(two)[0] != before


def pid_or_none(actor: Any) -> int | None:
    try:
        return pid(actor)
    except ray.exceptions.RayError:
        return None


def test_an_actor_that_dies_of_what_is_sent_costs_time_alone(two: RaySampler, asked: list[Problem]) -> None:
    ray.get(two._actors[0].__ray_call__.remote(lambda self: setattr(self, "dies", True)))
    victim = pid(two._actors[0])
    two.load(small_policy(seed=4))
    assert rows(two.sample(asked)) == expected(4, asked)
    assert two._stored is not None and two._stored.held and not two._stored.sent
    assert pid(two._actors[0]) != victim


def test_an_engine_that_has_to_start_again_is_handed_the_policy_again(two: RaySampler, asked: list[Problem]) -> None:
    for actor in two._actors:
        ray.get(actor.__ray_call__.remote(lambda self: setattr(self, "starts_again", True)))
    two.load(small_policy(seed=2))
    assert rows(two.sample(asked)) == expected(2, asked)
    assert two._stored is not None and two._stored.sent and two._stored.held
