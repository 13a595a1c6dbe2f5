"""A division trace by its words, and a judge's words: what tests of signals are made of."""

from collections.abc import Sequence

import numpy as np

from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Trace
from score_cli.tasks.division import split_problems
from score_cli.tasks.pay import Pay
from tests.scripts import script

CONFIDENCE = Pay(weights={"solve": {"signal:confidence": 1.0}})
PROBLEM = split_problems("train")[0]
WORDS = script(turns=["solve", "verify"], most_solves=1)
JUDGE = {"kind": "judge", "ask": "<verify>", "claim": "right|wrong", "threads": 1}
SOLVED = "\\boxed{53}: product "


def division_trace(policy: Policy, *attempts: str, cut: Sequence[int] = ()) -> Trace:
    """A trace of written attempts, in the division tokenizer's words."""
    tokens = list(policy.tokenizer.encode(PROBLEM.question, add_special_tokens=False))
    owners = [0] * len(tokens)
    for number, text in enumerate(attempts, start=1):
        own = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]
        fix = [] if number == 1 else list(policy.tokenizer.encode("<fix>", add_special_tokens=False))
        tokens += fix + own
        owners += [0] * len(fix) + [number] * len(own)
    return Trace(
        PROBLEM.problem_id,
        0,
        list(attempts),
        ["length" if turn in cut else "stop" for turn in range(len(attempts))],
        np.array(tokens, dtype=np.int32),
        np.array(owners, dtype=np.int8),
        np.zeros(len(tokens), dtype=np.float32),
        0,
    )
