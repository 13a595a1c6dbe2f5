"""What to change where an update does not fit: each setting in order of its cost, with the value needed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from score_cli.doctor.memory import GRADIENT, REFERENCE, Job, budget, peak, phase_bytes, vllm_needs

# Of an adapter, where one is advised.
LORA_RANK = 32


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
    """For each kind of pass the largest power of two of tokens that fits, down to one trace."""
    changed: dict[str, Any] = {}
    for name, phase in (("micro_batch_tokens", GRADIENT), ("scoring_tokens", REFERENCE)):
        tokens = min(getattr(job.train, name), job.traces * job.longest)
        while tokens > job.longest and phase_bytes(job)[phase] > budget(job):
            tokens = 1 << ((tokens - 1).bit_length() - 1)
            changed[name] = tokens
            job = replace(job, train=replace(job.train, **changed))
    if changed:
        yield Change(_training(**changed), "smaller passes, a little slower", job)


def _recompute(job: Job) -> Iterator[Change]:
    """Activations computed again in the backward pass, which leaves the gradient as it is."""
    if not job.checkpointing:
        again = replace(job, train=replace(job.train, gradient_checkpointing=True))
        yield Change(_training(gradient_checkpointing="true"), "a third more computing in the gradient", again)


def _small_moments(job: Job) -> Iterator[Change]:
    """Moments of 8 bits."""
    if job.train.optimizer != "adam8bit":
        small = replace(job, train=replace(job.train, optimizer="adam8bit"))
        yield Change(_training(optimizer="adam8bit"), "rounded moments, and bitsandbytes", small)


def _adapter(job: Job) -> Iterator[Change]:
    """An adapter in place of all weights."""
    if job.adapter is None:
        small = replace(job, train=replace(job.train, lora_rank=LORA_RANK))
        rate = 10 * job.train.learning_rate
        settings = {"lora.rank": LORA_RANK} | _training(learning_rate=rate)
        yield Change(settings, "an adapter alone is trained, at a higher rate; needs peft", small)


def _training(**settings: Any) -> dict[str, Any]:
    return {f"{stage}.{name}": value for stage in ("train-stage1", "train-stage2") for name, value in settings.items()}


_STEPS: list[Callable[[Job], Iterator[Change]]] = [_smaller_passes, _less_vllm, _recompute, _small_moments, _adapter]
