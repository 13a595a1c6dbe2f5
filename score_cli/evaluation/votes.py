"""Votes and pass@k, exact over all subsets of the responses at hand; and what they add to the metrics table.

Majority vote: 2K parallel first attempts against K parallel attempts each corrected once, 2K responses either way.

Names of the metrics table, with the budget 2K in brackets:

    majority@parallel[32]      vote of 32 first attempts
    majority@sequential[32]    vote of 16 second attempts, each the correction of a first attempt of its own
    majority@gain[32]          sequential minus parallel, paired by problem

Values are means over problems (`count` is their number) of the expected accuracy over all subsets of the
responses at hand, ties broken evenly. A problem with fewer scored responses than a budget asks for is left
out of all three; an unscored response never votes. Answers are one where their extracted texts are equal: `1/2` and
`0.5` are two candidates, though both may be right. With more responses than a budget, the mean over all subsets of
that size uses every response and is unbiased.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from math import comb
from typing import Any

import polars as pl

from score_cli.errors import UserError
from score_cli.metrics import clustered_mean

# Traces drawn for a vote alone are kept under this name in place of a decoding's.
VOTES = "votes"
PARALLEL = "parallel"
SEQUENTIAL = "sequential"
GAIN = "gain"

Ballot = tuple[str | None, float]


def vote_rows(ballots: pl.DataFrame, *, policy: str, decoding: str, corrected: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the metrics table for each budget.

    Args:
        ballots: see `measured.count_ballots`.
        corrected: K of each budget 2K.
    Raises:
        UserError: no problem has responses enough, or traces have no second attempt.
    """
    first, second = _by_problem(ballots, 1), _by_problem(ballots, 2)
    rows = []
    for k in corrected:
        problems = [name for name, own in first.items() if len(own) >= 2 * k and len(second.get(name, ())) >= k]
        if not problems:
            raise UserError(
                f"--votes {k} needs {2 * k} graded traces of two attempts of a problem, and no problem of {policy} has "
                f"so many (the most is {max(map(len, first.values()), default=0)}): vote with fewer, or sample more"
            )
        parallel = [majority_accuracy(first[name], 2 * k) for name in problems]
        sequential = [majority_accuracy(second[name], k) for name in problems]
        gain = [after - before for after, before in zip(sequential, parallel, strict=True)]
        for kind, values in [(PARALLEL, parallel), (SEQUENTIAL, sequential), (GAIN, gain)]:
            row = {"policy": policy, "decoding": decoding, "name": f"majority@{kind}[{2 * k}]"}
            rows.append(row | asdict(clustered_mean(values, problems)))
    return rows


def _by_problem(ballots: pl.DataFrame, attempt: int) -> dict[str, list[Ballot]]:
    """Each problem's scored answers at an attempt."""
    found: dict[str, list[Ballot]] = {}
    own = ballots.filter(pl.col("attempt") == attempt).select("problem_id", "answer", "right", "count")
    for problem, answer, right, count in own.iter_rows():
        found.setdefault(problem, []).extend([(answer, right)] * count)
    return found


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is correct.

    Raises:
        ValueError: fewer samples than k, or k < 1.
    Source: Chen et al. 2021, Eq. 1: 1 - C(n - c, k) / C(n, k).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def majority_accuracy(ballots: Sequence[Ballot], voters: int) -> float:
    """Expected accuracy of a majority vote among `voters` ballots drawn without replacement.

    Ties are broken by drawing one of the leading answers, each as likely; the expectation is taken over the
    draw of voters and the tie-break at once, with no randomness of its own.

    Args:
        ballots: (answer, 1.0 where correct else 0.0); an answer of None is no vote. Ballots of one answer that
            were judged differently make it right in that proportion.
    Returns:
        A fraction; voters who all give no answer are wrong.
    Raises:
        ValueError: fewer ballots than voters, or voters < 1.
    """
    if not 1 <= voters <= len(ballots):
        raise ValueError(f"{voters} voters of {len(ballots)} ballots")
    votes = Counter(answer for answer, _ in ballots if answer is not None)
    right = dict.fromkeys(votes, 0.0)
    for answer, correct in ballots:
        if answer is not None:
            right[answer] += correct
    blank = len(ballots) - votes.total()
    accuracy = 0.0
    for answer, own in votes.items():
        if right[answer]:
            rivals = tuple(sorted(count for other, count in votes.items() if other != answer))
            accuracy += right[answer] / own * win_probability(own, rivals, blank, voters)
    return accuracy


@lru_cache(maxsize=65536)
def win_probability(own: int, rivals: tuple[int, ...], blank: int, voters: int) -> float:
    """Probability that an answer wins the vote of a random subset, ties shared evenly.

    Args:
        own: ballots for the answer; rivals: ballots for each other answer; blank: ballots without an answer.
    """
    subsets = comb(own + sum(rivals) + blank, voters)
    wins = 0.0
    for mine in range(1, min(own, voters) + 1):
        # Rivals with fewer ballots than `mine` can neither lead nor tie, so how they fall does not matter.
        free = blank + sum(rival for rival in rivals if rival < mine)
        outcomes = _outcomes_below(mine, [rival for rival in rivals if rival >= mine], voters - mine)
        for (drawn, tied), ways in outcomes.items():
            # Whole numbers until the division: the counts outgrow a float.
            wins += comb(own, mine) * ways * comb(free, voters - mine - drawn) / (subsets * (1 + tied))
    return wins


def _outcomes_below(most: int, rivals: list[int], voters: int) -> dict[tuple[int, int], int]:
    """(ballots drawn from the rivals, rivals with exactly `most`) -> ways, where no rival has more than `most`."""
    outcomes = {(0, 0): 1}
    for rival in rivals:
        following: dict[tuple[int, int], int] = {}
        for (drawn, tied), ways in outcomes.items():
            for taken in range(min(most, voters - drawn) + 1):
                key = (drawn + taken, tied + (taken == most))
                following[key] = following.get(key, 0) + ways * comb(rival, taken)
        outcomes = following
    return outcomes
