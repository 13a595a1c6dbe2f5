"""The estimator's expected gradient, over every batch that could be drawn, against exact gradients.

| stage  | discount | baseline      | kl      | expected gradient equals                                    |
|--------|----------|---------------|---------|-------------------------------------------------------------|
| I, II  | 0        | leave-one-out | sampled | credit of each attempt's own reward and KL (App. A.4)       |
| I, II  | 0        | conditional   | sampled | the same                                                    |
| I, II  | 0.5      | both          | sampled | half of the next attempt's credit besides                   |
| I, II  | 1        | both          | sampled | the gradient of Eq. 3 / Eq. 4 itself, nothing held constant |
| I, II  | any      | both          | full    | the same reward part; KL at visited prefixes only (biased)  |

Sampled KL is charged to go: a token's advantage is spared the log-ratios of the attempt's tokens before it, which adds
nothing to the expected gradient. One attempt gives Eq. 2 in either stage; three give the same table with the bonus
against the attempt before. A penalty on staying wrong is exact in the same sense.

Run `python -m tests.test_objectives` for the table with the measured gaps.
"""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from score_cli.config import Stage1Config, Stage2Config
from score_cli.tables.records import Trace
from tests import enumeration as tiny
from tests.conftest import take_gradient

ALPHA, BETA1, BETA2 = 10.0, 0.125, 0.25
POLICY, REFERENCE = tiny.TablePolicy(1), tiny.TablePolicy(2)
CASES = list(
    itertools.product(("stage1", "stage2"), (0.0, 0.5, 1.0), ("leave-one-out", "conditional"), ("sampled", "full"))
)


def config_of(stage: str, discount: float, baseline: str, kl: str, **other: object) -> Stage1Config | Stage2Config:
    shared = {"beta1": BETA1, "discount": discount, "baseline": baseline, "kl": kl} | other
    if stage == "stage1":
        return Stage1Config(beta2=BETA2, **shared)  # type: ignore[arg-type]
    return Stage2Config(alpha=ALPHA, **shared)  # type: ignore[arg-type]


def kl_of(stage: str) -> tuple[float, float]:
    """Coefficients as the paper gives them: beta2 only in Stage I and only on the first attempt."""
    return (BETA1 + BETA2, BETA1) if stage == "stage1" else (BETA1, BETA1)


@functools.cache
def trace_of(policy: tiny.TablePolicy, problem: str, number: int) -> Trace:
    return tiny.make_trace(policy, problem, 0, *tiny.trajectories()[number])


def estimate(
    config: Stage1Config | Stage2Config,
    drawn: list[tuple[str, int]],
    policy: tiny.TablePolicy = POLICY,
    reference: tiny.TablePolicy = REFERENCE,
) -> Tensor:
    """The product's gradient for one batch: (problem, number of the trajectory) of each trace."""
    traces, rewards = [], []
    for index, (problem, number) in enumerate(drawn):
        first, second = tiny.trajectories()[number]
        traces.append(replace(trace_of(policy, problem, number), sample_index=index))
        rewards.append([tiny.is_right(problem, first), tiny.is_right(problem, second)])
    policy.zero_grad()
    known = torch.tensor(rewards, dtype=torch.float64)
    take_gradient(policy, reference, traces, known, config, temperature=policy.temperature)
    return tiny.found_gradient(policy)


def expected_gradient(
    config: Stage1Config | Stage2Config,
    sizes: dict[str, int],
    policy: tiny.TablePolicy = POLICY,
    reference: tiny.TablePolicy = REFERENCE,
) -> Tensor:
    """Sum over every batch of `sizes[problem]` samples of its probability times its gradient."""
    total = torch.zeros(())
    for probability, drawn in tiny.batches(policy, sizes):
        total = total + probability * estimate(config, drawn, policy, reference)
    return total


def gap_to_exact(case: tuple[str, float, str, str], sizes: dict[str, int]) -> float:
    stage, discount, _, kl = case
    exact = tiny.exact_gradient(
        POLICY,
        REFERENCE,
        stage=stage,
        alpha=ALPHA,
        kl_coefficients=kl_of(stage),
        discount=discount,
        kl=kl,
        problems=tuple(sizes),
    )
    assert exact.abs().max() > 1e-2
    return (expected_gradient(config_of(*case), sizes) - exact).abs().max().item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_expected_gradient_is_the_exact_gradient(case: tuple[str, float, str, str]) -> None:
    assert gap_to_exact(case, {"p": 3}) < 1e-8


def test_conditional_baseline_that_falls_back_to_other_problems_stays_unbiased() -> None:
    # Two samples a problem: a sample whose sibling scored otherwise at first looks at the other problem.
    assert gap_to_exact(("stage2", 0.0, "conditional", "sampled"), {"p": 2, "q": 2}) < 1e-8


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_discount_one_is_the_gradient_of_the_paper_objective_itself(stage: str) -> None:
    whole = tiny.whole_objective_gradient(POLICY, REFERENCE, stage=stage, alpha=ALPHA, kl_coefficients=kl_of(stage))
    for baseline in ("leave-one-out", "conditional"):
        found = expected_gradient(config_of(stage, 1.0, baseline, "sampled"), {"p": 2})
        assert (found - whole).abs().max() < 1e-8


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_full_kl_has_the_known_bias(stage: str) -> None:
    """The full form leaves out how a token changes later divergence: it must differ, by exactly that."""
    sampled = expected_gradient(config_of(stage, 0.0, "leave-one-out", "sampled"), {"p": 2})
    full = expected_gradient(config_of(stage, 0.0, "leave-one-out", "full"), {"p": 2})
    missing = torch.zeros((), dtype=torch.float64)
    for first, second in tiny.trajectories():
        prefixes = (tiny.PROMPTS["p"], tiny.second_prompt("p", first))
        logs = [tiny.attempt_logprob(POLICY, x, y) for x, y in zip(prefixes, (first, second), strict=True)]
        probability = sum(logs).exp().detach()  # type: ignore[union-attr]
        for coefficient, prefix, attempt in zip(kl_of(stage), prefixes, (first, second), strict=True):
            for i, token in enumerate(attempt):
                later = tiny.attempt_full_kl(POLICY, REFERENCE, prefix, attempt) - tiny.attempt_full_kl(
                    POLICY, REFERENCE, prefix, attempt[: i + 1]
                )
                score = POLICY.logprob(prefix + attempt[:i], token)
                missing = missing + probability * coefficient * score * later.detach()
    bias = tiny.gradient(missing, POLICY)
    assert bias.abs().max() > 1e-3
    assert (sampled - full - bias).abs().max() < 1e-8


def test_discount_at_alpha_ten_pays_the_first_attempt_for_being_wrong() -> None:
    """With the bonus credited to y1 too, E[G1 | r1 wrong] exceeds E[G1 | r1 right]: by brute force."""
    means = {}
    for discount in (0.0, 1.0):
        sums = {0.0: [0.0, 0.0], 1.0: [0.0, 0.0]}
        probabilities = tiny.trajectory_probabilities(POLICY, "p").tolist()
        for probability, (first, second) in zip(probabilities, tiny.trajectories(), strict=True):
            r1, r2 = tiny.is_right("p", first), tiny.is_right("p", second)
            own, bonus = tiny.stage_rewards("stage2", ALPHA, r1, r2)
            sums[r1][0] += probability * (own + discount * bonus)
            sums[r1][1] += probability
        means[discount] = {r1: total / weight for r1, (total, weight) in sums.items()}
    assert means[0.0][1.0] > means[0.0][0.0]
    assert means[1.0][1.0] < means[1.0][0.0]


@pytest.mark.parametrize("budget", [1, 20, 40])
@pytest.mark.parametrize("kl", ["sampled", "full"])
def test_splitting_a_batch_keeps_the_gradient(budget: int, kl: str) -> None:
    drawn = [("p", 0), ("q", 4), ("p", 7), ("q", 8), ("p", 2), ("q", 1)]
    sizes = {"micro_batch_tokens": budget, "scoring_tokens": 60}
    whole = estimate(config_of("stage2", 0.0, "conditional", kl, micro_batch_tokens=10_000), drawn)
    split = estimate(config_of("stage2", 0.0, "conditional", kl, **sizes), drawn)
    assert whole.abs().max() > 0.1
    assert (whole - split).abs().max() < 1e-12


def test_gradients_by_attempt_add_up_to_the_gradient() -> None:
    drawn = [("p", 0), ("q", 4), ("p", 7), ("q", 8)]
    together = estimate(config_of("stage2", 0.0, "leave-one-out", "full"), drawn)
    apart = estimate(config_of("stage2", 0.0, "leave-one-out", "full", log_grad_norm_by_attempt=True), drawn)
    assert (together - apart).abs().max() < 1e-12


@pytest.mark.parametrize("kl", ["sampled", "full"])
def test_a_policy_that_makes_its_logits_itself_has_the_exact_gradient(kl: str) -> None:
    """Where there is no head that the trainer knows, the model's own logits are taken."""
    policy, reference = (tiny.TablePolicy(seed, width=None) for seed in (1, 2))
    exact = tiny.exact_gradient(
        policy, reference, stage="stage2", alpha=ALPHA, kl_coefficients=kl_of("stage2"), discount=0.0, kl=kl
    )
    config = config_of("stage2", 0.0, "leave-one-out", kl)
    assert exact.abs().max() > 1e-2
    assert (expected_gradient(config, {"p": 2}, policy, reference) - exact).abs().max() < 1e-8


@pytest.mark.parametrize("kl", ["sampled", "full"])
def test_at_a_temperature_the_gradient_is_that_of_the_distribution_sampled_from(kl: str) -> None:
    policy, reference = (tiny.TablePolicy(seed, temperature=0.6) for seed in (1, 2))
    exact = tiny.exact_gradient(
        policy, reference, stage="stage2", alpha=ALPHA, kl_coefficients=kl_of("stage2"), discount=0.0, kl=kl
    )
    config = config_of("stage2", 0.0, "leave-one-out", kl)
    assert exact.abs().max() > 1e-2
    assert (expected_gradient(config, {"p": 2}, policy, reference) - exact).abs().max() < 1e-8


def test_alpha_zero_is_plain_policy_gradient() -> None:
    config = Stage2Config(alpha=0.0, beta1=0.0, baseline="leave-one-out", kl="sampled")
    found = expected_gradient(config, {"p": 2})
    exact = tiny.exact_gradient(
        POLICY, REFERENCE, stage="stage2", alpha=0.0, kl_coefficients=(0.0, 0.0), discount=0.0, kl="sampled"
    )
    assert (found - exact).abs().max() < 1e-8


LONG_POLICY, LONG_REFERENCE = (tiny.TablePolicy(seed, longest=12) for seed in (1, 2))


@functools.cache
def chain_of(attempts: int, number: int) -> Trace:
    return tiny.chain_trace(LONG_POLICY, "p", 0, tiny.chains(attempts)[number])


def expected_chain_gradient(config: Stage1Config | Stage2Config, attempts: int, samples: int) -> Tensor:
    """As `expected_gradient`, for problem `p` and any number of attempts."""
    every = tiny.chains(attempts)
    probabilities = [tiny.chain_logprobs(LONG_POLICY, "p", chain).sum().exp().item() for chain in every]
    assert sum(probabilities) == pytest.approx(1.0)
    total = torch.zeros(())
    for members in itertools.combinations_with_replacement(range(len(every)), samples):
        ways = math.factorial(samples)
        for number in set(members):
            ways //= math.factorial(members.count(number))
        traces = [replace(chain_of(attempts, m), sample_index=index) for index, m in enumerate(members)]
        rewards = torch.tensor([[tiny.is_right("p", y) for y in every[m]] for m in members], dtype=torch.float64)
        LONG_POLICY.zero_grad()
        take_gradient(LONG_POLICY, LONG_REFERENCE, traces, rewards, config)
        total = total + ways * math.prod(probabilities[m] for m in members) * tiny.found_gradient(LONG_POLICY)
    return total


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("discount", [0.0, 0.8])
@pytest.mark.parametrize("baseline", ["leave-one-out", "conditional"])
def test_one_attempt_is_the_papers_single_turn_objective(stage: str, discount: float, baseline: str) -> None:
    """Eq. 2, whatever alpha and the discount: without another attempt there is no bonus and nothing to credit."""
    exact = tiny.single_turn_gradient(LONG_POLICY, LONG_REFERENCE, BETA1)
    assert exact.abs().max() > 1e-2
    found = expected_chain_gradient(config_of(stage, discount, baseline, "sampled"), 1, 3)
    assert (found - exact).abs().max() < 1e-8


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("discount", [0.0, 0.8])
@pytest.mark.parametrize("baseline", ["leave-one-out", "conditional"])
def test_three_attempts_have_the_exact_gradient(stage: str, discount: float, baseline: str) -> None:
    """Stage I (b): r3 alone, the first two attempts pinned. Stage II: the bonus against the previous attempt."""
    coefficients = [BETA1 + BETA2, BETA1 + BETA2, BETA1] if stage == "stage1" else [BETA1] * 3
    exact = tiny.chain_gradient(
        LONG_POLICY, LONG_REFERENCE, stage=stage, alpha=ALPHA, kl_coefficients=coefficients, discount=discount
    )
    assert exact.abs().max() > 1e-2
    found = expected_chain_gradient(config_of(stage, discount, baseline, "sampled"), 3, 2)
    assert (found - exact).abs().max() < 1e-8


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.parametrize("discount", [0.0, 0.8])
@pytest.mark.parametrize("baseline", ["leave-one-out", "conditional"])
def test_a_stagnation_penalty_has_the_exact_gradient(attempts: int, discount: float, baseline: str) -> None:
    exact, without = (
        tiny.chain_gradient(
            LONG_POLICY,
            LONG_REFERENCE,
            stage="stage2",
            alpha=ALPHA,
            kl_coefficients=[BETA1] * attempts,
            discount=discount,
            penalty=penalty,
        )
        for penalty in (3.0, 0.0)
    )
    assert (exact - without).abs().max() > 1e-2
    config = config_of("stage2", discount, baseline, "sampled", stagnation_penalty=3.0)
    found = expected_chain_gradient(config, attempts, 2)
    assert (found - exact).abs().max() < 1e-8


def main() -> None:
    print(f"{'stage':<8}{'discount':>9}  {'baseline':<15}{'kl':<9}{'largest gap to the exact gradient':>34}")
    for case in CASES:
        stage, discount, baseline, kl = case
        print(f"{stage:<8}{discount:>9}  {baseline:<15}{kl:<9}{gap_to_exact(case, {'p': 3}):>34.1e}")


if __name__ == "__main__":
    main()
