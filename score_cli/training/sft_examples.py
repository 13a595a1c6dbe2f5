"""Traces and rewards to the examples of the supervised baselines. Nothing here reads files.

| method        | examples (Kumar et al., baselines trained on self-generated data)                   |
|---------------|-------------------------------------------------------------------------------------|
| star          | traces wrong at the first attempt and right at the second                           |
| star-plus     | and traces right at both                                                            |
| pair-sft      | each wrong first attempt, then a random right response to the same problem, out of  |
|               | all first and second attempts                                                       |
| pair-sft-plus | and each right first attempt, then another random right response to the problem     |

Where the paper is silent: every fitting trace gives one example, equal ones included. A response is
not paired with itself, which would teach copying. An attempt that was cut off can be a wrong first
attempt, never what is learned. Attempts that nobody could score are in no example. First attempts that
were given to the sampler count like its own.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from score_cli.config import SftMethod
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import STOP


@dataclass(frozen=True)
class Example:
    """One row of the examples table: a conversation of two attempts, of which the second is right, or a dialogue.

    Prompt, first attempt and bridge are those of the trace `sample_index`; the second attempt is
    attempt `target_attempt` of the trace `target_sample_index` of the same problem. With prompt `P`,
    first attempt `Y`, bridge `B` and the other response `R`:

        token_ids    P P P Y Y B R R R     [T]
        attempt_ids  0 0 0 1 1 0 2 2 2     [T]

    Attributes:
        roles, learned: of a dialogue (`sft_dialogues`), what each turn is, and the turns learned, counted from 1.
    """

    problem_id: str
    method: str
    sample_index: int
    target_sample_index: int
    target_attempt: int
    attempts: list[str]
    verdicts: list[str]
    token_ids: NDArray[np.int32]
    attempt_ids: NDArray[np.int8]
    roles: list[str] | None = None
    learned: list[int] | None = None


class _Response(NamedTuple):
    """One attempt of one trace: the trace's row and the attempt's number."""

    row: int
    attempt: int


def build_examples(
    traces: Sequence[Trace], rewards: Sequence[Verdict], method: SftMethod, *, seed: int
) -> list[Example]:
    """The examples that a method makes of traces of two attempts, in the traces' order.

    Args:
        traces, rewards: row by row; a reward of None is unscored.
        seed: of the responses drawn; one example's draw does not depend on the other examples.
    Returns:
        At most one example a trace; empty where no trace fits.
    """
    with_right_first = method in ("star-plus", "pair-sft-plus")
    right = _right_responses(traces, rewards)
    examples = []
    for row, (trace, reward) in enumerate(zip(traces, rewards, strict=True)):
        first = reward.correct[0]
        if first is None or (first and not with_right_first):
            continue
        if method in ("star", "star-plus"):
            candidates = [response for response in right[trace.problem_id] if response == (row, 2)]
        else:
            candidates = [response for response in right[trace.problem_id] if response != (row, 1)]
        if candidates:
            target = candidates[_draw(seed, trace, len(candidates))]
            examples.append(_example(traces, rewards, row, target, method))
    return examples


def _right_responses(traces: Sequence[Trace], rewards: Sequence[Verdict]) -> defaultdict[str, list[_Response]]:
    """The right responses to each problem, out of all first and second attempts that came to their end."""
    found: defaultdict[str, list[_Response]] = defaultdict(list)
    for row, (trace, reward) in enumerate(zip(traces, rewards, strict=True)):
        for attempt in (1, 2):
            if reward.correct[attempt - 1] and trace.finish_reasons[attempt - 1] == STOP:
                found[trace.problem_id].append(_Response(row, attempt))
    return found


def _draw(seed: int, trace: Trace, count: int) -> int:
    """A number below `count` that belongs to this trace and to no other."""
    name = json.dumps([seed, trace.problem_id, trace.sample_index])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()) % count


def _example(
    traces: Sequence[Trace], rewards: Sequence[Verdict], row: int, target: _Response, method: SftMethod
) -> Example:
    trace, other = traces[row], traces[target.row]
    start = int(np.argmax(trace.attempt_ids == 2))
    # Tokens are carried over as they were sampled, the stop token with them; nothing is encoded anew.
    learned = other.token_ids[other.attempt_ids == target.attempt]
    return Example(
        problem_id=trace.problem_id,
        method=method,
        sample_index=trace.sample_index,
        target_sample_index=other.sample_index,
        target_attempt=target.attempt,
        attempts=[trace.attempts[0], other.attempts[target.attempt - 1]],
        verdicts=[rewards[row].verdicts[0], rewards[target.row].verdicts[target.attempt - 1]],
        token_ids=np.concatenate([trace.token_ids[:start], learned]),
        attempt_ids=np.concatenate([trace.attempt_ids[:start], np.full(len(learned), 2, dtype=np.int8)]),
    )
