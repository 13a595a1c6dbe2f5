"""Expected updates over every batch of dialogues that end at different lengths, against exact gradients.

| pay                                      | discount | expected gradient equals                                     |
|------------------------------------------|----------|--------------------------------------------------------------|
| each turn its own (S2R, process)         | 0        | credit of each turn's own pay                                |
| the last solve's, at the end (outcome)   | 1        | the gradient of E[last solve right] itself                   |
| ReflexiCoder's, at the end               | 1        | the gradient of its expectation itself                       |
| Eq. 4 over the solves                    | 0, 0.5   | the same with progress over the solve before                 |
| values of verdicts, and being readable   | 0.5      | the same                                                     |

Either baseline, with and without sampled KL.
"""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from score_cli.config import Stage2Config
from score_cli.tables.records import Trace
from score_cli.tasks.pay import Pay
from score_cli.training.step import forward_backward, prepare, reward_matrix
from tests import dialogue_enumeration as tiny
from tests.enumeration import TablePolicy, is_right

POLICY, REFERENCE = (TablePolicy(seed, longest=tiny.LONGEST, width=None) for seed in (1, 2))
PAYS: dict[str, tuple[Pay | None, float, tiny.Method]] = {
    "process": (Pay(weights={"solve": {"right": 1.0}, "verify": {"right": 1.0}}), 0.0, tiny.process),
    "outcome": (Pay(weights={"every": {"final": 1.0}}), 1.0, tiny.outcome),
    "reflexicoder": (Pay(weights={"every": {"reflexicoder": 1.0}}), 1.0, tiny.trajectory),
    "stage2": (None, 0.0, tiny.progress),
    "stage2-discount": (None, 0.5, tiny.progress),
    "readable": (
        Pay(
            weights={"every": {"format": 0.5}, "verify": {"right": 1.0}},
            values={"correct": 1.0, "incorrect": 0.25, "no_answer": 0.0},
        ),
        0.5,
        tiny.readable,
    ),
}
BASELINES = ("leave-one-out", "conditional")
LOO, CONDITIONAL = BASELINES


def config_of(name: str, baseline: str, beta: float) -> Stage2Config:
    pay, discount, _ = PAYS[name]
    return Stage2Config(pay=pay, alpha=10.0, discount=discount, baseline=baseline, kl="sampled", beta1=beta)  # type: ignore[arg-type]


@functools.cache
def trace_of(number: int) -> Trace:
    return tiny.trace_of(POLICY, tiny.ALL[number])


def gradient(config: Stage2Config, members: tuple[int, ...]) -> Tensor:
    """The product's gradient of one batch."""
    traces = [replace(trace_of(member), sample_index=index) for index, member in enumerate(members)]
    verdicts = [tiny.verdict_of(tiny.ALL[member], index) for index, member in enumerate(members)]
    rewards = reward_matrix(verdicts, ragged=True).double()
    POLICY.zero_grad()
    batch = prepare(POLICY, REFERENCE, traces, rewards, config, verdicts=verdicts)  # type: ignore[arg-type]
    forward_backward(POLICY, REFERENCE, batch, config)  # type: ignore[arg-type]
    assert POLICY.table.grad is not None
    return POLICY.table.grad.clone()


def expected_gradient(config: Stage2Config, samples: int) -> Tensor:
    """Sum over every batch of `samples` dialogues of its probability times its gradient, as multisets."""
    total = torch.zeros_like(POLICY.table)
    chances = tiny.probabilities(POLICY)
    for members in itertools.combinations_with_replacement(range(len(tiny.ALL)), samples):
        ways = math.factorial(samples)
        for number in set(members):
            ways //= math.factorial(members.count(number))
        total += ways * math.prod(chances[member] for member in members) * gradient(config, members)
    return total.detach()


def gap(name: str, baseline: str, beta: float = 0.125, samples: int = 2) -> float:
    _, discount, method = PAYS[name]
    exact = tiny.exact_gradient(POLICY, REFERENCE, method, discount=discount, beta=beta)
    assert exact.abs().max() > 1e-2
    return (expected_gradient(config_of(name, baseline, beta), samples) - exact).abs().max().item()


def test_there_are_33_dialogues_over_16_states() -> None:
    assert len(tiny.ALL) == 33 and sum(tiny.probabilities(POLICY)) == pytest.approx(1.0)
    assert {len(dialogue) for dialogue in tiny.ALL} == {2, 4}
    assert len({tuple(prompt) for d in tiny.ALL for prompt in tiny.prompts_of(d)}) == 16


CASES = [
    *itertools.product(("process", "outcome"), BASELINES),
    *(("stage2", CONDITIONAL), ("stage2-discount", LOO), ("readable", CONDITIONAL)),
]


@pytest.mark.parametrize(("name", "baseline"), CASES)
def test_the_expected_update_is_the_exact_gradient(name: str, baseline: str) -> None:
    assert gap(name, baseline) < 1e-8


@pytest.mark.parametrize(("name", "baseline"), [("process", LOO), ("outcome", CONDITIONAL)])
def test_and_so_it_is_with_three_dialogues(name: str, baseline: str) -> None:
    assert gap_of_advantages(name, baseline, 3) < 1e-8


def gap_of_advantages(name: str, baseline: str, samples: int) -> float:
    """Advantages of every batch, with the score of every turn: the expected gradient, without its passes."""
    _, discount, method = PAYS[name]
    exact = tiny.exact_gradient(POLICY, REFERENCE, method, discount=discount, beta=0.0)
    return (expected_from_advantages(name, baseline, samples) - exact).abs().max().item()


def test_with_two_dialogues_the_mates_of_a_turn_may_all_have_ended() -> None:
    for name in ("process", "outcome"):
        assert gap_of_advantages(name, LOO, 2) < 1e-8


def expected_from_advantages(name: str, baseline: str, samples: int) -> Tensor:
    # Without KL in the pay, an advantage is the same for all of a turn's tokens.
    config = replace(config_of(name, baseline, 0.0), kl="full")
    weights = torch.zeros(len(tiny.ALL), 4, dtype=torch.float64)
    chances = tiny.probabilities(POLICY)
    for members in itertools.combinations_with_replacement(range(len(tiny.ALL)), samples):
        ways = math.factorial(samples)
        for number in set(members):
            ways //= math.factorial(members.count(number))
        weight = ways * math.prod(chances[member] for member in members) / samples
        for member, row in zip(members, advantages(config, members), strict=True):
            weights[member] += weight * row
    loss = torch.zeros((), dtype=torch.float64)
    for dialogue, own in zip(tiny.ALL, weights, strict=True):
        loss = loss - (tiny.logprobs_of(POLICY, dialogue) * own[: len(dialogue)]).sum()
    return torch.autograd.grad(loss, POLICY.table)[0]


def advantages(config: Stage2Config, members: tuple[int, ...]) -> Tensor:
    traces = [replace(trace_of(member), sample_index=index) for index, member in enumerate(members)]
    verdicts = [tiny.verdict_of(tiny.ALL[member], index) for index, member in enumerate(members)]
    rewards = reward_matrix(verdicts, ragged=True).double()
    found = prepare(POLICY, REFERENCE, traces, rewards, config, verdicts=verdicts).advantages  # type: ignore[arg-type]
    return torch.nn.functional.pad(found, (0, 4 - found.shape[1]))


def test_the_outcome_level_is_the_gradient_of_the_last_solves_chance_to_be_right() -> None:
    whole = tiny.whole_gradient(POLICY, lambda dialogue: tiny.solves_in(dialogue)[-1])
    for baseline in BASELINES:
        assert (expected_from_advantages("outcome", baseline, 2) - whole).abs().max() < 1e-8


def test_reflexicoders_credit_is_the_gradient_of_its_expected_reward() -> None:
    whole = tiny.whole_gradient(POLICY, lambda dialogue: tiny.trajectory(dialogue)[-1])
    assert whole.abs().max() > 1e-2
    for baseline in BASELINES:
        assert (expected_from_advantages("reflexicoder", baseline, 2) - whole).abs().max() < 1e-8


def test_the_decision_to_stop_or_to_try_again_gets_credit_at_the_outcome_level() -> None:
    """A verdict changes what comes after it; at the process level it is paid for being true alone."""
    found = expected_from_advantages("outcome", LOO, 2)
    for solve in ([0], [1, 0]):
        state = tiny.prompts_of((tiny.Turn("solve", solve), tiny.Turn("verify", tiny.SAYS_RIGHT)))[1]
        code = functools.reduce(lambda code, token: code * 2 + token, state, 1) % len(POLICY.table)
        assert found[code].abs().max() > 1e-4
    assert is_right("p", [1, 0]) and not is_right("p", [0])


@pytest.mark.parametrize("name", ["process", "outcome"])
def test_what_was_paid_more_becomes_likelier(name: str) -> None:
    """One step down the gradient of two dialogues: every turn that earned more than its sibling's gains probability."""
    good = next(n for n, d in enumerate(tiny.ALL) if tiny.rewards_of(d) == [1.0, 1.0])
    bad = next(n for n, d in enumerate(tiny.ALL) if tiny.rewards_of(d) == [0.0, 0.0])
    moved = gradient(config_of(name, LOO, 0.0), (good, bad))
    before = [tiny.logprobs_of(POLICY, tiny.ALL[n]).sum().item() for n in (good, bad)]
    with torch.no_grad():
        POLICY.table -= 1e-3 * moved
    after = [tiny.logprobs_of(POLICY, tiny.ALL[n]).sum().item() for n in (good, bad)]
    with torch.no_grad():
        POLICY.table += 1e-3 * moved
    assert after[0] > before[0] and after[1] < before[1]


def test_a_turn_that_nobody_else_reached_is_compared_with_nothing() -> None:
    long = next(n for n, d in enumerate(tiny.ALL) if tiny.rewards_of(d) == [0.0, 1.0, 1.0, 1.0])
    short = next(n for n, d in enumerate(tiny.ALL) if tiny.rewards_of(d) == [1.0, 1.0])
    rows = advantages(replace(config_of("process", LOO, 0.0), kl="full"), (long, short))
    assert rows.tolist() == [[-1, 0, 1, 1], [1, 0, 0, 0]]


def test_an_absent_turn_is_not_an_unscored_one() -> None:
    """An absent turn adds nothing to what comes before it; an unscored one makes it unknown."""
    long = next(n for n, d in enumerate(tiny.ALL) if tiny.rewards_of(d) == [0.0, 1.0, 1.0, 1.0])
    config = replace(config_of("outcome", LOO, 0.0), kl="full")
    traces = [replace(trace_of(number), sample_index=index) for index, number in enumerate((long, 0, long))]
    verdicts = [tiny.verdict_of(tiny.ALL[number], index) for index, number in enumerate((long, 0, long))]
    verdicts[2] = replace(
        verdicts[2], verdicts=["incorrect", "correct", "unscored", "unscored"], rewards=[0.0, 1.0, None, None]
    )
    rewards = reward_matrix(verdicts, ragged=True).double()
    batch = prepare(POLICY, REFERENCE, traces, rewards, config, verdicts=verdicts)  # type: ignore[arg-type]
    # Dialogue 0 (solve [0], "right") ends wrong after two turns; the first ends right. The third is nobody's sibling.
    assert batch.advantages.tolist() == [[1, 1, 1, 1], [-1, -1, 0, 0], [0, 0, 0, 0]]
    assert batch.trainable.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def main() -> None:
    print(f"{'pay':<17}{'baseline':<15}{'largest gap to the exact gradient':>34}")
    for name, baseline in itertools.product(PAYS, BASELINES):
        print(f"{name:<17}{baseline:<15}{gap(name, baseline):>34.1e}")


if __name__ == "__main__":
    main()
