"""The method on one screen: sample, grade, update, refresh. Everything here is records in memory.

`run.py` puts files around this loop; the commands take one of its steps each. From a notebook:

    from score_cli import Grader, Loop, Sampler, Trainer, load_policy, run_updates
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from score_cli.errors import JobError
from score_cli.sampling.offline import OfflineAttempts
from score_cli.sampling.sampler import SampleJob, Sampler
from score_cli.stopwatch import Stopwatch
from score_cli.tables.records import Problem, Signal, Trace, Verdict
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader, check_unscored

PROBE_TRACES = 8


class Signaller(Protocol):
    """Who says something of traces that is no verdict, and that `[pay]` may pay for."""

    def signals(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> Sequence[Signal]:
        """One signal a trace, in their order."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a phase of training works with.

    Attributes:
        problems: to train on; every update draws `sampler.config.problems_per_iteration` of them.
        attempts: of a trace; the sampler's own setting if left out.
        offline: first attempts that `offline_share` of each problem's samples go on from.
        signaller: makes what `[pay]` reads beside verdicts, with a policy that is never trained.
        watch: tells sampling, grading, learning, handing the policy over and the journal's writing apart.
    """

    sampler: Sampler
    grader: Grader
    trainer: Trainer
    problems: Sequence[Problem]
    attempts: int | None = None
    offline: OfflineAttempts | None = None
    offline_share: float | None = None
    signaller: Signaller | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)


class Journal(Protocol):
    """Who keeps what an update made; by default nobody."""

    def sampled(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> None:
        """Take the traces of an update and their verdicts, before anything is learned from them."""

    def signalled(self, signals: Sequence[Signal]) -> None:
        """Take the signals of the traces taken last; only a loop with a signaller has any."""

    def updated(self, trainer: Trainer) -> None:
        """Take the policy after an update, proved to be the one that is sampled from next."""


class _Nobody:
    def sampled(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> None:
        """Nothing is kept."""

    def signalled(self, signals: Sequence[Signal]) -> None:
        """Nothing is kept."""

    def updated(self, trainer: Trainer) -> None:
        """Nothing is kept."""


NOBODY: Journal = _Nobody()


def run_updates(loop: Loop, last: int, journal: Journal = NOBODY) -> None:
    """Update the trainer's policy until it has had `last` updates.

    Raises:
        UserError: a problem cannot be asked of this policy.
        JobError: too much could not be graded, or a policy is not the one it should be; the weights stay as they were.
    """
    sampler, grader, trainer, watch = loop.sampler, loop.grader, loop.trainer, loop.watch
    by_id = {problem.problem_id: problem for problem in loop.problems}
    probe: list[Trace] = []
    watch.take()
    for iteration in range(trainer.policy.state.iteration, last):
        # x1 -> y1 -> x2 -> y2, sampled from the policy as it is now; x2 asks to correct any y1, right or wrong.
        job = sampler.plan_iteration(loop.problems, iteration, loop.attempts, loop.offline, loop.offline_share)
        # Programs are graded as they end, in other processes, while the rest is sampled.
        traces = sampler.run(job, grader.begin)
        watch.lap("sample")
        # r(y, y*) of every attempt. The policy never sees a verdict.
        verdicts = grader.grade(traces, by_id)
        watch.lap("verify")
        journal.sampled(job, traces, verdicts)
        watch.lap("write")
        signals: Sequence[Signal] = ()
        if loop.signaller is not None:
            signals = loop.signaller.signals(traces, by_id)
            watch.lap("signal")
            journal.signalled(signals)
            watch.lap("write")
        if trainer.pay.reads_rewards:
            check_unscored(verdicts, grader.config.unscored_limit, grader.reasons)
        # Rewards -> shaped rewards (Eq. 3 or 4) -> minus KL to the reference -> minus a baseline: advantages.
        batch = trainer.prepare(
            traces,
            verdicts,
            temperature=job.config.temperature,
            other_engine=sampler.engine_name != "transformers",
            signals=signals,
        )
        # Minus the sum over tokens of advantage x logprob, mean over traces. On policy: no ratio, no clip.
        stats = trainer.forward_backward(batch)
        # On policy by proof: the trainer gives these tokens the logprobs that they were sampled with.
        trainer.check_batch_is_on_policy(stats)
        # One step a batch: a second would already be off policy.
        trainer.optim_step()
        watch.lap("train")
        sampler.load(trainer.policy)
        probe = probe or choose_probe(traces)
        check_logprobs_match(trainer, sampler, probe, job.config.temperature)
        watch.lap("refresh")
        journal.updated(trainer)


def choose_probe(traces: Sequence[Trace]) -> list[Trace]:
    """A few traces to compare policies on, each of another problem as far as there are so many."""
    firsts: dict[str, Trace] = {}
    for trace in traces:
        firsts.setdefault(trace.problem_id, trace)
    return list(firsts.values())[:PROBE_TRACES]


def check_logprobs_match(trainer: Trainer, sampler: Sampler, probe: Sequence[Trace], temperature: float) -> None:
    """Check that the sampler holds the policy that the trainer has just made.

    Raises:
        JobError: their logprobs of the probe's tokens differ by more than rounding.
    """
    ours = trainer.token_logprobs(probe, temperature)
    theirs = sampler.token_logprobs(probe, temperature)
    differences = [
        abs(a - b)
        for trace, own, other in zip(probe, ours, theirs, strict=True)
        for a, b, attempt in zip(own, other, trace.attempt_ids.tolist(), strict=True)
        if attempt > 0
    ]
    difference = sum(differences) / len(differences)
    if not difference <= trainer.logprob_tolerance:
        raise JobError(
            f"after the update, sampler and trainer logprobs differ by {difference:.2g} nats a token "
            f"(limit {trainer.logprob_tolerance:g}): the sampler holds another policy"
        )
