"""The examples of STaR and Pair-SFT, row by row, for one small table of traces made by hand."""

import hashlib
import json

import numpy as np
import pytest

from score_cli.tables.records import Trace, Verdict
from score_cli.training.sft_examples import Example, build_examples

# Tokens by hand: a prompt is 1 1, the bridge 5 (6 5 where the turn had to be closed), an end 9.
# An attempt's other tokens tell its problem, sample and number: 312 is problem 3, sample 1, attempt 2.
P, BRIDGE, CLOSE, END = [1, 1], [5], [6], 9


def trace(problem: int, sample: int, reasons: str = "ss") -> Trace:
    """A trace of two attempts; `reasons` says for each whether it stopped (s) or was cut off (l)."""
    first, second = ([100 * problem + 10 * sample + a] * 2 + ([END] if reasons[a - 1] == "s" else []) for a in (1, 2))
    bridge = BRIDGE if reasons[0] == "s" else CLOSE + BRIDGE
    tokens = P + first + bridge + second
    owners = [0] * len(P) + [1] * len(first) + [0] * len(bridge) + [2] * len(second)
    return Trace(
        problem_id=f"p{problem}",
        sample_index=sample,
        attempts=[f"{problem}{sample}1", f"{problem}{sample}2"],
        finish_reasons=[{"s": "stop", "l": "length"}[reason] for reason in reasons],
        token_ids=np.array(tokens, dtype=np.int32),
        attempt_ids=np.array(owners, dtype=np.int8),
        logprobs=np.zeros(len(tokens), dtype=np.float32),
        offline_attempts=0,
    )


VALUES = {"c": 1.0, "i": 0.0, "t": 0.0, "u": None}
VERDICTS = {"c": "correct", "i": "incorrect", "t": "truncated", "u": "unscored"}


def reward(of: Trace, verdicts: str) -> Verdict:
    return Verdict(
        of.problem_id, of.sample_index, [None, None], [VERDICTS[v] for v in verdicts], [VALUES[v] for v in verdicts]
    )


# Problem 1: every kind of pair. Problem 2: one right response, the first attempt itself. Problem 3: none.
# Problem 4: a first attempt cut off. Problem 5: what nobody could score. Problem 6: right, they say, though cut off.
TABLE = [
    (trace(1, 0), "ic"),
    (trace(1, 1), "ii"),
    (trace(1, 2), "cc"),
    (trace(1, 3), "ci"),
    (trace(2, 0), "ci"),
    (trace(3, 0), "ii"),
    (trace(4, 0, "ls"), "tc"),
    (trace(5, 0), "uc"),
    (trace(5, 1), "iu"),
    (trace(6, 0, "sl"), "ic"),
]
TRACES = [row for row, _ in TABLE]
REWARDS = [reward(row, verdicts) for row, verdicts in TABLE]


def told(examples: list[Example]) -> list[tuple[str, int, list[str]]]:
    return [(e.problem_id, e.sample_index, e.attempts) for e in examples]


def test_star_takes_what_was_put_right_within_one_trace() -> None:
    assert told(build_examples(TRACES, REWARDS, "star", seed=0)) == [
        ("p1", 0, ["101", "102"]),
        ("p4", 0, ["401", "402"]),
    ]


def test_star_plus_adds_what_was_right_twice() -> None:
    assert told(build_examples(TRACES, REWARDS, "star-plus", seed=0)) == [
        ("p1", 0, ["101", "102"]),
        ("p1", 2, ["121", "122"]),
        ("p4", 0, ["401", "402"]),
    ]


def drawn(seed: int, problem: str, sample: int, choices: list[str]) -> str:
    """The documented draw: sha256 of [seed, problem, sample] modulo the number of right responses, in table order."""
    digest = hashlib.sha256(json.dumps([seed, problem, sample]).encode()).hexdigest()
    return choices[int(digest, 16) % len(choices)]


@pytest.mark.parametrize("seed", range(4))
def test_pair_sft_gives_each_wrong_first_attempt_a_right_response_of_its_problem(seed: int) -> None:
    right = ["102", "121", "122", "131"]
    assert told(build_examples(TRACES, REWARDS, "pair-sft", seed=seed)) == [
        ("p1", 0, ["101", drawn(seed, "p1", 0, right)]),
        ("p1", 1, ["111", drawn(seed, "p1", 1, right)]),
        ("p4", 0, ["401", "402"]),
        ("p5", 1, ["511", "502"]),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_pair_sft_plus_adds_right_first_attempts_with_another_right_response(seed: int) -> None:
    right = ["102", "121", "122", "131"]
    assert told(build_examples(TRACES, REWARDS, "pair-sft-plus", seed=seed)) == [
        ("p1", 0, ["101", drawn(seed, "p1", 0, right)]),
        ("p1", 1, ["111", drawn(seed, "p1", 1, right)]),
        ("p1", 2, ["121", drawn(seed, "p1", 2, ["102", "122", "131"])]),
        ("p1", 3, ["131", drawn(seed, "p1", 3, ["102", "121", "122"])]),
        ("p4", 0, ["401", "402"]),
        ("p5", 1, ["511", "502"]),
    ]


def test_every_right_response_is_drawn_as_often_as_the_others() -> None:
    counts = dict.fromkeys(["102", "121", "122", "131"], 0)
    for seed in range(4000):
        counts[build_examples(TRACES[:4], REWARDS[:4], "pair-sft", seed=seed)[0].attempts[1]] += 1
    # Four standard deviations of a binomial count of 4,000 draws at a quarter: 4 * sqrt(4000 * 1/4 * 3/4) = 110.
    assert all(abs(count - 1000) < 110 for count in counts.values()), counts


def test_the_draw_of_an_example_does_not_depend_on_the_other_problems() -> None:
    whole = told(build_examples(TRACES, REWARDS, "pair-sft", seed=3))
    assert told(build_examples(TRACES[4:], REWARDS[4:], "pair-sft", seed=3)) == whole[2:]


def test_an_example_is_prompt_first_attempt_bridge_and_the_other_response() -> None:
    """A first attempt that was cut off keeps the end that closed its turn; the response keeps its own end."""
    traces = [trace(7, 0, "ls"), trace(7, 1)]
    rewards = [reward(traces[0], "ti"), reward(traces[1], "ci")]
    (example,) = build_examples(traces, rewards, "pair-sft", seed=0)
    assert example.token_ids.tolist() == [1, 1, 701, 701, 6, 5, 711, 711, 9]
    assert example.attempt_ids.tolist() == [0, 0, 1, 1, 0, 0, 2, 2, 2]
    assert (example.sample_index, example.target_sample_index, example.target_attempt) == (0, 1, 1)
    assert example.verdicts == ["truncated", "correct"]


def test_a_star_example_is_the_trace_itself() -> None:
    example = build_examples(TRACES, REWARDS, "star", seed=0)[0]
    assert example.token_ids.tolist() == [1, 1, 101, 101, 9, 5, 102, 102, 9]
    assert example.attempt_ids.tolist() == [0, 0, 1, 1, 1, 0, 2, 2, 2]
    assert (example.target_sample_index, example.target_attempt) == (0, 2)
