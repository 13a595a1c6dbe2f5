"""The policy proof of a run: after every update, sampler and trainer must give the same tokens the same logprobs."""

from collections.abc import Sequence

from score_cli.errors import JobError
from score_cli.sampling.engine import Engine
from score_cli.tables.records import Trace
from score_cli.training.trainer import Trainer

PROBE_TRACES = 8


def choose_probe(traces: Sequence[Trace]) -> list[Trace]:
    """A few traces to prove policies on, each of another problem as far as there are so many."""
    firsts: dict[str, Trace] = {}
    for trace in traces:
        firsts.setdefault(trace.problem_id, trace)
    return list(firsts.values())[:PROBE_TRACES]


def check_logprobs_match(trainer: Trainer, engine: Engine, probe: list[Trace], temperature: float) -> None:
    """Check that the sampler holds the policy that the trainer has just made.

    Raises:
        JobError: their logprobs of the probe's tokens differ by more than rounding.
    """
    ours = trainer.token_logprobs(probe, temperature)
    theirs = engine.score([trace.token_ids.tolist() for trace in probe], temperature)
    gaps = [
        abs(a - b)
        for trace, own, other in zip(probe, ours, theirs, strict=True)
        for a, b, owner in zip(own, other, trace.attempt_ids.tolist(), strict=True)
        if owner > 0
    ]
    gap = sum(gaps) / len(gaps)
    if not gap <= trainer.logprob_tolerance:
        raise JobError(
            f"policy proof failed: after the update, sampler and trainer logprobs differ by {gap:.2g} nats a token "
            f"(limit {trainer.logprob_tolerance:g}): the sampler holds another policy"
        )
