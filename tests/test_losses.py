"""Loss terms by hand and against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from score_cli.training import credit, losses


def test_loss_sums_tokens_and_weighs_each_attempt_with_its_advantage() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0, -8.0]])
    masks = losses.attempt_masks(torch.tensor([[0, 1, 1, 2]]), 2)
    loss = losses.policy_gradient_loss(logprobs, torch.tensor([[3.0, -5.0]]), masks)
    assert loss.tolist() == [18.0, -40.0]


def test_a_longer_attempt_is_not_averaged_down() -> None:
    short = losses.sum_by_attempt(torch.ones(1, 2), losses.attempt_masks(torch.tensor([[1, 0]]), 1))
    long = losses.sum_by_attempt(torch.ones(1, 4), losses.attempt_masks(torch.tensor([[1, 1, 1, 0]]), 1))
    assert (short.item(), long.item()) == (1.0, 3.0)


def test_a_token_is_charged_with_kl_from_itself_on() -> None:
    """Two attempts of 3 and 1 tokens behind each other, context between and after: by hand."""
    masks = losses.attempt_masks(torch.tensor([[1, 1, 1, 0, 2, 0]]), 2)
    ratios = torch.tensor([[1.0, 2.0, 4.0, 99.0, 8.0, 99.0]])
    by_token = losses.by_token_number(ratios, masks, 3)
    assert by_token.tolist() == [[[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]]]
    # Attempt returns 5 - 0.5 x 7 and 3 - 0.25 x 8.
    returns = credit.token_returns(torch.tensor([[1.5, 1.0]]), by_token, torch.tensor([0.5, 0.25]))
    assert returns.tolist() == [[[5 - 0.5 * 7, 5 - 0.5 * 6, 5 - 0.5 * 4], [3 - 0.25 * 8, 3.0, 3.0]]]
    assert losses.at_positions(returns, masks).tolist() == [[[1.5, 2.0, 3.0, 0, 0, 0], [0, 0, 0, 0, 1.0, 0]]]


def test_kl_to_go_has_about_half_the_variance_of_whole_attempts_kl() -> None:
    """400 batches of 4 samples of 40 independent tokens each, no reward: the squared spread of the gradient."""
    torch.manual_seed(0)
    own, other = torch.randn(8).double().log_softmax(-1), torch.randn(8).double().log_softmax(-1)
    batches, samples, tokens = 400, 4, 40
    drawn = torch.multinomial(own.exp(), batches * samples * tokens, replacement=True).view(-1, 1, tokens)
    ratios, groups = (own - other)[drawn], torch.arange(batches).repeat_interleave(samples)
    whole = -ratios.sum(-1)
    rewards = torch.zeros_like(whole)
    scores = torch.eye(8).double()[drawn[:, 0]] - own.exp()

    def spread(advantages: torch.Tensor) -> torch.Tensor:
        gradients = (advantages[..., None] * scores).sum(1).view(batches, samples, 8).mean(1)
        return gradients.var(0).sum()

    together = credit.advantages(whole, groups, rewards, "leave-one-out")
    to_go = credit.token_returns(whole, ratios, torch.ones(1).double())
    apart = credit.advantages(to_go, groups, rewards, "leave-one-out")[:, 0]
    ratio = (spread(apart) / spread(together)).item()
    assert 0.35 < ratio < 0.65, ratio


def test_advantages_carry_no_gradient() -> None:
    advantages = torch.tensor([[2.0]], requires_grad=True)
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    losses.policy_gradient_loss(logprobs, advantages, torch.ones(1, 1, 1)).sum().backward()
    assert advantages.grad is None
    assert logprobs.grad is not None and logprobs.grad.item() == -2.0


def test_importance_weights_are_ratios_cut_at_the_cap() -> None:
    trainer = torch.tensor([math.log(0.3), math.log(0.9), math.log(0.1)])
    sampler = torch.tensor([math.log(0.2), math.log(0.3), math.log(0.2)])
    assert losses.importance_weights(trainer, sampler, 2.0).tolist() == pytest.approx([1.5, 2.0, 0.5])


def test_importance_weights_are_constants_of_the_gradient() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    weights = losses.importance_weights(logprobs, torch.tensor([[-1.5]]), 2.0)
    losses.policy_gradient_loss(logprobs, torch.tensor([[1.0]]), torch.ones(1, 1, 1), weights).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-math.exp(0.5))


def test_full_kl_is_the_divergence_of_the_distributions() -> None:
    torch.manual_seed(0)
    own, other = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    expected = kl_divergence(Categorical(logits=own), Categorical(logits=other))
    assert torch.allclose(losses.full_kl(own.log_softmax(-1), other.log_softmax(-1)), expected, atol=1e-12)


def test_k3_estimates_the_divergence_and_its_gradient_that_of_the_reverse() -> None:
    """Why k3 is logged and is no loss: E[k3] = KL(policy || reference), E[grad k3] = grad KL(reference || policy)."""
    torch.manual_seed(1)
    logits, other = torch.randn(6).double().requires_grad_(), torch.randn(6).double().log_softmax(-1)
    own = logits.log_softmax(-1)
    values = losses.k3(own, other)
    expected = (own.exp() * (own - other)).sum()
    assert torch.isclose((own.exp() * values).sum(), expected, atol=1e-12)
    as_loss = torch.autograd.grad((own.exp().detach() * values).sum(), logits, retain_graph=True)[0]
    reverse = torch.autograd.grad((other.exp() * (other - own)).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad(expected, logits)[0]
    assert torch.allclose(as_loss, reverse, atol=1e-12)
    assert not torch.allclose(as_loss, forward, atol=1e-2)


def test_kl_loss_takes_each_attempts_own_coefficient() -> None:
    masks = losses.attempt_masks(torch.tensor([[1, 1, 0, 2]]), 2)
    divergence = torch.tensor([[1.0, 2.0, 100.0, 4.0]])
    assert losses.kl_loss(divergence, masks, torch.tensor([0.5, 0.25])).tolist() == [1.5, 1.0]
