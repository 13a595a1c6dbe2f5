"""Who is waited for when weights are sent to many, and what is refused; no engine and no cluster is there."""

import importlib
import pickle
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.sampling import weight_transfer
from score_cli.sampling.ray_sampler import _arrived
from score_cli.sampling.samplers import make_sampler
from score_cli.sampling.vllm_weights import Taken
from score_cli.sampling.weight_transfer import Broadcast, _LostError
from score_cli.tables.adapters import adapter_parameters
from score_cli.tables.checkpoints import Policy, adapted
from tests.conftest import small_policy
from tests.test_adapters import moved

pytest.importorskip("ray")

BROADCAST = SampleConfig(ray="local", ray_weights="broadcast", engine="vllm", device="cpu")
# What a task comes to that is never done, and one whose actor has died.
NEVER, DEAD = "never", "dead"


@dataclass(eq=False)
class Task:
    """Its actor, its answer, and when that comes, in seconds from the first time that somebody waits."""

    actor: str
    answer: Any
    comes: float = 0.0


class Cluster:
    """In place of Ray."""

    sender: Any = None

    def __init__(self) -> None:
        self.killed: list[tuple[str, bool]] = []
        self._began: float | None = None

    def wait(self, tasks: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        self._began = self._began or time.monotonic()
        coming = [task for task in tasks if task.answer != NEVER]
        first = min((task.comes for task in coming), default=float("inf")) + self._began - time.monotonic()
        time.sleep(max(0.0, min(first, timeout)))
        done = [task for task in coming if self._began + task.comes <= time.monotonic()][:1]
        return done, [task for task in tasks if task not in done]

    def get(self, task: Task) -> tuple[int, Any]:
        if task.answer == DEAD:
            raise importlib.import_module("ray.exceptions").ActorDiedError()
        return 0, task.answer

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: self.sender))

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def kill(self, actor: str, no_restart: bool = True) -> None:
        self.killed.append((actor, no_restart))


def together(*given: tuple[str, Any, float], seconds: float = 5.0) -> tuple[Cluster, Any]:
    """The cluster afterwards, and the answers or what was raised."""
    tasks = [Task(*each) for each in given]
    broadcast, cluster = Broadcast(workers=1, cuda=False), Cluster()
    broadcast._ray = cluster
    try:
        return cluster, broadcast._together({task: task.actor for task in tasks}, seconds)
    except (JobError, _LostError) as error:
        return cluster, error


def test_answers_come_in_the_order_of_the_questions() -> None:
    cluster, answers = together(("sender", 1, 0.02), ("a", 2, 0.0), ("b", 3, 0.01))
    assert answers == [1, 2, 3] and cluster.killed == []


def test_a_death_ends_the_waiting_at_once_and_those_who_would_wait_for_ever_are_started_anew() -> None:
    began = time.monotonic()
    cluster, error = together(("sender", NEVER, 0), ("a", 1, 0.0), ("b", DEAD, 0.02), ("c", NEVER, 0))
    assert isinstance(error, _LostError) and time.monotonic() - began < 1
    assert cluster.killed == [("sender", False), ("c", False)]


def test_an_actor_that_does_not_answer_in_time_is_lost() -> None:
    cluster, error = together(("sender", 1, 0.0), ("a", NEVER, 0), seconds=0.05)
    assert isinstance(error, _LostError) and cluster.killed == [("a", False)]


def test_a_failure_that_another_ones_death_explains_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = JobError("connection closed by peer")
    _, error = together(("a", failed, 0.0), ("b", DEAD, 0.02))
    assert isinstance(error, _LostError)
    monkeypatch.setattr(weight_transfer, "GRACE_SECONDS", 0.01)
    _, error = together(("a", failed, 0.0), ("b", NEVER, 0))
    assert error is failed


class Answering:
    """An actor with one answer to everything."""

    def __init__(self, name: str, answer: Any) -> None:
        self.work = self
        self._task = name, answer

    def options(self, **_: Any) -> "Answering":
        return self

    def remote(self, *_: Any) -> Task:
        return Task(*self._task)


def test_an_engine_none_of_whose_workers_answers_is_refused_beside_one_that_took_all() -> None:
    policy, broadcast = small_policy(), Broadcast(workers=1, cuda=False)
    own = {name: sha256(w.detach().numpy().tobytes()).hexdigest() for name, w in policy.model.named_parameters()}
    broadcast._ray, broadcast._sender = Cluster(), Answering("sender", None)
    took, silent = Answering("a", (Taken(own, {}),)), Answering("b", ())
    assert broadcast._give([took], policy, "1") == [Taken(own, {})]
    with pytest.raises(JobError, match=r"did not take the policy's weights \(no worker answered\)"):
        broadcast._give([took, silent], policy, "2")
    name = sorted(own)[0]
    with pytest.raises(JobError, match=rf"\({name} and 0 more of {len(own)}\)"):
        broadcast._give([took, Answering("b", (Taken(own | {name: "0"}, {}),))], policy, "3")


def test_samplers_that_cannot_be_reached_end_the_run_and_leave_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_transfer, "MEET_SECONDS", 0.05)
    broadcast, cluster = Broadcast(workers=1, cuda=False), Cluster()
    broadcast._ray = cluster
    monkeypatch.setattr(broadcast, "_seats", lambda actors: dict.fromkeys(actors, ""))
    monkeypatch.setattr(cluster, "sender", Answering("sender", ("here", 1)))
    with pytest.raises(JobError, match=r"did not find each other within 0.05 s: open the ports"):
        broadcast.send([Answering("a", NEVER)], small_policy())
    assert broadcast._group == "" and broadcast._sender is None and len(cluster.killed) == 2


def test_without_ray_or_vllm_a_broadcast_is_refused() -> None:
    policy = small_policy()
    with pytest.raises(UserError, match=r"ray_weights is broadcast, .* set ray, or leave it out"):
        make_sampler(replace(BROADCAST, ray=None), policy)
    with pytest.raises(UserError, match=r"the engine is transformers: use --engine vllm, or --ray-weights store"):
        make_sampler(replace(BROADCAST, engine="transformers"), policy)


def arrives(policy: Policy, *, changed: torch.Tensor | None = None) -> bool:
    """Whether an actor takes what was put into the store, where a number of one weight was changed there."""
    wanted = policy.state.fingerprint
    if changed is not None:
        changed.data.view(-1)[1] += 1
    return _arrived(pickle.loads(pickle.dumps(policy)), wanted)


def test_an_actor_takes_a_policy_and_its_adapter_as_they_were_sent_alone() -> None:
    def fresh() -> Policy:
        return adapted(small_policy("qwen2"), rank=3, alpha=6.0, targets="all-linear")

    def trained() -> Policy:
        return moved(small_policy("qwen2"))

    assert arrives(small_policy()) and arrives(fresh()) and arrives(trained())
    for policy in (small_policy(), fresh(), trained()):
        beneath = policy if policy.base is None else policy.base
        assert not arrives(policy, changed=beneath.model.get_input_embeddings().weight)
    for policy in (fresh(), trained()):
        up = next(weight for name, weight in adapter_parameters(policy.model).items() if ".lora_B." in name)
        assert not arrives(policy, changed=up)
    assert not _arrived(small_policy(), small_policy(seed=1).state.fingerprint)
