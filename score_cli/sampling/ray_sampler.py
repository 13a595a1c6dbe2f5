"""Sampling on a Ray cluster: plain actors with an engine each, chunks of problems as their tasks.

A chunk's traces depend on the policy, the settings and the problems in it alone, so it does not matter which actor
samples it, nor how often: a task whose actor died is done again. Every task says which policy it is for. An actor that
Ray has started anew holds none, and takes it from the object store before it samples a token.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.sampling.engine import TRANSFORMERS, engine_name
from score_cli.sampling.given import Given
from score_cli.sampling.offline import OfflineAttempts
from score_cli.sampling.sampler import Ended, SampleJob, Sampler
from score_cli.tables import cluster
from score_cli.tables.checkpoints import Policy, fingerprint
from score_cli.tables.device import setup_device
from score_cli.tables.records import SOLVE, Problem, Trace
from score_cli.tables.schemas import LENGTH

_WHO = "sampler"


@dataclass(frozen=True)
class StoredPolicy:
    """A policy in the object store.

    Attributes:
        held: its reference, wrapped so that Ray hands it on instead of what it stands for.
    """

    fingerprint: str
    held: tuple[Any]


class SamplingActor(cluster.Actor):
    """A sampler in a process of its own; which policy it holds is decided task by task."""

    def __init__(self, config: SampleConfig) -> None:
        # The actor samples by itself, whatever the driver was told.
        self._config = replace(config, ray=None)
        self._sampler: Sampler | None = None

    def sample(
        self,
        policy: StoredPolicy,
        problems: Sequence[Problem],
        config: SampleConfig,
        offline: OfflineAttempts | None,
        given: Given | None,
    ) -> list[Trace]:
        """The traces of a chunk."""
        sampler, config = self._holding(policy), replace(config, ray=None)
        job = sampler.plan(problems, config, offline) if given is None else sampler.plan_given(given, config)
        return sampler.sample_chunk(job, range(len(problems)))

    def token_logprobs(self, policy: StoredPolicy, traces: Sequence[Trace], temperature: float) -> list[list[float]]:
        """As `Sampler.token_logprobs`."""
        return self._holding(policy).token_logprobs(traces, temperature)

    def _holding(self, wanted: StoredPolicy) -> Sampler:
        """The sampler, once it holds the policy that a task is for.

        Raises:
            JobError: the weights that came are not those that were sent.
        """
        ray = importlib.import_module("ray")
        device = setup_device(self._config)
        if self._sampler is None or self._sampler.policy.state.fingerprint != wanted.fingerprint:
            policy: Policy = ray.get(wanted.held[0])
            if fingerprint(policy.model) != wanted.fingerprint:
                raise JobError("a policy did not reach a Ray actor as it was sent: run the command again")
            if engine_name(self._config) == TRANSFORMERS:
                policy.model.to(device)
            if self._sampler is None:
                self._sampler = Sampler(self._config, policy)
            else:
                self._sampler.load(policy)
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
        policy, rows_of = self._policy_in_store(), dict(chunks)

        def arguments(number: int) -> tuple[Any, ...]:
            rows = rows_of[number]
            problems = [job.problems[row] for row in rows]
            offline = None if job.offline is None else job.offline.of(problems)
            given = None if job.given is None else job.given.of(rows)
            return policy, problems, config, offline, given

        by_id = {problem.problem_id: problem for problem in job.problems}
        for number, traces in cluster.spread(self._all_actors(), "sample", rows_of, arguments, _WHO):
            if ended is not None:
                for trace in traces:
                    _tell(ended, trace, by_id[trace.problem_id])
            yield number, traces

    def token_logprobs(self, traces: Sequence[Trace], temperature: float) -> list[list[float]]:
        """As `Sampler.token_logprobs`, asked of every actor: of each token what is farthest from their mean.

        So an actor that held another policy would show. One that is lost holds none, until it takes one with a task.
        """
        question = (0, "token_logprobs", self._policy_in_store(), traces, temperature)
        actors = self._all_actors()
        answers = cluster.present([actor.work.options(max_task_retries=0).remote(*question) for actor in actors])
        if not answers:
            answers = cluster.ask_all(actors, _WHO, *question)
        # Actors, traces and tokens to traces, tokens and actors.
        return [[_farthest(values) for values in zip(*rows, strict=True)] for rows in zip(*answers, strict=True)]

    def load(self, policy: Policy) -> None:
        """As `Sampler.load`; an actor takes the policy with its next task."""
        self.policy, self._stored = policy, None

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._stored = [], None

    def _policy_in_store(self) -> StoredPolicy:
        if self._stored is None or self._stored.fingerprint != self.policy.state.fingerprint:
            # A copy: what trains on goes on changing its weights in place.
            self._stored = StoredPolicy(self.policy.state.fingerprint, (self._ray.put(self.policy),))
        return self._stored

    def _all_actors(self) -> list[Any]:
        if not self._actors:
            config = self.config
            needs = cluster.needs(config, config.tensor_parallel_size)
            remote = self._ray.remote(SamplingActor).options(
                max_restarts=-1, max_task_retries=cluster.TASK_RETRIES, **needs
            )
            self._actors = [remote.remote(config) for _ in range(_count(self._ray, config, needs))]
        return self._actors


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
