"""Policy-gradient loss and KL terms over the tokens of attempts. Nothing here reads files.

Shapes: B traces, T tokens, A attempts, V vocabulary. `attempt_ids` [B, T] is 0 on context and i on
tokens of attempt i. Logprobs are in nats.
"""

import torch
from torch import Tensor


def attempt_masks(attempt_ids: Tensor, attempts: int) -> Tensor:
    """[B, T] attempt numbers to [B, A, T] masks of 0 and 1."""
    numbers = torch.arange(1, attempts + 1, device=attempt_ids.device)
    return (attempt_ids[:, None, :] == numbers[None, :, None]).float()


def sum_by_attempt(values: Tensor, masks: Tensor) -> Tensor:
    """Sum [B, T] values over each attempt's tokens: [B, A]. Summed, not averaged: a mean would reward length."""
    return (values[:, None, :] * masks).sum(-1)


def by_token_number(values: Tensor, masks: Tensor, tokens: int) -> Tensor:
    """[B, T] values at positions to [B, A, tokens], by the place of a token within its attempt; 0 past its end."""
    found = values.new_zeros(*masks.shape[:2], tokens)
    return found.scatter_add(-1, _token_numbers(masks), values[:, None, :] * masks)


def at_positions(values: Tensor, masks: Tensor) -> Tensor:
    """[B, A, tokens] values by the place of a token within its attempt to [B, A, T] at positions; 0 elsewhere."""
    return values.gather(-1, _token_numbers(masks)) * masks


def _token_numbers(masks: Tensor) -> Tensor:
    return (masks.cumsum(-1).long() - 1).clamp(min=0)


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the advantage-weighted logprob, summed over tokens and traces, attempt by attempt.

    Args:
        logprobs: [B, T] of the policy being trained, with gradient.
        advantages: [B, A] or, where an attempt's tokens differ in theirs, [B, A, T]; constants.
        masks: [B, A, T].
        weights: [B, T] importance weights, constants; 1 where left out.
    Returns:
        [A]; divide by the number of traces of the whole batch for the mean.
    """
    if weights is not None:
        logprobs = weights.detach() * logprobs
    if advantages.dim() == masks.dim():
        return -sum_by_attempt(logprobs, masks * advantages.detach()).sum(0)
    return -(advantages.detach() * sum_by_attempt(logprobs, masks)).sum(0)


def importance_weights(trainer: Tensor, sampler: Tensor, cap: float) -> Tensor:
    """exp(trainer - sampler) a token, at most `cap`; corrects for an engine that computes a little otherwise."""
    return (trainer.detach() - sampler).exp().clamp(max=cap)


def full_kl(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """Exact KL(policy || reference) of the next-token distribution.

    Args:
        scores, reference_scores: [..., V] log-probabilities.
    Returns:
        [...], nats.
    """
    return (scores.exp() * (scores - reference_scores)).sum(-1)


def k3(trainer: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) from sampled tokens: r - 1 - log r, r = reference / policy.

    Logged for its low variance. As a loss its gradient is that of the reverse divergence, so it is none here.
    """
    log_ratio = reference - trainer
    return log_ratio.exp() - 1 - log_ratio


def kl_loss(divergence: Tensor, masks: Tensor, coefficients: Tensor) -> Tensor:
    """KL terms in the loss: coefficient times divergence, summed over tokens and traces, attempt by attempt.

    Args:
        divergence: [B, T] with gradient; masks: [B, A, T]; coefficients: [A].
    Returns:
        [A].
    """
    return (sum_by_attempt(divergence, masks) * coefficients).sum(0)
