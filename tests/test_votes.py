"""Votes and pass@k: exact expectations against listing every subset, majority votes at equal budgets by hand."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_cli.errors import UserError
from score_cli.evaluation.measured import ballots_of
from score_cli.evaluation.votes import Ballot, majority_accuracy, pass_at_k, vote_rows
from score_cli.tables.records import Verdict


def vote(ballots: tuple[Ballot, ...], right: dict[str, Fraction]) -> Fraction:
    """One vote, as counted by hand: leaders share what is won."""
    counts = Counter(answer for answer, _ in ballots if answer is not None)
    if not counts:
        return Fraction(0)
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum((right[leader] for leader in leaders), Fraction(0)) / len(leaders)


def vote_of_every_subset(ballots: list[Ballot], voters: int) -> float:
    given = {answer for answer, _ in ballots if answer is not None}
    right = {
        answer: Fraction(
            sum(int(correct) for own, correct in ballots if own == answer), sum(own == answer for own, _ in ballots)
        )
        for answer in given
    }
    subsets = list(combinations(ballots, voters))
    return float(sum((vote(subset, right) for subset in subsets), Fraction(0)) / len(subsets))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_majority_accuracy_is_the_mean_over_all_subsets(data: st.DataObject) -> None:
    answers = data.draw(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=9))
    correct = data.draw(st.sampled_from(["a", "b", "none of them"]))
    ballots: list[Ballot] = [(answer, float(answer == correct)) for answer in answers]
    voters = data.draw(st.integers(1, len(ballots)))
    assert majority_accuracy(ballots, voters) == pytest.approx(vote_of_every_subset(ballots, voters), abs=1e-12)


def test_answers_judged_unlike_are_right_in_that_proportion() -> None:
    """Three voters of three: 7 leads with two ballots, one of which was judged right."""
    assert majority_accuracy([("7", 1.0), ("7", 0.0), ("8", 0.0)], 3) == pytest.approx(0.5)


def test_a_tie_pays_each_leader_its_share() -> None:
    ballots: list[Ballot] = [("7", 1.0), ("8", 0.0), ("9", 0.0), (None, 0.0)]
    assert majority_accuracy(ballots, 4) == pytest.approx(1 / 3)


def test_an_absent_answer_does_not_vote_and_nobody_voting_is_wrong() -> None:
    assert majority_accuracy([(None, 0.0), (None, 0.0), ("7", 1.0)], 3) == 1.0
    assert majority_accuracy([(None, 0.0), (None, 0.0)], 2) == 0.0


def test_a_large_poll_does_not_outgrow_a_float() -> None:
    """Three right ballots among 1,100 blank ones: 550 voters miss all three with chances 553, 552, 551 of 1103 ..."""
    ballots: list[Ballot] = [("7", 1.0)] * 3 + [(None, 0.0)] * 1100
    missed = 553 / 1103 * 552 / 1102 * 551 / 1101
    assert majority_accuracy(ballots, 550) == pytest.approx(1 - missed)


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (6, 1, 6), (7, 7, 4), (4, 1, 4)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples: int, correct: int, k: int) -> None:
    subsets = list(combinations([1] * correct + [0] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_subsets_larger_than_the_set_are_refused() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 samples"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="3 voters of 2 ballots"):
        majority_accuracy([("7", 1.0), ("8", 0.0)], 3)


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
    ballots = ballots_of(
        [pl.DataFrame([vars(verdict) for verdict in rewards], schema_overrides={"answers": pl.List(pl.String)})]
    )
    rows = vote_rows(ballots, policy="score", decoding="sampled", corrected=corrected)
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
