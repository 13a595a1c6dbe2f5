"""Credit by hand: what each attempt is paid, and what is subtracted."""

import math

import pytest
import torch

from score_cli.training import credit
from score_cli.training.pay import Paid, shaped_rewards, stage1_pay, stage2_pay

NAN = math.nan


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solves(rewards: torch.Tensor) -> Paid:
    return Paid(rewards, [["solve"] * rewards.shape[1]] * len(rewards))


def stage1_rewards(rewards: torch.Tensor) -> torch.Tensor:
    return shaped_rewards(stage1_pay(), solves(rewards))


def stage2_rewards(rewards: torch.Tensor, alpha: float, penalty: float = 0.0) -> torch.Tensor:
    return shaped_rewards(stage2_pay(alpha, penalty), solves(rewards))


def test_stage2_pays_the_paper_bonus_at_alpha_ten() -> None:
    rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert stage2_rewards(rewards, 10.0).tolist() == [[0, 0], [0, 11], [1, -10], [1, 1]]


def test_stage2_pays_each_later_attempt_for_progress_over_the_one_before() -> None:
    assert stage2_rewards(torch.tensor([[0.0, 1.0, 0.0]]), 10.0).tolist() == [[0, 11, -10]]


def test_a_stagnation_penalty_is_for_what_was_wrong_and_stays_wrong() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert stage2_rewards(rewards, 10.0, 3.0).tolist() == [[0, -3, 11], [0, 11, -10], [1, -10, -3], [1, 1, 1]]
    unscored = stage2_rewards(torch.tensor([[NAN, 0.0], [0.0, NAN]]), 10.0, 3.0)
    assert unscored[:, 1].isnan().all() and unscored[1, 0] == 0


def test_stage1_pays_the_last_attempt_alone() -> None:
    assert stage1_rewards(torch.tensor([[1.0, 0.0, 1.0]])).tolist() == [[0, 0, 1]]


def test_stage1_pins_every_attempt_but_the_last() -> None:
    assert credit.stage1_kl_coefficients(3, beta1=0.5, beta2=2.0) == [2.5, 2.5, 0.5]
    assert credit.stage2_kl_coefficients(3, beta1=0.5) == [0.5, 0.5, 0.5]


def test_discount_zero_credits_an_attempt_with_its_own_reward() -> None:
    shaped = torch.tensor([[1.0, -10.0]])
    assert credit.returns(shaped, 0.0).tolist() == [[1.0, -10.0]]


def test_discount_carries_later_rewards_back() -> None:
    assert credit.returns(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist() == [[3.0, 4.0, 4.0]]


def test_an_unscored_second_attempt_does_not_reach_the_first_without_discount() -> None:
    assert credit.returns(torch.tensor([[1.0, NAN]]), 0.0)[0, 0] == 1.0
    assert credit.returns(torch.tensor([[1.0, NAN]]), 0.5)[0, 0].isnan()


def test_leave_one_out_averages_the_other_samples_of_the_problem() -> None:
    values, groups = column(1, 0, 1, 5, 7), torch.tensor([0, 0, 0, 1, 1])
    assert credit.group_baseline(values, groups).tolist() == [0.5, 1.0, 0.5, 7.0, 5.0]


def test_unscored_samples_are_nobodys_sibling() -> None:
    values, groups = column(1, NAN, 3, 9), torch.tensor([0, 0, 0, 1])
    base = credit.group_baseline(values, groups)
    assert base[[0, 2]].tolist() == [3.0, 1.0]
    assert base[3].isnan()


def test_a_problem_with_one_scored_sample_gets_advantage_zero() -> None:
    values = torch.tensor([[5.0], [NAN], [1.0], [2.0]])
    found = credit.advantages(values, torch.tensor([0, 0, 1, 1]), values, "leave-one-out")
    assert found[:, 0].tolist() == [0.0, 0.0, -1.0, 1.0]


def test_conditional_baseline_compares_with_samples_whose_first_attempt_scored_the_same() -> None:
    values = column(11, 0, -10, 1, 11)
    previous = column(0, 0, 1, 1, 0)
    base = credit.conditional_baseline(values, torch.zeros(5, dtype=torch.long), previous)
    assert base.tolist() == [5.5, 11.0, 1.0, -10.0, 5.5]


def test_conditional_baseline_falls_back_to_the_batch_then_to_the_problem() -> None:
    # Problem 0: r1 = 0, 1. Problem 1: r1 = 0, 0. Nobody else has r1 = 1.
    values, previous = column(2, 4, 6, 10), column(0, 1, 0, 0)
    base = credit.conditional_baseline(values, torch.tensor([0, 0, 1, 1]), previous)
    assert base.tolist() == [8.0, 2.0, 10.0, 6.0]


def test_conditional_baseline_takes_the_alpha_r1_noise_away() -> None:
    """Where y2 always repeats y1's verdict, (0,0) pays 0 and (1,1) pays 1: nothing left to learn from y2."""
    rewards = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    shaped, groups = stage2_rewards(rewards, 10.0), torch.zeros(4, dtype=torch.long)
    assert credit.advantages(shaped, groups, rewards, "conditional")[:, 1].tolist() == [0, 0, 0, 0]
    plain = credit.advantages(shaped, groups, rewards, "leave-one-out")[:, 1]
    assert plain.tolist() == pytest.approx([-2 / 3, 2 / 3, -2 / 3, 2 / 3])


def test_the_first_attempt_is_always_compared_within_its_problem() -> None:
    values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = credit.advantages(values, torch.tensor([0, 0, 1, 1]), values, "conditional")
    assert found[:, 0].tolist() == [1.0, -1.0, 0.0, 0.0]
