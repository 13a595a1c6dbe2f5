"""One on-policy update: the gradient of a batch of traces, accumulated over micro-batches.

Shapes: M traces, A attempts, B traces of a micro-batch, C columns with sampled tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import Stage1Config, Stage2Config
from score_cli.tables.records import Trace
from score_cli.training import credit, losses
from score_cli.training.batching import MicroBatch, micro_batches
from score_cli.training.logprobs import batch_logprobs, sampled_columns


@dataclass
class AttemptSums:
    """Sums over the tokens of each attempt that take part, [M, A]; means come later."""

    kl: Tensor
    k3: Tensor
    full_kl: Tensor
    entropy: Tensor
    logprob_diff: Tensor
    logprob_diff_abs: Tensor
    tokens: Tensor

    @staticmethod
    def zeros(traces: int, attempts: int) -> "AttemptSums":
        """Nothing counted yet."""
        return AttemptSums(*(torch.zeros(traces, attempts) for _ in range(7)))


@dataclass
class StepStats:
    """What one update computed, for logging: advantages, returns and token sums, all [M, A]."""

    shaped: Tensor
    advantages: Tensor
    active: Tensor
    sums: AttemptSums
    has_full_kl: bool
    grad_norms_by_attempt: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """A batch as the update needs it.

    `rewards` [M, A] holds NaN where unscored; `groups` [M] numbers the problems;
    `other_engine` says that the sampler computes a little otherwise, which the weights correct.
    """

    traces: Sequence[Trace]
    rewards: Tensor
    groups: Tensor
    temperature: float
    other_engine: bool = False

    @property
    def active(self) -> Tensor:
        """[M, A] 1 where an attempt is scored and was sampled from this policy: what the loss is made of."""
        offline = torch.tensor([trace.offline_attempts for trace in self.traces])
        sampled = torch.arange(1, self.rewards.shape[1] + 1)[None] > offline[:, None]
        return (sampled & ~self.rewards.isnan()).float()


def shaped_rewards(config: Stage1Config | Stage2Config, rewards: Tensor) -> Tensor:
    """The stage's reward of each attempt, [M, A]."""
    if isinstance(config, Stage1Config):
        return credit.stage1_rewards(rewards)
    return credit.stage2_rewards(rewards, config.alpha, config.stagnation_penalty)


def kl_coefficients(config: Stage1Config | Stage2Config, attempts: int) -> Tensor:
    """The stage's KL coefficient of each attempt, [A]."""
    if isinstance(config, Stage1Config):
        return torch.tensor(credit.stage1_kl_coefficients(attempts, beta1=config.beta1, beta2=config.beta2))
    return torch.tensor(credit.stage2_kl_coefficients(attempts, beta1=config.beta1))


def accumulate_gradient(
    model: PreTrainedModel, reference: PreTrainedModel, inputs: TrainBatch, config: Stage1Config | Stage2Config
) -> StepStats:
    """Add the gradient of the stage's loss to `model`'s parameters.

    The loss is the mean over traces of minus the sum over tokens of advantage times logprob, plus,
    with `kl="full"`, the KL terms. Micro-batches change the order of additions, nothing else.

    Returns:
        What was computed on the way.
    """
    active = inputs.active
    attempts = active.shape[1]
    coefficients = kl_coefficients(config, attempts)
    sums = AttemptSums.zeros(*active.shape)
    batches = list(micro_batches(inputs.traces, config.micro_batch_tokens, model.device))
    shaped = shaped_rewards(config, inputs.rewards)
    reference_logprobs: list[Tensor] = []
    penalised = shaped
    if config.kl == "sampled":
        reference_logprobs = [_token_logprobs(reference, batch, inputs.temperature) for batch in batches]
        log_ratios = torch.zeros_like(shaped)
        for batch, known in zip(batches, reference_logprobs, strict=True):
            columns = sampled_columns(batch)
            masks = losses.attempt_masks(batch.attempt_ids[:, columns], attempts)
            # Our own sampler's logprobs are the policy's, since a batch has one step; another's need a pass of ours.
            own = batch.sampler_logprobs[:, columns]
            if inputs.other_engine:
                own = _token_logprobs(model, batch, inputs.temperature)
            ratio = own - known
            log_ratios[batch.rows] = losses.sum_by_attempt(ratio, masks).to(log_ratios)
        penalised = shaped - coefficients * log_ratios
    # What this policy did not sample, or nobody scored, is nobody's sibling either.
    values = credit.returns(penalised, config.discount).masked_fill(active == 0, torch.nan)
    update = StepStats(
        shaped=shaped,
        advantages=credit.advantages(values, inputs.groups, inputs.rewards, config.baseline),
        active=active,
        sums=sums,
        has_full_kl=config.kl == "full",
    )
    count = max(1.0, active.amax(1).sum().item())
    gradients = _Gradients(model, attempts if config.log_grad_norm_by_attempt else 1)
    for index, batch in enumerate(batches):
        known_reference = reference_logprobs[index] if reference_logprobs else None
        by_attempt = _micro_loss(model, reference, batch, inputs, config, update, coefficients, known_reference) / count
        gradients.add(by_attempt)
    update.grad_norms_by_attempt = gradients.finish()
    return update


def _token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """[B, C] logprobs of the batch's tokens, without gradient."""
    with torch.no_grad():
        return batch_logprobs(model, batch, sampled_columns(batch), temperature).logprobs


def _micro_loss(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batch: MicroBatch,
    inputs: TrainBatch,
    config: Stage1Config | Stage2Config,
    update: StepStats,
    coefficients: Tensor,
    reference_logprobs: Tensor | None,
) -> Tensor:
    """The summed loss of a micro-batch, one entry an attempt: [A]. Fills the update's token sums."""
    columns = sampled_columns(batch)
    device = model.device
    active = update.active[batch.rows].to(device)
    masks = losses.attempt_masks(batch.attempt_ids[:, columns], active.shape[1]) * active[:, :, None]
    sampler = batch.sampler_logprobs[:, columns]
    scores = batch_logprobs(model, batch, columns, inputs.temperature, whole=config.kl == "full", entropy=True)
    weights = None
    if inputs.other_engine:
        weights = losses.importance_weights(scores.logprobs, sampler, config.importance_sampling_cap)
    loss = losses.policy_gradient_loss(scores.logprobs, update.advantages[batch.rows].to(device), masks, weights)
    divergence = None
    if config.kl == "full":
        with torch.no_grad():
            known = batch_logprobs(reference, batch, columns, inputs.temperature, whole=True)
        assert scores.distribution is not None and known.distribution is not None
        divergence = losses.full_kl(scores.distribution, known.distribution)
        reference_logprobs = known.logprobs
        loss = loss + losses.kl_loss(divergence, masks, coefficients.to(device))
    assert reference_logprobs is not None and scores.entropy is not None
    with torch.no_grad():
        own = scores.logprobs
        _record(update.sums, "kl", batch, own - reference_logprobs, masks)
        _record(update.sums, "k3", batch, losses.k3(own, reference_logprobs), masks)
        _record(update.sums, "entropy", batch, scores.entropy, masks)
        _record(update.sums, "logprob_diff", batch, own - sampler, masks)
        _record(update.sums, "logprob_diff_abs", batch, (own - sampler).abs(), masks)
        _record(update.sums, "tokens", batch, torch.ones_like(own), masks)
        if divergence is not None:
            _record(update.sums, "full_kl", batch, divergence.detach(), masks)
    return loss


def _record(sums: AttemptSums, name: str, batch: MicroBatch, values: Tensor, masks: Tensor) -> None:
    held: Tensor = getattr(sums, name)
    held[batch.rows] = losses.sum_by_attempt(values, masks).to(held)


class _Gradients:
    """Adds up gradients over micro-batches, by attempt where their norms are wanted."""

    def __init__(self, model: PreTrainedModel, parts: int) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._parts = [[torch.zeros_like(p) for p in self._parameters] for _ in range(parts)] if parts > 1 else []

    def add(self, losses_by_attempt: Tensor) -> None:
        if not self._parts:
            losses_by_attempt.sum().backward()
            return
        for index, part in enumerate(self._parts):
            more = index < len(self._parts) - 1
            found = torch.autograd.grad(losses_by_attempt[index], self._parameters, retain_graph=more)
            torch._foreach_add_(part, list(found))

    def finish(self) -> list[float]:
        """Leave the sum in the parameters' `.grad`; return the norm of each part."""
        for place, parameter in enumerate(self._parameters):
            for part in self._parts:
                parameter.grad = part[place] if parameter.grad is None else parameter.grad + part[place]
        return [torch.nn.utils.get_total_norm(part).item() for part in self._parts]
