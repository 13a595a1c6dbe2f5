"""ReflexiCoder's reward of a whole trajectory of answers, as one function. Nothing here reads files.

Source: the released code of arXiv 2603.05863, `rewards_code/reflection.py`, with the weights of its training recipe.
"""

import itertools
import math
from collections.abc import Sequence

from score_cli.tasks.pay import MOST_REFLECTIONS

_FORMAT, _QUALITY, _EFFICIENCY = 1.0, 0.5, 1.0
_PROGRESS, _GROWTH, _SCALE = 0.5, 0.2, 0.1
_KEPT, _STUCK = 0.05, -1.0
_CLOSE = 1e-6


def trajectory_reward(rewards: Sequence[float], *, well_formed: bool = True) -> float:
    """What a trajectory of n reflections, so n + 1 answers, earns: 1 + 0.5 R + E.

    R = last + 0.5 * sum of w_t m_t over the reflections, w_t growing as exp(0.2 t) and adding up to 1, with m_t about
    +1 for a better answer, about -1 for a worse one, -1 for one that stays below full reward, 0.05 for one that stays
    at it. E = last / n + (last - first) / max(1, n - 1). One reflection gives, by (r1, r2):
        (0,0) 0.75, (0,1) 3.75, (1,0) -0.25, (1,1) 2.5125.

    Args:
        rewards: of the answers, 0 to 1.
        well_formed: an answer could be read everywhere; else the trajectory earns 0, as one without reflection does.
    Raises:
        ValueError: more than five reflections, beyond which the released code lets the reward fall off.
    """
    n = len(rewards) - 1
    if n > MOST_REFLECTIONS:
        raise ValueError(f"{n} reflections, the reward is of at most {MOST_REFLECTIONS}")
    if n < 1 or not well_formed:
        return 0.0
    weights = [math.exp(_GROWTH * t) for t in range(1, n + 1)]
    moves = [_move(before, after) for before, after in itertools.pairwise(rewards)]
    progress = math.fsum(w * m for w, m in zip(weights, moves, strict=True)) / math.fsum(weights)
    quality = rewards[-1] + _PROGRESS * progress
    efficiency = rewards[-1] / n + (rewards[-1] - rewards[0]) / max(1, n - 1)
    return _FORMAT + _QUALITY * quality + _EFFICIENCY * efficiency


def _move(before: float, after: float) -> float:
    change = after - before
    if abs(change) > _CLOSE:
        return math.tanh(change / _SCALE)
    return _KEPT if before > 1.0 - _CLOSE else _STUCK
