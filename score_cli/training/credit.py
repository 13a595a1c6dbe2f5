"""Turn what attempts are paid into advantages: returns, baselines. Nothing here reads files.

Shapes: M traces, A attempts, T tokens of the longest attempt. Rewards are 0 or 1, NaN where
unscored; `groups` [M] numbers the problem each trace belongs to. NaN travels: what depends on an
unscored attempt is NaN until it becomes an advantage of 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    return _baseline_among_kind(values, groups, reward_kinds(previous))


def reward_kinds(rewards: Tensor) -> Tensor:
    """0, 1 and unscored, which is 2, are the kinds of rewards that baselines tell apart; any shape."""
    return torch.where(rewards.isnan(), 2, rewards.nan_to_num(0.0).round().long())


def state_kinds(rewards: Tensor, roles: Sequence[Sequence[str]]) -> Tensor:
    """[M, A] a number for all that a turn's state tells of roles and rewards: those of every turn before it.

    Args:
        rewards: [M, A]; roles: of each trace's turns.
    """
    numbers: dict[tuple[object, ...], int] = {}
    kinds = reward_kinds(rewards).tolist()
    width = rewards.shape[1]
    rows = [[(*row[:turn], *own[:turn]) for turn in range(width)] for row, own in zip(kinds, roles, strict=True)]
    return torch.tensor([[numbers.setdefault(state, len(numbers)) for state in row] for row in rows])


def _baseline_among_kind(values: Tensor, groups: Tensor, kind: Tensor) -> Tensor:
    """`conditional_baseline`, by any numbers that tell the traces' kinds apart."""
    # Equal kinds of one group share a number.
    within = group_baseline(values, groups * (int(kind.max()) + 1) + kind)
    across = group_baseline(values, kind)
    alike = torch.where(within.isnan(), across, within)
    return torch.where(alike.isnan(), group_baseline(values, groups), alike)


def advantages(
    values: Tensor,
    groups: Tensor,
    rewards: Tensor,
    baseline: str,
    *,
    present: Tensor | None = None,
    kinds: Tensor | None = None,
) -> Tensor:
    """Returns minus their baseline, attempt by attempt.

    A trace whose siblings ended their dialogues before a turn has nobody to be compared with there, and takes a
    baseline of 0: an advantage of 0 would make turns count for less the more rarely they are reached.

    Args:
        values: [M, A] returns, or [M, A, T] one for each token; NaN where unscored.
        groups: [M] problem numbers.
        rewards: [M, A], which `conditional` looks at.
        baseline: `leave-one-out` or `conditional`; the first attempt has nothing to condition on
            and always takes the leave-one-out mean.
        present: [M, A] whether a trace has the turn; all do if left out.
        kinds: [M, A] numbers of states that `conditional` compares within, in place of the reward before.
    Returns:
        As `values`; 0 where unscored, or where siblings have the turn and none of them is scored.
    """
    columns = []
    for attempt in range(values.shape[1]):
        column = values[:, attempt]
        if baseline == "conditional" and attempt > 0:
            own = reward_kinds(rewards[:, attempt - 1]) if kinds is None else kinds[:, attempt]
            base = _baseline_among_kind(column, groups, own)
        else:
            base = group_baseline(column, groups)
        if present is not None:
            lost = _siblings(~present[:, attempt], groups) > 0
            lost = lost.reshape(-1, *[1] * (column.dim() - 1))
            base = torch.where(base.isnan() & lost, 0.0, base)
        columns.append((column - base).nan_to_num(0.0))
    return torch.stack(columns, dim=1)


def _siblings(marked: Tensor, groups: Tensor) -> Tensor:
    """[M] how many others of each trace's group are marked; `marked` is [M]."""
    counts = torch.zeros(int(groups.max()) + 1, dtype=torch.long).index_add(0, groups, marked.long())
    return counts[groups] - marked.long()
