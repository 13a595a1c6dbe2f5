"""One on-policy step: what is known of a batch before its gradient, and the gradient, micro-batch by micro-batch.

Shapes: M traces, A attempts, B traces of a micro-batch, P positions with sampled tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import Baseline, Stage1Config, Stage2Config
from score_cli.tables.adapters import only_adapter_learns
from score_cli.tables.device import computes_in_bfloat16, trim_heap
from score_cli.tables.processes import ALONE, Share
from score_cli.tables.records import SOLVE, Signal, Trace, Verdict
from score_cli.tables.schemas import UNGRADED
from score_cli.tasks.pay import Pay
from score_cli.training import credit, losses
from score_cli.training.batching import MicroBatch, empty_batch, micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import TokenLoss, add_gradient, trace_logprobs
from score_cli.training.pay import Paid, Roles, stage1_pay, stage2_pay
from score_cli.training.pay import shaped_rewards as pay_shaped

StageConfig = Stage1Config | Stage2Config


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """Traces with everything that is constant while their gradient is taken.

    Attributes:
        rewards: [M, A] as verified, NaN where unscored.
        groups: [M] numbers of groups that are compared, see `group_numbers`.
        trainable: [M, A] 1 where an attempt is scored and was sampled from this policy: what the loss is made of.
        shaped_rewards: [M, A] the stage's rewards, before KL.
        advantages: [M, A] returns minus baseline, 0 where not trainable.
        reward_advantages: [M, A] the same of the shaped rewards alone, without KL.
        kl_coefficients: [A] of this stage.
        micro_batches: the traces as padded tensors; every trace is in one of them.
        reference_logprobs: [B, P] a micro-batch, where KL is sampled; none where it is taken over the vocabulary.
        token_advantages: [B, A, P] a micro-batch, where KL is sampled: a token is not charged with KL before it.
        temperature: that the traces were sampled at.
        other_engine: the sampler computes a little otherwise than the trainer, as another engine does and our own does
            in bfloat16; importance weights correct it.
        verdicts: what the rewards come from, for logging; signals: what else was paid, for the same.
    """

    traces: Sequence[Trace]
    rewards: Tensor
    groups: Tensor
    trainable: Tensor
    shaped_rewards: Tensor
    advantages: Tensor
    reward_advantages: Tensor
    kl_coefficients: Tensor
    micro_batches: list[MicroBatch]
    reference_logprobs: list[Tensor]
    token_advantages: list[Tensor]
    temperature: float
    other_engine: bool
    verdicts: Sequence[Verdict] = ()
    signals: Sequence[Signal] = ()

    def to(self, device: torch.device | str) -> "TrainBatch":
        """The same with what is known of micro-batches on another device."""
        return replace(
            self,
            micro_batches=[batch.to(device) for batch in self.micro_batches],
            reference_logprobs=[values.to(device) for values in self.reference_logprobs],
            token_advantages=[values.to(device) for values in self.token_advantages],
        )

    @property
    def count(self) -> float:
        """Traces that take part: the loss is a mean over them."""
        return max(1.0, self.trainable.amax(1).sum().item())


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
    def zeros(traces: int, attempts: int, device: torch.device) -> "AttemptSums":
        """Nothing counted yet."""
        return AttemptSums(*torch.zeros(7, traces, attempts, device=device))

    def of_all(self, share: Share) -> "AttemptSums":
        """With those of other processes, where whoever reads them is: a GPU is waited for once."""
        return AttemptSums(*share.add_up(torch.stack([getattr(self, each.name) for each in fields(self)])).cpu())

    def record(self, name: str, batch: MicroBatch, values: Tensor, masks: Tensor) -> None:
        """Sum a micro-batch's [B, P] values by attempt into its rows."""
        held: Tensor = getattr(self, name)
        held[batch.rows] = losses.sum_by_attempt(values, masks).to(held)


@dataclass
class StepStats:
    """What was measured on the way to the gradient, for logging and for the check that the batch is on policy."""

    sums: AttemptSums
    has_full_kl: bool
    grad_norms_by_attempt: list[float] = field(default_factory=list)

    @property
    def logprob_diff(self) -> float:
        """Mean absolute difference between the trainer's and the sampler's logprob of a token, nats."""
        return self._mean(self.sums.logprob_diff_abs)

    @property
    def entropy(self) -> float:
        """Mean entropy of the distributions that the tokens were sampled from, nats."""
        return self._mean(self.sums.entropy)

    def _mean(self, sums: Tensor) -> float:
        return sums.sum().item() / max(1.0, self.sums.tokens.sum().item())


@dataclass(frozen=True, kw_only=True)
class _Credit:
    """How a batch's rewards become returns, and returns advantages; [M, A], or [M, A, T] by token.

    Attributes:
        kinds: what a state is told by, see `credit.state_kinds`; the attempt before if left out.
    """

    discount: float
    baseline: Baseline
    rewards: Tensor
    groups: Tensor
    trainable: Tensor
    present: Tensor
    kinds: Tensor | None

    def returns(self, values: Tensor) -> Tensor:
        """What this policy did not sample, or nobody scored, is NaN: nobody's sibling either."""
        return credit.returns(values, self.discount).masked_fill(self.trainable == 0, torch.nan)

    def advantages(self, returns: Tensor) -> Tensor:
        """Returns minus their baseline."""
        return credit.advantages(
            returns, self.groups, self.rewards, self.baseline, present=self.present, kinds=self.kinds
        )


def prepare(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    traces: Sequence[Trace],
    rewards: Tensor,
    config: StageConfig,
    *,
    temperature: float = 1.0,
    other_engine: bool = False,
    unmoved: bool = False,
    verdicts: Sequence[Verdict] = (),
    signals: Sequence[Signal] = (),
    logprobs: Callable[..., Tensor] = trace_logprobs,
) -> TrainBatch:
    """Turn traces and their rewards into advantages, on all traces at once: a baseline needs a problem's siblings.

    Args:
        rewards: [M, A], NaN where unscored, and past the end of a trace that has fewer turns than others.
        unmoved: the policy is still its reference, so that log-ratios are rounding alone. Where rewards give no
            advantage they would be all there is, and Adam's first step makes any gradient as large as any other.
        verdicts: what the rewards come from; traces of a script need them.
        signals: one a trace, where the pay reads them. The baseline is then the leave-one-out mean, whatever the
            settings say: another one would look at rewards.
        logprobs: in place of `trace_logprobs`, where a model lies in several processes.
    """
    # In bfloat16 a token decoded by itself and one of a whole conversation are rounded otherwise.
    other_engine = other_engine or computes_in_bfloat16(model)
    present = turns_present(traces, rewards.shape[1])
    roles = [trace.turn_roles for trace in traces]
    pay = pay_of(config)
    by_name = {signals[0].name: signal_matrix(signals, rewards)} if signals else {}
    shaped = shaped_rewards(config, rewards, roles, verdicts, by_name)
    trainable = _trainable(traces, rewards, present, verdicts, pay=pay, shaped=shaped)
    # Among solves alone, a state is told by the attempt before; a script's turns look at all that was before them.
    scripted = any(trace.roles is not None for trace in traces)
    rule = _Credit(
        discount=config.discount,
        baseline="leave-one-out" if pay.signals else config.baseline,
        rewards=rewards,
        groups=group_numbers(traces),
        trainable=trainable,
        present=present,
        kinds=credit.state_kinds(rewards, roles) if scripted else None,
    )
    advantages = rule.advantages(rule.returns(shaped))
    batch = TrainBatch(
        traces=traces,
        rewards=rewards,
        groups=rule.groups,
        trainable=trainable,
        shaped_rewards=shaped,
        advantages=advantages,
        reward_advantages=advantages,
        kl_coefficients=kl_coefficients(config, rewards.shape[1]),
        micro_batches=list(micro_batches(traces, config.micro_batch_tokens, model.device)),
        reference_logprobs=[],
        token_advantages=[],
        temperature=temperature,
        other_engine=other_engine,
        verdicts=verdicts,
        signals=signals,
    )
    if config.kl != "sampled":
        return batch
    known = logprobs(reference, traces, temperature, config.scoring_tokens)
    # Our own sampler's logprobs are the policy's, since a batch has one step; another engine's need a pass.
    own = logprobs(model, traces, temperature, config.scoring_tokens) if other_engine else None
    return _charged_with_kl(batch, rule, known, own, unmoved=unmoved)


def _charged_with_kl(
    batch: TrainBatch, rule: _Credit, known: Tensor, own: Tensor | None, *, unmoved: bool
) -> TrainBatch:
    """The batch with KL in its rewards: minus coefficient x log-ratio of the tokens that were sampled.

    Args:
        known: the reference's logprobs at the traces' tokens; own: the policy's, the sampler's if left out.
    """
    shaped, coefficients = batch.shaped_rewards, batch.kl_coefficients
    attempts = shaped.shape[1]
    reference_logprobs = [known[micro.rows][:, micro.positions] for micro in batch.micro_batches]
    log_ratios = _log_ratios(batch.traces, attempts, batch.micro_batches, reference_logprobs, own).to(shaped)
    if unmoved and not batch.reward_advantages.any():
        log_ratios = torch.zeros_like(log_ratios)
    returns = rule.returns(shaped - coefficients * log_ratios.sum(-1))
    by_token = rule.advantages(credit.token_returns(returns, log_ratios, coefficients))
    token_advantages = []
    for micro in batch.micro_batches:
        masks = losses.attempt_masks(micro.sampled_attempt_ids, attempts)
        token_advantages.append(losses.at_positions(by_token[micro.rows].to(masks.device), masks))
    return replace(
        batch,
        advantages=by_token[..., 0],
        reference_logprobs=reference_logprobs,
        token_advantages=token_advantages,
    )


def forward_backward(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batch: TrainBatch,
    config: StageConfig,
    share: Share = ALONE,
) -> StepStats:
    """Add the gradient of the stage's loss to `model`'s parameters.

    The loss is the mean over traces of minus the sum over tokens of advantage times logprob, plus,
    with `kl="full"`, the KL terms. Micro-batches change the order of additions, nothing else.

    Args:
        share: of the micro-batches, where other processes take the rest over parts of the same model.
    """
    traces, attempts = batch.trainable.shape
    sums = AttemptSums.zeros(traces, attempts, model.device)
    with only_adapter_learns(model):
        gradients = Gradients(model, attempts if config.log_grad_norm_by_attempt else 1)
        head = Head(model, checkpointing=config.gradient_checkpointing)
        known = Head(reference) if config.kl == "full" else None
        for number in share.own(range(len(batch.micro_batches))):
            if number is None:
                take_part(head, known, gradients, attempts)
                continue
            # On policy: every token was sampled from the weights being updated, so there is no ratio and no clip.
            _add_gradient(head, known, batch, number, config, gradients, sums)
    norms = gradients.finish()
    trim_heap(model)
    return StepStats(sums.of_all(share), has_full_kl=config.kl == "full", grad_norms_by_attempt=norms)


def reward_matrix(verdicts: Sequence[Verdict], *, ragged: bool = False) -> Tensor:
    """[M, A] rewards, NaN where unscored.

    Args:
        ragged: traces may differ in their number of turns, as a script's do; NaN past their ends too.
    Raises:
        ValueError: the verdicts are of different numbers of attempts.
    """
    widths = sorted({len(verdict.rewards) for verdict in verdicts})
    if len(widths) != 1 and not ragged:
        raise ValueError(f"traces of {widths} attempts are mixed, expected one number: train on one at a time")
    rows = [[math.nan if value is None else value for value in verdict.rewards] for verdict in verdicts]
    return torch.tensor([[*row, *[math.nan] * (widths[-1] - len(row))] for row in rows])


def signal_matrix(signals: Sequence[Signal], rewards: Tensor) -> Tensor:
    """[M, A] values of a signal as the rewards stand; NaN where a turn has none."""
    found = torch.full_like(rewards, torch.nan)
    for row, signal in enumerate(signals):
        values = [math.nan if value is None else value for value in signal.values]
        found[row, : len(values)] = torch.tensor(values, dtype=rewards.dtype)
    return found


def turns_present(traces: Sequence[Trace], turns: int) -> Tensor:
    """[M, turns] whether a trace has a turn."""
    counts = torch.tensor([len(trace.attempts) for trace in traces])
    return torch.arange(turns)[None] < counts[:, None]


def group_numbers(traces: Sequence[Trace]) -> Tensor:
    """[M] numbers of groups, in order of appearance: traces of one problem that begin with the same tokens.

    Those are all traces of a problem, but for critiques: each is compared with others of the same solve.
    """
    numbers: dict[tuple[str, bytes], int] = {}
    keys = [(trace.problem_id, _prompt(trace)) for trace in traces]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _prompt(trace: Trace) -> bytes:
    """The tokens before a trace's first turn."""
    return trace.token_ids[: int(np.argmax(trace.attempt_ids > 0))].tobytes()


def shaped_rewards(
    config: StageConfig,
    rewards: Tensor,
    roles: Roles | None = None,
    verdicts: Sequence[Verdict] = (),
    signals: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The stage's reward of each attempt, [M, A].

    Args:
        roles: of each trace's turns; all are solves if left out.
        verdicts: what the rewards come from; some sources of pay need them, and some need signals.
    """
    roles = [[SOLVE] * rewards.shape[1]] * len(rewards) if roles is None else roles
    return pay_shaped(pay_of(config), Paid(rewards, roles, [verdict.verdicts for verdict in verdicts], signals or {}))


def pay_of(config: StageConfig) -> Pay:
    """What a stage pays: Eq. 3 or Eq. 4, or what the recipe says in place of the latter."""
    if isinstance(config, Stage1Config):
        return stage1_pay()
    if config.pay is not None:
        return config.pay
    return stage2_pay(config.alpha, config.stagnation_penalty)


def kl_coefficients(config: StageConfig, attempts: int) -> Tensor:
    """The stage's KL coefficient of each attempt, [A]."""
    if isinstance(config, Stage1Config):
        return torch.tensor(credit.stage1_kl_coefficients(attempts, beta1=config.beta1, beta2=config.beta2))
    return torch.tensor(credit.stage2_kl_coefficients(attempts, beta1=config.beta1))


def _trainable(
    traces: Sequence[Trace],
    rewards: Tensor,
    present: Tensor,
    verdicts: Sequence[Verdict],
    *,
    pay: Pay,
    shaped: Tensor,
) -> Tensor:
    offline = torch.tensor([trace.offline_attempts for trace in traces])
    sampled = torch.arange(1, rewards.shape[1] + 1)[None] > offline[:, None]
    if not pay.reads_rewards:
        return (sampled & present & ~shaped.isnan()).float()
    if pay.signals:  # of a revision that nobody could grade there is none
        sampled = sampled & ~shaped.isnan()
    # Turns that claim nothing have no reward of their own, and may be paid for what comes of them.
    names = [[*verdict.verdicts, *[""] * (rewards.shape[1] - len(verdict.verdicts))] for verdict in verdicts]
    ungraded = torch.tensor([[name == UNGRADED for name in row] for row in names]) if names else torch.tensor(False)
    return (sampled & present & (ungraded | ~rewards.isnan())).float()


def _log_ratios(
    traces: Sequence[Trace],
    attempts: int,
    batches: Sequence[MicroBatch],
    reference_logprobs: Sequence[Tensor],
    own: Tensor | None,
) -> Tensor:
    """[M, A, T] policy minus reference logprob of each attempt's tokens, 0 after its last.

    Args:
        own: [M, ...] the policy's logprobs at the traces' tokens; the sampler's if left out.
    """
    longest = max(int(np.bincount(trace.attempt_ids)[1:].max()) for trace in traces)
    found = reference_logprobs[0].new_zeros(len(traces), attempts, longest)
    for batch, known in zip(batches, reference_logprobs, strict=True):
        masks = losses.attempt_masks(batch.sampled_attempt_ids, attempts)
        ours = batch.sampler_logprobs if own is None else own[batch.rows]
        found[batch.rows] = losses.by_token_number(ours[:, batch.positions] - known, masks, longest).to(found)
    return found


def take_part(head: Head, reference: Head | None, gradients: Gradients, attempts: int = 1) -> None:
    """Go through the passes of a micro-batch without a token, for other processes gather the weights of theirs."""
    batch = empty_batch(attempts, head.model.device)
    add_gradient(head, batch, 1.0, lambda tokens: tokens.logprobs, gradients, reference=reference)


def _add_gradient(
    head: Head,
    reference: Head | None,
    batch: TrainBatch,
    number: int,
    config: StageConfig,
    gradients: Gradients,
    sums: AttemptSums,
) -> None:
    """Add the gradient of a micro-batch's loss, and what is measured on the way to the sums."""
    micro = batch.micro_batches[number]
    device = micro.token_ids.device
    trainable = batch.trainable[micro.rows].to(device)
    masks = losses.attempt_masks(micro.sampled_attempt_ids, trainable.shape[1]) * trainable[:, :, None]
    sampler = micro.sampler_logprobs[:, micro.positions]
    if batch.token_advantages:
        advantages = batch.token_advantages[number]
    else:
        advantages = batch.advantages[micro.rows].to(device)[:, :, None].expand_as(masks)
    # A token stands by itself in the loss: [A, B * P].
    each_mask, each_advantage = (values.transpose(0, 1).flatten(1) for values in (masks, advantages))
    coefficients, count = batch.kl_coefficients.to(device), batch.count

    def loss_of(tokens: TokenLoss) -> Tensor:
        mask, weights = each_mask[None, :, tokens.places], None
        logprobs = tokens.logprobs[None]
        if batch.other_engine:
            theirs = sampler.flatten()[tokens.places][None]
            weights = losses.importance_weights(logprobs, theirs, config.importance_sampling_cap)
        loss = losses.policy_gradient_loss(logprobs, each_advantage[None, :, tokens.places], mask, weights)
        if tokens.divergence is not None:
            loss = loss + losses.kl_loss(tokens.divergence[None], mask, coefficients)
        return loss / count

    own = add_gradient(head, micro, batch.temperature, loss_of, gradients, reference=reference)
    known = batch.reference_logprobs[number] if own.reference_logprobs is None else own.reference_logprobs
    if own.divergence is not None:
        sums.record("full_kl", micro, own.divergence, masks)
    sums.record("kl", micro, own.logprobs - known, masks)
    sums.record("k3", micro, losses.k3(own.logprobs, known), masks)
    sums.record("entropy", micro, own.entropy, masks)
    sums.record("logprob_diff", micro, own.logprobs - sampler, masks)
    sums.record("logprob_diff_abs", micro, (own.logprobs - sampler).abs(), masks)
    sums.record("tokens", micro, torch.ones_like(own.logprobs), masks)
