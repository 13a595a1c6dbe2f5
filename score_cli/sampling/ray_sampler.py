"""Sampling on a Ray cluster: plain actors with an engine each, chunks of problems as their tasks.

A chunk's traces depend on the policy, the settings and the problems in it alone, so it does not matter which actor
samples it, nor how often: a task whose actor died is done again. Every task says which policy it is for. An actor that
Ray has started anew holds none, and takes it from the object store before it samples a token. Where policies are sent
to all engines at once (`weight_transfer`), an actor that holds none declines its task, and gets it again with a policy.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.sampling.engine import TRANSFORMERS, engine_name
from score_cli.sampling.given import Given
from score_cli.sampling.offline import OfflineAttempts
from score_cli.sampling.sampler import Ended, SampleJob, Sampler
from score_cli.sampling.vllm_engine import PolicyGoneError, VllmEngine
from score_cli.sampling.vllm_weights import Taken
from score_cli.sampling.weight_transfer import BROADCAST, Broadcast
from score_cli.tables import cluster
from score_cli.tables.adapters import adds_nothing
from score_cli.tables.checkpoints import Policy
from score_cli.tables.device import setup_device
from score_cli.tables.records import SOLVE, Problem, Trace
from score_cli.tables.schemas import LENGTH

_WHO = "sampler"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class StoredPolicy:
    """The policy that a task is for.

    Attributes:
        held: its reference in the object store, wrapped so that Ray hands it on instead of what it stands for; empty
            where it is not there.
        sent: names the broadcast that brought it to all engines that there were, and was proved to; empty without one.
    """

    fingerprint: str
    held: tuple[Any, ...] = ()
    sent: str = ""


class SamplingActor(cluster.Actor):
    """A sampler in a process of its own; which policy it holds is decided task by task."""

    def __init__(self, config: SampleConfig) -> None:
        # The actor samples by itself, whatever the driver was told.
        self._config = replace(config, ray=None)
        self._sampler: Sampler | None = None
        # The fingerprint of the policy that the sampler's engine holds, and the broadcast that it last took.
        self._held = self._sent = ""

    def sample(
        self,
        policy: StoredPolicy,
        problems: Sequence[Problem],
        config: SampleConfig,
        offline: OfflineAttempts | None,
        given: Given | None,
    ) -> list[Trace] | None:
        """The traces of a chunk; None without the policy."""
        config = replace(config, ray=None)

        def traces(sampler: Sampler) -> list[Trace]:
            job = sampler.plan(problems, config, offline) if given is None else sampler.plan_given(given, config)
            return sampler.sample_chunk(job, range(len(problems)))

        return self._asked(policy, traces)

    def token_logprobs(
        self, policy: StoredPolicy, traces: Sequence[Trace], temperature: float
    ) -> list[list[float]] | None:
        """As `Sampler.token_logprobs`; None without the policy."""
        return self._asked(policy, lambda sampler: sampler.token_logprobs(traces, temperature))

    def seat(self) -> tuple[str | None, list[str]]:
        """The group that the engine's workers are in, None where none runs; and the GPUs that this actor has."""
        gpus = [str(torch.cuda.get_device_properties(each).uuid) for each in range(torch.cuda.device_count())]
        return (None if self._sampler is None else self._vllm().group), gpus

    def join(self, group: str, seat: Mapping[str, Any]) -> None:
        """As `VllmEngine.join`."""
        self._vllm().join(group, seat)

    def receive(self, sent: str, coming: Mapping[str, Any]) -> list[Taken]:
        """As `VllmEngine.receive`. Which policy it is, a task says, once it is proved.

        Args:
            sent: names the broadcast.
        """
        self._held = self._sent = ""
        taken = self._vllm().receive(coming)
        self._sent = sent
        return taken

    def _asked(self, policy: StoredPolicy, answer: Callable[[Sampler], Answer]) -> Answer | None:
        """What the sampler answers once it holds a policy; None without that."""
        sampler = self._holding(policy)
        try:
            return None if sampler is None else answer(sampler)
        except PolicyGoneError:
            self._held = self._sent = ""
            return None

    def _vllm(self) -> VllmEngine:
        assert self._sampler is not None and isinstance(self._sampler.engine, VllmEngine)
        return self._sampler.engine

    def _holding(self, wanted: StoredPolicy) -> Sampler | None:
        """The sampler, once it holds the policy that a task is for; None where that is not in the store either.

        Raises:
            JobError: the weights that came are not those that were sent.
        """
        ray = importlib.import_module("ray")
        device = setup_device(self._config)
        if wanted.sent and wanted.sent == self._sent:
            self._held = wanted.fingerprint
        if self._sampler is None or self._held != wanted.fingerprint:
            if not wanted.held:
                return None
            policy: Policy = ray.get(wanted.held[0])
            if not _arrived(policy, wanted.fingerprint):
                raise JobError("a policy did not reach a Ray actor as it was sent: run the command again")
            self._held = self._sent = ""
            if engine_name(self._config) == TRANSFORMERS:
                policy.model.to(device)
            if self._sampler is None:
                self._sampler = Sampler(self._config, policy)
            else:
                self._sampler.load(policy)
            self._held = wanted.fingerprint
        return self._sampler


class RaySampler(Sampler):
    """A sampler whose chunks are sampled by the actors of a Ray cluster."""

    def __init__(self, config: SampleConfig, policy: Policy) -> None:
        """Raises:
        UserError: Ray is not installed, there is no cluster, or it has no room for the actors.
        """
        super().__init__(config, policy)
        assert config.ray is not None
        self._ray = cluster.connect(config.ray)
        self._actors: list[Any] = []
        self._stored: StoredPolicy | None = None
        self._broadcast: Broadcast | None = None
        if config.ray_weights == BROADCAST:
            gpus = bool(cluster.needs(config)["num_gpus"])
            self._broadcast = Broadcast(workers=config.tensor_parallel_size, cuda=gpus)

    def sample_chunk(self, job: SampleJob, chunk: range, ended: Ended | None = None) -> list[Trace]:
        """As `Sampler.sample_chunk`, by one actor."""
        [(_, traces)] = self.sample_chunks(job, [(0, chunk)], ended)
        return traces

    def sample_chunks(
        self, job: SampleJob, chunks: Sequence[tuple[int, range]], ended: Ended | None = None
    ) -> Iterator[tuple[int, list[Trace]]]:
        """As `Sampler.sample_chunks`, in the order in which the actors finish."""
        # What an actor is asked is settled here: it draws no problems, and numbers no iteration by itself.
        config = replace(job.config, problems_per_iteration=None, shard=None)
        rows_of = dict(chunks)

        def arguments(number: int) -> tuple[Any, ...]:
            rows = rows_of[number]
            problems = [job.problems[row] for row in rows]
            offline = None if job.offline is None else job.offline.of(problems)
            given = None if job.given is None else job.given.of(rows)
            return self._handed_over(), problems, config, offline, given

        by_id = {problem.problem_id: problem for problem in job.problems}
        waiting = list(rows_of)
        while waiting:
            declined = []
            self._handed_over()  # before the actors are at work
            for number, traces in cluster.spread(self._all_actors(), "sample", waiting, arguments, _WHO):
                if traces is None:
                    self._policy_in_store()  # for every task from now on
                    declined.append(number)
                    continue
                if ended is not None:
                    for trace in traces:
                        _tell(ended, trace, by_id[trace.problem_id])
                yield number, traces
            waiting = declined

    def token_logprobs(self, traces: Sequence[Trace], temperature: float) -> list[list[float]]:
        """As `Sampler.token_logprobs`, asked of every actor: of each token what is farthest from their mean.

        So an actor that held another policy would show. One that is lost holds none, until it takes one with a task.
        """
        question = (0, "token_logprobs", self._handed_over(), traces, temperature)
        actors = self._all_actors()
        asked = [actor.work.options(max_task_retries=0).remote(*question) for actor in actors]
        answers = [answer for answer in cluster.present(asked) if answer is not None]
        if not answers:
            answers = cluster.ask_all(actors, _WHO, 0, "token_logprobs", self._policy_in_store(), traces, temperature)
        # Actors, traces and tokens to traces, tokens and actors.
        return [[_farthest(values) for values in zip(*rows, strict=True)] for rows in zip(*answers, strict=True)]

    def load(self, policy: Policy) -> None:
        """As `Sampler.load`; an actor takes the policy with its next task."""
        self.policy, self._stored = policy, None

    def close(self) -> None:
        """End the actors."""
        if self._broadcast is not None:
            self._broadcast.close()
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._stored = [], None

    def _handed_over(self) -> StoredPolicy:
        """The policy for a task; a new one is sent to all engines at once, if that is wanted and there are some."""
        wanted = self.policy.state.fingerprint
        if self._stored is not None and self._stored.fingerprint == wanted:
            return self._stored
        if self._broadcast is not None and (sent := self._broadcast.send(self._actors, self.policy)):
            self._stored = StoredPolicy(wanted, sent=sent)
            return self._stored
        return self._policy_in_store()

    def _policy_in_store(self) -> StoredPolicy:
        wanted, stored = self.policy.state.fingerprint, self._stored
        if stored is None or stored.fingerprint != wanted:
            stored = StoredPolicy(wanted)
        if not stored.held:
            # A copy: what trains on goes on changing its weights in place.
            stored = replace(stored, held=(self._ray.put(self.policy),))
        self._stored = stored
        return stored

    def _all_actors(self) -> list[Any]:
        if not self._actors:
            config = self.config
            needs = cluster.needs(config, config.tensor_parallel_size)
            remote = self._ray.remote(SamplingActor).options(
                max_restarts=-1, max_task_retries=cluster.TASK_RETRIES, **needs
            )
            self._actors = [remote.remote(config) for _ in range(_count(self._ray, config, needs))]
        return self._actors


def _arrived(policy: Policy, wanted: str) -> bool:
    """Whether a policy is the one wanted; what its adapter sits on is looked at as well."""
    base = policy.base
    if policy.state.fingerprint != wanted or (base is not None and base.fingerprint() != base.state.fingerprint):
        return False
    # A policy whose adapter has not been trained yet is the one beneath.
    same = base is not None and base.state.fingerprint == wanted and adds_nothing(policy.model)
    return same or policy.fingerprint() == wanted


def _tell(ended: Ended, trace: Trace, problem: Problem) -> None:
    """Tell somebody of a trace's solves that were not cut off."""
    for text, role, reason in zip(trace.attempts, trace.turn_roles, trace.finish_reasons, strict=True):
        if role == SOLVE and reason != LENGTH:
            ended(problem, text)


def _farthest(values: Sequence[float]) -> float:
    """The value that is farthest from the mean of all."""
    mean = sum(values) / len(values)
    return max(values, key=lambda value: abs(value - mean))


def _count(ray: Any, config: SampleConfig, needs: dict[str, float]) -> int:
    """How many actors to start.

    Raises:
        UserError: the cluster has no room for as many.
    """
    room, said = cluster.room(ray, needs)
    wanted = config.ray_samplers or room
    if not 1 <= wanted <= room:
        raise UserError(f"{max(1, wanted)} Ray samplers of {said}: lower --ray-samplers, --threads or --trainers")
    return wanted
