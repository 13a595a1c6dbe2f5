"""What to change where an update does not fit: each setting in order of its cost, with the value needed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from score_cli.doctor.memory import Job, budget, peak, vllm_needs


class Change(NamedTuple):
    """Settings with their new values, what they cost, and the job with them."""

    settings: dict[str, Any]
    cost: str
    job: Job


def advise(job: Job) -> list[Change]:
    """Changes, one on top of the other, up to the first that makes the job fit; none where it fits as it is.

    Where all of them together do not help, the last one's job does not fit either.
    """
    found: list[Change] = []
    for step in _STEPS:
        if peak(job).bytes <= budget(job):
            break
        for change in step(job):
            if peak(change.job).bytes - budget(change.job) < peak(job).bytes - budget(job):
                found.append(change)
                job = change.job
    return found


def _less_vllm(job: Job) -> Iterator[Change]:
    """Give vLLM no more than it needs, where that is less than it has."""
    if not job.vllm:
        return
    share = -(-vllm_needs(job) * 100 // job.card.memory) / 100
    if share < job.sample.gpu_memory_utilization:
        sample = replace(job.sample, gpu_memory_utilization=share)
        yield Change(
            {"sample.gpu_memory_utilization": share, "eval.gpu_memory_utilization": share},
            "fewer traces sampled at a time",
            replace(job, sample=sample),
        )


def _smaller_passes(job: Job) -> Iterator[Change]:
    """The largest power of two of tokens a pass that fits, down to one trace."""
    tokens = job.train.micro_batch_tokens
    if tokens <= job.longest:
        return
    smaller = job
    while tokens > job.longest and peak(smaller).bytes > budget(smaller):
        tokens = 1 << ((tokens - 1).bit_length() - 1)
        smaller = replace(job, train=replace(job.train, micro_batch_tokens=tokens))
    yield Change(_training(micro_batch_tokens=tokens), "smaller passes, a little slower", smaller)


def _small_moments(job: Job) -> Iterator[Change]:
    """Moments of 8 bits."""
    if job.train.optimizer != "adam8bit":
        small = replace(job, train=replace(job.train, optimizer="adam8bit"))
        yield Change(_training(optimizer="adam8bit"), "rounded moments, and bitsandbytes", small)


def _training(**settings: Any) -> dict[str, Any]:
    return {f"{stage}.{name}": value for stage in ("train-stage1", "train-stage2") for name, value in settings.items()}


_STEPS: list[Callable[[Job], Iterator[Change]]] = [_smaller_passes, _less_vllm, _small_moments]
