"""Majority votes at equal budgets, by hand."""

import math

import pytest

from score_cli.errors import UserError
from score_cli.evaluation.votes import vote_rows
from score_cli.tables.records import Verdict


def reward(problem: str, index: int, first: str | None, second: str | None, gold: str = "7") -> Verdict:
    """An answer of `?` is unscored."""
    answers = [None if a == "?" else a for a in (first, second)]
    verdicts = [
        "unscored" if a == "?" else "no_answer" if a is None else "correct" if a == gold else "incorrect"
        for a in (first, second)
    ]
    values = [None if v == "unscored" else float(v == "correct") for v in verdicts]
    return Verdict(problem, index, answers, verdicts, values)


# Problem p: first attempts 7 8 8 9, second attempts 7 7 8 7. Problem q: first 7 7 7 1, second 1 7 7 7.
REWARDS = [
    *(reward("p", i, a, b) for i, (a, b) in enumerate(["77", "87", "88", "97"])),
    *(reward("q", i, a, b) for i, (a, b) in enumerate(["71", "77", "77", "17"])),
]


def measured(rewards: list[Verdict], corrected: list[int]) -> dict[str, dict[str, float]]:
    rows = vote_rows(rewards, policy="score", decoding="sampled", corrected=corrected)
    assert {(row["policy"], row["decoding"]) for row in rows} == {("score", "sampled")}
    return {row["name"]: row for row in rows}


def test_parallel_votes_on_first_attempts_and_sequential_on_half_as_many_second_ones() -> None:
    found = measured(REWARDS, [1, 2])
    # K = 1: two first attempts tie unless equal. p, of six pairs: 78 78 79 each 1/2, 88 89 89 nothing. q: 77 77 77
    # each 1, and three of 71 each 1/2. One second attempt: 3/4 are right in both.
    p, q = 1.5 / 6, (3 + 1.5) / 6
    assert found["majority@parallel[2]"]["value"] == pytest.approx((p + q) / 2)
    assert found["majority@sequential[2]"]["value"] == pytest.approx(3 / 4)
    assert found["majority@gain[2]"]["value"] == pytest.approx(3 / 4 - (p + q) / 2)
    # K = 2: all four first attempts elect 8 in p, 7 in q. Of pairs of 7 7 7 x, three agree and three tie.
    assert found["majority@parallel[4]"]["value"] == pytest.approx(1 / 2)
    assert found["majority@sequential[4]"]["value"] == pytest.approx((3 + 1.5) / 6)
    assert {row["count"] for row in found.values()} == {2}


def test_errors_are_between_problems_and_the_gain_is_paired() -> None:
    found = measured(REWARDS, [2])
    # Parallel is 0 and 1, sequential 3/4 both: gains of 3/4 and -1/4.
    assert found["majority@parallel[4]"]["stderr"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert found["majority@sequential[4]"]["stderr"] == 0.0
    assert found["majority@gain[4]"]["stderr"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))


def test_an_unscored_attempt_neither_votes_nor_counts_as_wrong() -> None:
    """Without its unscored first attempt, p has three left: too few for a budget of four, enough for two."""
    rewards = [reward("p", 0, "?", "7"), *REWARDS[1:]]
    found = measured(rewards, [1, 2])
    assert found["majority@parallel[4]"]["count"] == 1 and found["majority@parallel[4]"]["value"] == 1.0
    # Both sides are over the same problems: q alone.
    assert found["majority@sequential[4]"]["count"] == 1
    assert found["majority@parallel[2]"]["count"] == 2
    assert found["majority@parallel[2]"]["value"] == pytest.approx((0 + 4.5 / 6) / 2)


def test_more_voters_than_responses_are_refused() -> None:
    with pytest.raises(UserError, match="--votes 3 needs 6 graded traces .* no problem of score has so many .* is 4"):
        measured(REWARDS, [1, 3])
