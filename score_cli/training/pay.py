"""Rewards to what every turn is paid. Nothing here reads files.

Shapes: M traces, A turns of the longest. Rewards are 0 to 1, NaN where unscored; a turn that a trace does not have is
paid 0, which is not the same: it adds nothing to what earlier turns are credited with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from score_cli.tables.records import SOLVE
from score_cli.tables.schemas import NO_ANSWER, TRUNCATED
from score_cli.tasks.pay import EVERY, FINAL, FORMAT, GAIN, REFLEXICODER, RIGHT, SIGNAL, STUCK, Pay, signal_earner
from score_cli.training.trajectory import trajectory_reward

# Verdicts of turns in which no answer, and no claim, was found.
UNREAD = (NO_ANSWER, TRUNCATED)
Roles = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Paid:
    """What pay is made of.

    Attributes:
        rewards: [M, A] as verified.
        roles: of each trace's turns; it may have fewer than A.
        verdicts: of each trace's turns, where a source or the pay's values need them.
        signals: [M, A] of each signal by its name, where a source needs it.
    """

    rewards: Tensor
    roles: Roles
    verdicts: Sequence[Sequence[str]] = ()
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    def has(self, role: str) -> Tensor:
        """[M, A] whether a turn is there and has that role, or any."""
        return _mask(self.rewards, [[role in (own, EVERY) for own in row] for row in self.roles])

    @property
    def last(self) -> Tensor:
        """[M, A] whether a turn is its trace's last."""
        return _mask(self.rewards, [[turn == len(row) - 1 for turn in range(len(row))] for row in self.roles])


def stage1_pay() -> Pay:
    """The last attempt's reward, nothing for the attempts before it.

    Source: Kumar et al., Eq. 3.
    """
    return Pay(weights={"solve": {FINAL: 1.0}})


def stage2_pay(alpha: float, stagnation_penalty: float = 0.0) -> Pay:
    """Each attempt's reward; from the second on with a bonus for progress over the one before.

    Args:
        alpha: weight of the bonus. At 10 a second attempt gets, by (r1, r2):
            (0,0) 0, (0,1) +11, (1,0) -10, (1,1) +1.
        stagnation_penalty: taken from an attempt that is wrong after a wrong one: (0,0) gets minus it. The state of
            the second attempt holds r1, so this pays more for mending what was wrong and leaves alone what is
            at stake after a right attempt, which `alpha` raises as well.
    Source: Kumar et al., Eq. 4 and section 5.2.
    """
    return Pay(weights={"solve": {RIGHT: 1.0, GAIN: alpha, STUCK: -stagnation_penalty}})


def shaped_rewards(pay: Pay, paid: Paid) -> Tensor:
    """What each turn earns: [M, A]; NaN where it hangs on what nobody could score, 0 where there is no such turn."""
    shaped = torch.zeros_like(paid.rewards)
    found: dict[str, Tensor] = {}
    for role, weights in pay.weights.items():
        own = paid.has(role)
        for source, weight in weights.items():
            if not weight:  # 0 * NaN: what weighs nothing would hide what else is known
                continue
            if source not in found:
                found[source] = _source(source, pay, paid)
            shaped = torch.where(own, shaped + weight * found[source], shaped)
    return shaped


def _source(name: str, pay: Pay, paid: Paid) -> Tensor:
    """[M, A] of one source, whatever the turns' roles; what a role cannot earn is 0."""
    rewards, solves = paid.rewards, paid.has(SOLVE)
    if name == RIGHT:
        return _valued(pay, paid)
    if name.startswith(SIGNAL):
        kind = name.removeprefix(SIGNAL)
        return torch.where(paid.has(signal_earner(kind)), paid.signals[kind], torch.zeros_like(rewards))
    if name == FORMAT:
        assert paid.verdicts, "whether turns could be read stands in verdicts"
        return _mask(rewards, [[verdict not in UNREAD for verdict in row] for row in paid.verdicts]).to(rewards.dtype)
    if name == REFLEXICODER:
        return torch.where(paid.last, _trajectories(paid, solves)[:, None], torch.zeros_like(rewards))
    if name == FINAL:
        newest = _newest_solve(rewards, solves)
        return torch.where(paid.last, newest, torch.zeros_like(rewards))
    assert name in (GAIN, STUCK), name
    before = torch.full_like(rewards, torch.nan)
    before[:, 1:] = _newest_solve(rewards, solves)[:, :-1]
    first = solves.cumsum(1) <= 1
    earned = rewards - before if name == GAIN else _stuck(before, rewards)
    return torch.where(solves & ~first, earned, torch.zeros_like(rewards))


def _stuck(before: Tensor, rewards: Tensor) -> Tensor:
    """[M, A] 1 where a solve is wrong after a wrong one; NaN where one of them is unscored and the other is wrong."""
    stuck, unstuck = (before == 0) & (rewards == 0), (before > 0) | (rewards > 0)
    return torch.full_like(rewards, torch.nan).masked_fill(stuck, 1.0).masked_fill(unstuck, 0.0)


def _trajectories(paid: Paid, solves: Tensor) -> Tensor:
    """[M] ReflexiCoder's reward of each trace's solves; NaN where one of them is unscored."""
    assert paid.verdicts, "whether answers could be read stands in verdicts"
    found = []
    for rewards, own, verdicts in zip(paid.rewards.tolist(), solves.tolist(), paid.verdicts, strict=True):
        turns = [turn for turn, is_solve in enumerate(own) if is_solve]
        scored = [rewards[turn] for turn in turns]
        well_formed = not any(verdicts[turn] in UNREAD for turn in turns)
        unknown = any(math.isnan(reward) for reward in scored)
        found.append(math.nan if unknown else trajectory_reward(scored, well_formed=well_formed))
    return torch.tensor(found, dtype=paid.rewards.dtype, device=paid.rewards.device)


def _newest_solve(rewards: Tensor, solves: Tensor) -> Tensor:
    """[M, A] the reward of the newest solve at each turn, its own at a solve; NaN before the first."""
    columns: list[Tensor] = []
    for turn in range(rewards.shape[1]):
        before = columns[-1] if columns else torch.full_like(rewards[:, 0], torch.nan)
        columns.append(torch.where(solves[:, turn], rewards[:, turn], before))
    return torch.stack(columns, 1)


def _valued(pay: Pay, paid: Paid) -> Tensor:
    """[M, A] rewards, or what the pay says verdicts are worth; unscored stays unscored."""
    if not pay.values:
        return paid.rewards
    assert paid.verdicts, "values are of verdicts"
    valued = paid.rewards.clone()
    for row, verdicts in enumerate(paid.verdicts):
        for turn, verdict in enumerate(verdicts):
            if verdict in pay.values:
                valued[row, turn] = pay.values[verdict]
    return valued


def _mask(like: Tensor, rows: Sequence[Sequence[bool]]) -> Tensor:
    """[M, A] from rows that may be shorter, false past their end."""
    width = like.shape[1]
    padded = [[*row, *[False] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.bool, device=like.device).reshape(len(rows), width)
