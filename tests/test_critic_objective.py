"""CTRL's update over every batch of critiques and revisions, against the exact gradient of E[revision right].

Two solves of one problem, each with a critic's prompt of its own; three critiques; three revisions by a frozen
generator that reads the critique. Both policies are tables. Nothing of the expected values uses the code under test.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from score_cli.config import Stage2Config
from score_cli.stages.revision import revision_signals
from score_cli.tables.records import Signal, Trace, Verdict
from score_cli.tasks.pay import Pay
from score_cli.training.step import forward_backward, group_numbers, prepare, reward_matrix
from tests import enumeration as tiny

CRITIC, GENERATOR = tiny.TablePolicy(5, width=None), tiny.TablePolicy(6, longest=10, width=None)
# The critic's prompt of either solve, and the generator's tokens up to a critique: the problem and that solve.
PROMPTS = ([1, 1], [0, 1])
GIVEN = ([1, 1, 0], [1, 1, 1, 0])
CRITIQUES = REVISIONS = tiny.ATTEMPTS
# Whether a critique's claim is true, by solve.
TRUE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CONFIG = Stage2Config(
    pay=Pay(weights={"critique": {"signal:revision": 1.0}}), baseline="leave-one-out", kl="sampled", beta1=0.0
)
# A critique and the number of the revision after it.
Pair = tuple[int, int]


def chances(policy: tiny.TablePolicy, prefix: list[int]) -> Tensor:
    return torch.stack([tiny.attempt_logprob(policy, prefix, attempt) for attempt in tiny.ATTEMPTS]).exp()


def after(solve: int, critique: int) -> list[float]:
    """Chances of the generator's revisions, told a critique."""
    return chances(GENERATOR, GIVEN[solve] + CRITIQUES[critique]).tolist()


def trace(policy: tiny.TablePolicy, prefix: list[int], said: list[int], index: int, **fields: object) -> Trace:
    tokens = prefix + said
    owners = np.array([0] * len(prefix) + [1] * len(said), dtype=np.int8)
    logprobs = [policy.logprob(tokens[:i], token).item() if owners[i] else 0.0 for i, token in enumerate(tokens)]
    arrays = np.array(tokens, dtype=np.int32), owners, np.array(logprobs)
    return Trace("p", index, [str(said)], ["stop"], *arrays, 0, **fields)  # type: ignore[arg-type]


def batch_of(groups: Sequence[tuple[int, Sequence[Pair]]]) -> tuple[list[Trace], list[Verdict], list[Signal]]:
    """Critiques of some solves, their claims' verdicts, and the signal that the product makes of the revisions."""
    rows = [(solve, pair) for solve, pairs in groups for pair in pairs]
    critiques, verdicts, revisions, judged = [], [], [], []
    for index, (solve, (said, revised)) in enumerate(rows):
        fields = {"roles": ["critique"], "given_index": solve}
        critiques.append(trace(CRITIC, PROMPTS[solve], CRITIQUES[said], index, **fields))
        true = TRUE[solve][said]
        verdicts.append(Verdict("p", index, ["x"], ["correct" if true else "incorrect"], [true]))
        prefix = GIVEN[solve] + CRITIQUES[said]
        revisions.append(trace(GENERATOR, prefix, REVISIONS[revised], index, given_index=index))
        right = tiny.is_right("p", REVISIONS[revised])
        judged.append(Verdict("p", index, ["x"], ["correct" if right else "incorrect"], [right]))
    return critiques, verdicts, revision_signals(critiques, revisions[::-1], judged[::-1])


def gradient(groups: Sequence[tuple[int, Sequence[Pair]]], config: Stage2Config = CONFIG) -> Tensor:
    critiques, verdicts, signals = batch_of(groups)
    CRITIC.zero_grad()
    rewards = reward_matrix(verdicts, ragged=True).double()
    batch = prepare(CRITIC, CRITIC, critiques, rewards, config, verdicts=verdicts, signals=signals)  # type: ignore[arg-type]
    forward_backward(CRITIC, CRITIC, batch, config)  # type: ignore[arg-type]
    assert CRITIC.table.grad is not None
    return CRITIC.table.grad.clone()


def expected_update(solve: int, config: Stage2Config = CONFIG, samples: int = 2) -> Tensor:
    """The product's gradient over every draw of critiques of one solve and of their revisions, as multisets."""
    said = chances(CRITIC, PROMPTS[solve]).tolist()
    pairs = list(itertools.product(range(3), range(3)))
    likely = {pair: said[pair[0]] * after(solve, pair[0])[pair[1]] for pair in pairs}
    total = torch.zeros_like(CRITIC.table)
    for members in itertools.combinations_with_replacement(pairs, samples):
        ways = math.factorial(samples)
        for pair in set(members):
            ways //= math.factorial(members.count(pair))
        total += ways * math.prod(likely[pair] for pair in members) * gradient([(solve, members)], config)
    return total.detach()


def exact_update(solve: int, weight: float = 0.0) -> Tensor:
    """Minus the gradient of E[revision right], and of weight x E[claim true], by differentiating them."""
    value = [
        sum(p * tiny.is_right("p", y) for p, y in zip(after(solve, said), REVISIONS, strict=True))
        + weight * TRUE[solve][said]
        for said in range(3)
    ]
    return -torch.autograd.grad(
        (chances(CRITIC, PROMPTS[solve]) * torch.tensor(value, dtype=torch.float64)).sum(), CRITIC.table
    )[0]


def test_the_expected_update_is_the_gradient_of_the_revisions_chance_to_be_right() -> None:
    for solve in (0, 1):
        exact = exact_update(solve)
        assert exact.abs().max() > 1e-3
        assert (expected_update(solve) - exact).abs().max() < 1e-8
    assert GENERATOR.table.grad is None


def test_with_a_weight_on_the_claim_it_is_the_gradient_of_both() -> None:
    both = Stage2Config(
        pay=Pay(weights={"critique": {"signal:revision": 1.0, "right": 0.5}}),
        kl="sampled",
        beta1=0.0,
        baseline="conditional",
    )
    assert (expected_update(0, both) - exact_update(0, 0.5)).abs().max() < 1e-8


def test_two_solves_of_one_problem_are_two_groups() -> None:
    """A batch of both is the mean of what each gives alone: no critique is compared with one of another solve."""
    groups = [(0, [(0, 0), (1, 1)]), (1, [(2, 1), (1, 2)])]
    critiques, _, _ = batch_of(groups)
    assert group_numbers(critiques).tolist() == [0, 0, 1, 1]
    alone = (gradient(groups[:1]) + gradient(groups[1:])) / 2
    assert alone.abs().max() > 1e-2
    assert torch.allclose(gradient(groups), alone, atol=1e-12)


def test_a_signal_is_the_mean_of_the_graded_revisions_after_a_critique() -> None:
    critiques, _, _ = batch_of([(0, [(0, 0), (1, 0)])])
    revisions = [trace(GENERATOR, GIVEN[0], REVISIONS[0], n, given_index=g) for n, g in enumerate((1, 0, 1, 0, 1))]
    rewards = [1.0, None, 0.0, None, 1.0]
    judged = [Verdict("p", n, ["x"], ["unscored" if r is None else "correct"], [r]) for n, r in enumerate(rewards)]
    assert [signal.values for signal in revision_signals(critiques, revisions, judged)] == [
        [None],
        [pytest.approx(2 / 3)],
    ]


def test_a_critique_whose_revision_nobody_graded_is_nobodys_mate() -> None:
    critiques, verdicts, signals = batch_of([(0, [(0, 1), (1, 0), (2, 1)])])
    unknown = [*signals[:2], Signal("p", 2, "revision", [None], [None], [None])]
    rewards = reward_matrix(verdicts, ragged=True).double()
    batch = prepare(CRITIC, CRITIC, critiques, rewards, CONFIG, verdicts=verdicts, signals=unknown)  # type: ignore[arg-type]
    assert batch.trainable.tolist() == [[1], [1], [0]]
    assert batch.advantages.tolist() == [[1], [-1], [0]]
