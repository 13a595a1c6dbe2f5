"""How sure a policy is of the answers in its traces: the probabilities of the answers' own tokens. Nothing here reads
files, and nothing looks at gold answers.

An answer is the content of an attempt's last box. An attempt without one, or that was cut off, has confidence 0.

Source: RLSF, arXiv 2507.21931, whose released code has the mean over the answer's tokens as an option.
"""

import bisect
import math
from collections.abc import Callable, Sequence

from score_cli.tables.records import SOLVE, Trace
from score_cli.tables.schemas import LENGTH
from score_cli.tasks.latex_boxes import last_boxed_place

MEAN, PRODUCT = "mean", "product"
Decode = Callable[[list[int]], str]


def tokens_at(tokens: Sequence[int], place: slice, decode: Decode) -> range:
    """Numbers of the tokens that write a place of their text, those that reach over its edges included.

    Args:
        decode: tokens to text; of the first tokens alone it gives the first part of the text.
    """
    longest = {count: len(decode(list(tokens[:count]))) for count in (0, len(tokens))}

    def length(count: int) -> int:
        if count not in longest:
            longest[count] = len(decode(list(tokens[:count])))
        return longest[count]

    counts = range(len(tokens) + 1)
    first = bisect.bisect_right(counts, place.start, key=length) - 1
    last = bisect.bisect_left(counts, place.stop, key=length)
    return range(first, min(last, len(tokens)))


def answer_positions(trace: Trace, turn: int, decode: Decode) -> list[int] | None:
    """Where in a trace the tokens of a turn's answer stand; None where it has no answer. Turns count from 0."""
    place = last_boxed_place(trace.attempts[turn])
    if place is None or trace.finish_reasons[turn] == LENGTH:
        return None
    positions = (trace.attempt_ids == turn + 1).nonzero()[0].tolist()
    found = tokens_at(trace.token_ids[positions].tolist(), place, decode)
    return [positions[number] for number in found]


def confidences(trace: Trace, logprobs: Sequence[float], form: str, decode: Decode) -> list[float | None]:
    """Of each solve its confidence, 0 to 1; None for other turns.

    Args:
        logprobs: of every token of the trace, nats, by whichever policy is asked.
        form: `mean` of the probabilities of the answer's tokens, or their `product`.
    """
    found: list[float | None] = []
    for turn, role in enumerate(trace.turn_roles):
        positions = answer_positions(trace, turn, decode) if role == SOLVE else None
        values = [logprobs[position] for position in positions or ()]
        if role != SOLVE:
            found.append(None)
        elif not values:
            found.append(0.0)
        elif form == PRODUCT:
            found.append(math.exp(math.fsum(values)))
        else:
            found.append(math.fsum(map(math.exp, values)) / len(values))
    return found
