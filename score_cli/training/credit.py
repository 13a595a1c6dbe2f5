"""Turn rewards into advantages: shaped rewards, returns, baselines. Nothing here reads files.

Shapes: M traces, A attempts, T tokens of the longest attempt. Rewards are 0 or 1, NaN where
unscored; `groups` [M] numbers the problem each trace belongs to. NaN travels: what depends on an
unscored attempt is NaN until it becomes an advantage of 0.
"""

import torch
from torch import Tensor


def stage1_rewards(rewards: Tensor) -> Tensor:
    """The last attempt's reward, nothing for the attempts before it.

    Args:
        rewards: [M, A].
    Returns:
        [M, A]: 0 except in the last column.
    Source: Kumar et al., Eq. 3.
    """
    shaped = torch.zeros_like(rewards)
    shaped[:, -1] = rewards[:, -1]
    return shaped


def stage2_rewards(rewards: Tensor, alpha: float, stagnation_penalty: float = 0.0) -> Tensor:
    """Each attempt's reward; from the second on with a bonus for progress over the one before.

    Args:
        rewards: [M, A].
        alpha: weight of the bonus. At 10 a second attempt gets, by (r1, r2):
            (0,0) 0, (0,1) +11, (1,0) -10, (1,1) +1.
        stagnation_penalty: taken from an attempt that is wrong after a wrong one: (0,0) gets minus it. The state of
            the second attempt holds r1, so this pays more for mending what was wrong and leaves alone what is
            at stake after a right attempt, which `alpha` raises as well.
    Returns:
        [M, A].
    Source: Kumar et al., Eq. 4 and section 5.2; the penalty is ReflexiCoder's (arXiv 2603.05863), whose improvement
        reward is this bonus where rewards are 0 or 1.
    """
    before, after = rewards[:, :-1], rewards[:, 1:]
    shaped = rewards.clone()
    shaped[:, 1:] += alpha * (after - before)
    shaped[:, 1:] -= stagnation_penalty * ((before == 0) & (after == 0))
    return shaped


def stage1_kl_coefficients(attempts: int, *, beta1: float, beta2: float) -> list[float]:
    """KL coefficient of each attempt: beta1 everywhere, and beta2 besides on all but the last (Eq. 3)."""
    return [beta1 + beta2] * (attempts - 1) + [beta1]


def stage2_kl_coefficients(attempts: int, *, beta1: float) -> list[float]:
    """KL coefficient of each attempt: beta1 everywhere (Eq. 4)."""
    return [beta1] * attempts


def returns(shaped: Tensor, discount: float) -> Tensor:
    """Discounted sum of an attempt's shaped reward and those after it.

    Args:
        shaped: [M, A].
        discount: 0 credits each attempt with its own reward alone (Kumar et al., App. A.4).
    Returns:
        [M, A].
    """
    result = shaped.clone()
    if discount:  # 0 * NaN is NaN: without discount a later unscored attempt must not reach an earlier one.
        for attempt in range(shaped.shape[1] - 2, -1, -1):
            result[:, attempt] += discount * result[:, attempt + 1]
    return result


def token_returns(returns: Tensor, log_ratios: Tensor, coefficients: Tensor) -> Tensor:
    """Returns of an attempt's tokens, each charged with the KL of itself and what comes after it alone.

    A token cannot change the log-ratios before it: given the tokens before, the expectation of its score times them is
    0. They are noise in its return, and taking them out leaves the expected gradient as it is.

    Args:
        returns: [M, A], each charged with the log-ratios of all of its attempt.
        log_ratios: [M, A, T] of the attempts' tokens from their first on, 0 after their last.
        coefficients: [A] of KL.
    Returns:
        [M, A, T]. After an attempt's last token it has its return without its own KL.
    """
    before = log_ratios.cumsum(-1) - log_ratios
    return returns[..., None] + coefficients[:, None] * before


def group_baseline(values: Tensor, groups: Tensor) -> Tensor:
    """Mean over the other scored members of each trace's group.

    Args:
        values: [M] or [M, T], NaN where unscored.
        groups: [M] group numbers.
    Returns:
        As `values`; NaN where no other member is scored.
    Source: RLOO, Ahmadian et al. 2024.
    """
    scored = ~values.isnan()
    known = values.nan_to_num(0.0)
    size = int(groups.max()) + 1
    zeros = known.new_zeros(size, *known.shape[1:])
    sums = zeros.index_add(0, groups, known)[groups]
    counts = zeros.index_add(0, groups, scored.to(known.dtype))[groups]
    others = counts - scored.to(known.dtype)
    return torch.where(others > 0, (sums - known) / others, torch.nan)


def conditional_baseline(values: Tensor, groups: Tensor, previous: Tensor) -> Tensor:
    """Mean over the other members of the group whose previous attempt scored the same.

    A trace without such a sibling takes the mean over the rest of the batch whose previous attempt
    scored the same; without anybody like it, the plain leave-one-out mean: an advantage of 0 there
    would shrink the gradient of rare cases. The attempt's state holds the previous attempt, so a
    baseline that depends on its reward leaves the expected gradient as it is, and takes the noise of
    `-alpha r1` away.

    Args:
        values: [M] or [M, T], NaN where unscored; groups: [M]; previous: [M] reward of the attempt before.
    Returns:
        As `values`; NaN where no other member of the group, and nobody of the same kind, is scored.
    """
    # 0, 1 and unscored are three kinds; equal kinds of one group share a number.
    kind = torch.where(previous.isnan(), 2, previous.nan_to_num(0.0).round().long())
    within = group_baseline(values, groups * 3 + kind)
    across = group_baseline(values, kind)
    alike = torch.where(within.isnan(), across, within)
    return torch.where(alike.isnan(), group_baseline(values, groups), alike)


def advantages(values: Tensor, groups: Tensor, rewards: Tensor, baseline: str) -> Tensor:
    """Returns minus their baseline, attempt by attempt.

    Args:
        values: [M, A] returns, or [M, A, T] one for each token; NaN where unscored.
        groups: [M] problem numbers.
        rewards: [M, A], which `conditional` looks at.
        baseline: `leave-one-out` or `conditional`; the first attempt has nothing to condition on
            and always takes the leave-one-out mean.
    Returns:
        As `values`; 0 where unscored or where nobody is left to compare with.
    """
    columns = []
    for attempt in range(values.shape[1]):
        column = values[:, attempt]
        if baseline == "conditional" and attempt > 0:
            base = conditional_baseline(column, groups, rewards[:, attempt - 1])
        else:
            base = group_baseline(column, groups)
        columns.append((column - base).nan_to_num(0.0))
    return torch.stack(columns, dim=1)
