"""Majority vote: 2K parallel first attempts against K parallel attempts each corrected once, 2K responses either way.

Names of the metrics table, with the budget 2K in brackets:

    majority@parallel[32]      vote of 32 first attempts
    majority@sequential[32]    vote of 16 second attempts, each the correction of a first attempt of its own
    majority@gain[32]          sequential minus parallel, paired by problem

Values are means over problems (`count` is their number) of the expected accuracy over all subsets of the
responses at hand, ties broken evenly. A problem with fewer scored responses than a budget asks for is left
out of all three; an unscored response never votes. Answers are one where their extracted texts are equal: `1/2` and
`0.5` are two candidates, though both may be right.
"""

from collections.abc import Sequence
from dataclasses import asdict

from score_cli.errors import UserError
from score_cli.evaluation.evaluate import Row
from score_cli.evaluation.metrics import clustered_mean
from score_cli.evaluation.subsets import Ballot, majority_accuracy
from score_cli.tables.records import Verdict

# Traces drawn for a vote alone are kept under this name in place of a decoding's.
VOTES = "votes"
PARALLEL = "parallel"
SEQUENTIAL = "sequential"
GAIN = "gain"


def vote_rows(rewards: Sequence[Verdict], *, policy: str, decoding: str, corrected: Sequence[int]) -> list[Row]:
    """Rows of the metrics table for each budget.

    Args:
        corrected: K of each budget 2K.
    Raises:
        UserError: no problem has responses enough, or traces have no second attempt.
    """
    first, second = _ballots(rewards, 1), _ballots(rewards, 2)
    rows = []
    for k in corrected:
        problems = [name for name, ballots in first.items() if len(ballots) >= 2 * k and len(second[name]) >= k]
        if not problems:
            raise UserError(
                f"--votes {k} needs {2 * k} graded traces of two attempts of a problem, and no problem of {policy} has "
                f"so many (the most is {max(map(len, first.values()))}): vote with fewer, or sample more"
            )
        parallel = [majority_accuracy(first[name], 2 * k) for name in problems]
        sequential = [majority_accuracy(second[name], k) for name in problems]
        gain = [after - before for after, before in zip(sequential, parallel, strict=True)]
        for kind, values in [(PARALLEL, parallel), (SEQUENTIAL, sequential), (GAIN, gain)]:
            row = {"policy": policy, "decoding": decoding, "name": f"majority@{kind}[{2 * k}]"}
            rows.append(row | asdict(clustered_mean(values, problems)))
    return rows


def _ballots(rewards: Sequence[Verdict], attempt: int) -> dict[str, list[Ballot]]:
    """Each problem's scored answers at an attempt; a problem without any has an empty list."""
    ballots: dict[str, list[Ballot]] = {}
    for reward in rewards:
        own = ballots.setdefault(reward.problem_id, [])
        if len(reward.rewards) >= attempt and (right := reward.correct[attempt - 1]) is not None:
            own.append((reward.answers[attempt - 1], float(right)))
    return ballots
