"""The objective of confidence, by enumeration: one attempt, three outcomes, a table policy; confidence under the base.

The best policy under E[confidence] - beta KL is base x exp(confidence / beta): that is the test of the whole objective.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from score_cli.config import Stage2Config
from score_cli.tables.records import Signal, Trace, Verdict
from score_cli.training import credit
from score_cli.training.step import forward_backward, prepare, reward_matrix
from tests import enumeration as tiny
from tests.signals import CONFIDENCE

BETA = 0.3
BASE = tiny.TablePolicy(3, width=None)
ATTEMPTS = [list(attempt) for attempt in tiny.ATTEMPTS]


def chances(policy: tiny.TablePolicy) -> Tensor:
    return torch.stack([tiny.attempt_logprob(policy, tiny.PROMPTS["p"], attempt) for attempt in ATTEMPTS]).exp()


def confidence_under(policy: tiny.TablePolicy) -> list[float]:
    """Mean probability of an attempt's tokens; the third has no answer."""
    found = []
    for attempt in ATTEMPTS[:2]:
        prefix = tiny.PROMPTS["p"]
        own = [policy.logprob(prefix + attempt[:i], token).exp().item() for i, token in enumerate(attempt)]
        found.append(sum(own) / len(own))
    return [*found, 0.0]


def best_policy(base: tiny.TablePolicy, values: Sequence[float]) -> tiny.TablePolicy:
    """The table whose attempts have chances proportional to base x exp(value / beta)."""
    wanted = chances(base).detach() * torch.tensor(values, dtype=torch.float64).div(BETA).exp()
    wanted = wanted / wanted.sum()
    policy = tiny.TablePolicy(3, width=None)
    prompt = tiny.PROMPTS["p"]
    with torch.no_grad():
        for prefix, zero, one in ((prompt, wanted[0], wanted[1:].sum()), ([*prompt, 1], wanted[1], wanted[2])):
            code = functools.reduce(lambda code, token: code * 2 + token, prefix, 1) % len(policy.table)
            policy.table[code] = torch.stack([zero, one]).log()
    assert torch.allclose(chances(policy), wanted)
    return policy


def single(policy: tiny.TablePolicy, index: int, attempt: list[int]) -> Trace:
    tokens = tiny.PROMPTS["p"] + attempt
    owners = np.array([0] * 2 + [1] * len(attempt), dtype=np.int8)
    logprobs = [policy.logprob(tokens[:i], token).item() if owners[i] else 0.0 for i, token in enumerate(tokens)]
    arrays = np.array(tokens, dtype=np.int32), owners, np.array(logprobs)
    return Trace("p", index, [str(attempt)], ["stop"], *arrays, 0)


def expected_update(
    policy: tiny.TablePolicy, say: Callable[[tiny.TablePolicy], list[float]], *, baseline: str = "conditional"
) -> Tensor:
    """The product's gradient, averaged over all pairs of attempts; nobody can score them."""
    config = Stage2Config(pay=CONFIDENCE, kl="sampled", beta1=BETA, baseline=baseline)  # type: ignore[arg-type]
    total = torch.zeros_like(policy.table)
    likely = chances(policy).tolist()
    for pair in itertools.product(range(3), repeat=2):
        traces = [single(policy, index, ATTEMPTS[number]) for index, number in enumerate(pair)]
        verdicts = [Verdict("p", index, [None], ["unscored"], [None]) for index in range(2)]
        values = say(policy)
        signals = [
            Signal("p", index, "confidence", [values[number]], [None], [values[number]])
            for index, number in enumerate(pair)
        ]
        policy.zero_grad()
        rewards = reward_matrix(verdicts).double()
        batch = prepare(policy, BASE, traces, rewards, config, verdicts=verdicts, signals=signals)  # type: ignore[arg-type]
        forward_backward(policy, BASE, batch, config)  # type: ignore[arg-type]
        assert policy.table.grad is not None
        total += math.prod(likely[number] for number in pair) * policy.table.grad
    return total.detach()


def frozen(_: tiny.TablePolicy) -> list[float]:
    return confidence_under(BASE)


def exact_update(policy: tiny.TablePolicy) -> Tensor:
    """Minus the gradient of E[confidence under the base] - beta KL(policy, base), by differentiating it."""
    own, base = chances(policy), chances(BASE).detach()
    gain = torch.tensor(confidence_under(BASE), dtype=torch.float64) - BETA * (own / base).log()
    return -torch.autograd.grad((own * gain).sum(), policy.table)[0]


def check_expected_update(say: Callable[[tiny.TablePolicy], list[float]]) -> None:
    policy = tiny.TablePolicy(4, width=None)
    exact = exact_update(policy)
    assert exact.abs().max() > 1e-2
    assert (expected_update(policy, say) - exact).abs().max() < 1e-8


def check_optimum(say: Callable[[tiny.TablePolicy], list[float]]) -> None:
    best = best_policy(BASE, confidence_under(BASE))
    assert (chances(best) - chances(BASE)).abs().max() > 0.05
    assert expected_update(best, say).abs().max() < 1e-8


def test_the_expected_update_is_the_gradient_of_confidence_minus_kl() -> None:
    check_expected_update(frozen)


def test_nothing_moves_at_the_base_times_exp_of_confidence_over_beta() -> None:
    check_optimum(frozen)


def test_confidence_of_the_policy_under_training_is_caught() -> None:
    """It would pay a policy for being sure, whatever of."""
    for check in (check_expected_update, check_optimum):
        with pytest.raises(AssertionError):
            check(confidence_under)


# Training.


def test_the_baseline_looks_at_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = credit.advantages

    def note(values: Tensor, groups: Tensor, rewards: Tensor, baseline: str, **more: object) -> Tensor:
        asked.append(baseline)
        return real(values, groups, rewards, baseline, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(credit, "advantages", note)
    expected_update(tiny.TablePolicy(4, width=None), frozen, baseline="conditional")
    assert set(asked) == {"leave-one-out"}
