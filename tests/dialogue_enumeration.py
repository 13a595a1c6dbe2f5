"""Every dialogue of solves and verdicts of a tiny policy, and exact gradients by brute force.

A solve is one of the three attempts of `enumeration`, and so is a verdict: the first claims that the solve is right,
the second that it is wrong, the third cannot be read. A dialogue goes on after `wrong` alone, to at most two solves: 33
dialogues of two or four turns, over 16 states. Nothing here uses the code under test but its records.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_cli.tables.records import Trace, Verdict
from tests import enumeration as tiny

SAYS_RIGHT, SAYS_WRONG, UNREADABLE = tiny.ATTEMPTS
PROMPT = tiny.PROMPTS["p"]
# Prompt and four turns of two tokens, with an end and a word between.
LONGEST = 2 + 4 * 2 + 3 * 2


class Turn(NamedTuple):
    role: str
    said: list[int]


Dialogue = tuple[Turn, ...]


def dialogues() -> list[Dialogue]:
    found: list[Dialogue] = []
    for solve, verdict in itertools.product(tiny.ATTEMPTS, tiny.ATTEMPTS):
        begun = (Turn("solve", solve), Turn("verify", verdict))
        if verdict is not SAYS_WRONG:
            found.append(begun)
            continue
        for again, last in itertools.product(tiny.ATTEMPTS, tiny.ATTEMPTS):
            found.append((*begun, Turn("solve", again), Turn("verify", last)))
    return found


ALL = dialogues()


def rewards_of(dialogue: Dialogue) -> list[float]:
    """Of each turn: whether the solve is right, or the claim tells what it is."""
    rewards: list[float] = []
    for role, said in dialogue:
        if role == "solve":
            rewards.append(tiny.is_right("p", said))
        else:
            right = rewards[-1] == 1.0
            rewards.append(float(said == (SAYS_RIGHT if right else SAYS_WRONG)))
    return rewards


def verdicts_of(dialogue: Dialogue) -> list[str]:
    read = [role == "verify" and said == UNREADABLE for role, said in dialogue]
    return [
        "no_answer" if unread else "correct" if reward else "incorrect"
        for unread, reward in zip(read, rewards_of(dialogue), strict=True)
    ]


def prompts_of(dialogue: Dialogue) -> list[list[int]]:
    """The context of each turn: all before it, each turn ended once and followed by a word of the user."""
    prompts = [PROMPT]
    for _, said in dialogue[:-1]:
        prompts.append(prompts[-1] + said + ([] if said[-1] == tiny.END else [tiny.END]) + tiny.CORRECTION)
    return prompts


def logprobs_of(policy: tiny.TablePolicy, dialogue: Dialogue) -> Tensor:
    """[A] log-probability of each turn in its context."""
    turns = zip(prompts_of(dialogue), dialogue, strict=True)
    return torch.stack([tiny.attempt_logprob(policy, prompt, turn.said) for prompt, turn in turns])


def trace_of(policy: tiny.TablePolicy, dialogue: Dialogue, index: int = 0) -> Trace:
    prompts = prompts_of(dialogue)
    tokens = prompts[-1] + dialogue[-1].said
    owners = np.zeros(len(tokens), dtype=np.int8)
    for number, (prompt, turn) in enumerate(zip(prompts, dialogue, strict=True), start=1):
        owners[len(prompt) : len(prompt) + len(turn.said)] = number
    logprobs = [policy.logprob(tokens[:i], token).item() if owners[i] else 0.0 for i, token in enumerate(tokens)]
    return Trace(
        problem_id="p",
        sample_index=index,
        attempts=[str(turn.said) for turn in dialogue],
        finish_reasons=["stop" if turn.said[-1] == tiny.END else "length" for turn in dialogue],
        token_ids=np.array(tokens, dtype=np.int32),
        attempt_ids=owners,
        logprobs=np.array(logprobs),
        offline_attempts=0,
        roles=[turn.role for turn in dialogue],
    )


def verdict_of(dialogue: Dialogue, index: int = 0) -> Verdict:
    verdicts = verdicts_of(dialogue)
    answers = [None if verdict == "no_answer" else "x" for verdict in verdicts]
    return Verdict("p", index, answers, verdicts, list(rewards_of(dialogue)))


# What turns are paid by each method, told once more.

Method = Callable[[Dialogue], list[float]]


def solves_in(dialogue: Dialogue) -> list[float]:
    return [reward for turn, reward in zip(dialogue, rewards_of(dialogue), strict=True) if turn.role == "solve"]


def at_the_end(dialogue: Dialogue, value: float) -> list[float]:
    return [0.0] * (len(dialogue) - 1) + [value]


def process(dialogue: Dialogue) -> list[float]:
    """S2R, process level: each turn its own."""
    return rewards_of(dialogue)


def outcome(dialogue: Dialogue) -> list[float]:
    """S2R, outcome level: whether the last solve is right, where the dialogue ends."""
    return at_the_end(dialogue, solves_in(dialogue)[-1])


def trajectory(dialogue: Dialogue) -> list[float]:
    """ReflexiCoder's table of one reflection; a dialogue without a second solve is malformed."""
    table = {(0.0, 0.0): 0.75, (0.0, 1.0): 3.0 + 0.5 + 0.25 * math.tanh(10), (1.0, 0.0): -0.25 * math.tanh(10)}
    table[1.0, 1.0] = 2.5125
    solves = solves_in(dialogue)
    return at_the_end(dialogue, table[solves[0], solves[1]] if len(solves) == 2 else 0.0)


def progress(dialogue: Dialogue) -> list[float]:
    """Eq. 4 over the solves at alpha 10, verdicts unpaid."""
    paid, before = [], None
    for turn, reward in zip(dialogue, rewards_of(dialogue), strict=True):
        if turn.role == "verify":
            paid.append(0.0)
        else:
            paid.append(reward if before is None else reward + 10.0 * (reward - before))
            before = reward
    return paid


def readable(dialogue: Dialogue) -> list[float]:
    """0.5 for every turn that can be read, and 1 or 0.25 by verdict where a claim is readable."""
    worth = {"correct": 1.0, "incorrect": 0.25, "no_answer": 0.0}
    verdicts = verdicts_of(dialogue)
    return [
        0.5 * (v != "no_answer") + worth[v] * (turn.role == "verify")
        for turn, v in zip(dialogue, verdicts, strict=True)
    ]


def credits(paid: Sequence[float], discount: float) -> list[float]:
    """Each turn's own pay and the discounted pay after it."""
    return [sum(discount ** (j - i) * paid[j] for j in range(i, len(paid))) for i in range(len(paid))]


def exact_gradient(
    policy: tiny.TablePolicy, reference: tiny.TablePolicy, method: Method, *, discount: float, beta: float
) -> Tensor:
    """What an update should have in expectation (of the loss), sampled KL in the pay."""
    loss = torch.zeros((), dtype=torch.float64)
    for dialogue in ALL:
        logs = logprobs_of(policy, dialogue)
        ratios = (logs - logprobs_of(reference, dialogue)).detach().tolist()
        paid = [pay - beta * ratio for pay, ratio in zip(method(dialogue), ratios, strict=True)]
        weighted = sum(log * credit for log, credit in zip(logs, credits(paid, discount), strict=True))
        loss = loss - logs.sum().exp().detach() * weighted
    return torch.autograd.grad(loss, policy.table)[0]


def whole_gradient(policy: tiny.TablePolicy, value: Callable[[Dialogue], float]) -> Tensor:
    """Minus the gradient of the expected value of a dialogue, by differentiating the expectation itself."""
    objective = sum(logprobs_of(policy, dialogue).sum().exp() * value(dialogue) for dialogue in ALL)
    assert isinstance(objective, Tensor)
    return -torch.autograd.grad(objective, policy.table)[0]


@functools.cache
def probabilities(policy: tiny.TablePolicy) -> list[float]:
    return [logprobs_of(policy, dialogue).sum().exp().item() for dialogue in ALL]
