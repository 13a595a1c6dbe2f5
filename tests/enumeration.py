"""A two-attempt policy small enough to write every trajectory down, and exact gradients by brute force.

Vocabulary {0: end, 1}; an attempt has at most two tokens, so it is one of [0], [1, 0], [1, 1]; with
two attempts there are nine trajectories. The policy is a table of logits, or of states that a head turns into logits,
one row for every prefix, so the gradient at each prefix is told apart. Nothing here uses the code under test but its
records.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from score_cli.tables.records import Trace

END = 0
PROMPTS = {"p": [1, 1], "q": [0, 1]}
CORRECTION = [1]
ATTEMPTS = ([0], [1, 0], [1, 1])
LONGEST = 2 + 2 + 2 + 2  # prompt, y1, end of turn and correction, y2
# Which attempts are right, by problem; neither the likeliest nor the shortest alone.
RIGHT = {"p": ([1, 0],), "q": ([0], [1, 1])}


class TablePolicy(nn.Module):
    """States looked up by the whole prefix, and a head behind them; called as a transformers model is."""

    def __init__(self, seed: int, longest: int = LONGEST, width: int | None = 3, temperature: float = 1.0) -> None:
        """Args:
        width: of a state; None for a table of logits, without a head.
        temperature: that it is sampled at.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        numbers = functools.partial(torch.randn, dtype=torch.float64, generator=generator)
        self.table = nn.Parameter(numbers(2 ** (longest + 2), width or 2))
        self.head = None if width is None else nn.Linear(width, 2, dtype=torch.float64)
        if self.head is not None and width is not None:
            self.head.weight.data, self.head.bias.data = numbers(2, width), numbers(2)
        self.temperature = temperature
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.head

    def forward(self, *, input_ids: Tensor, logits_to_keep: Tensor, **_: object) -> SimpleNamespace:
        codes = torch.ones_like(input_ids[:, 0])
        columns = []
        for position in range(input_ids.shape[1]):
            codes = codes * 2 + input_ids[:, position]
            columns.append(codes % self.table.shape[0])
        states = self.table[torch.stack(columns, 1)[:, logits_to_keep]]
        return SimpleNamespace(logits=states if self.head is None else self.head(states))

    def logprob(self, prefix: list[int], token: int) -> Tensor:
        """Brute force: log-probability of one token after a prefix."""
        return self.distribution(prefix)[token]

    def distribution(self, prefix: list[int]) -> Tensor:
        code = 1
        for token in prefix:
            code = code * 2 + token
        state = self.table[code % self.table.shape[0]]
        if self.head is not None:
            state = self.head.weight @ state + self.head.bias
        return (state / self.temperature).log_softmax(-1)


def gradient(value: Tensor, policy: TablePolicy) -> Tensor:
    """The derivative of a value by everything that the policy learns, as one row of numbers."""
    return torch.cat([found.flatten() for found in torch.autograd.grad(value, list(policy.parameters()))])


def found_gradient(policy: TablePolicy) -> Tensor:
    """What the code under test left in the policy's `.grad`, as `gradient` has it."""
    found = [parameter.grad for parameter in policy.parameters()]
    return torch.cat([each.flatten() for each in found if each is not None])


def second_prompt(problem: str, first: list[int]) -> list[int]:
    """The context of the second attempt; a truncated first attempt has its end supplied."""
    end = [] if first[-1] == END else [END]
    return PROMPTS[problem] + first + end + CORRECTION


def attempt_logprob(policy: TablePolicy, prefix: list[int], attempt: list[int]) -> Tensor:
    """log pi(attempt | prefix); an attempt cut at two tokens has no end to be likely."""
    return sum(
        (policy.logprob(prefix + attempt[:i], token) for i, token in enumerate(attempt)),
        start=torch.zeros((), dtype=torch.float64),
    )


def attempt_full_kl(policy: TablePolicy, reference: TablePolicy, prefix: list[int], attempt: list[int]) -> Tensor:
    """Sum over an attempt's positions of the exact divergence of the next-token distribution."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(attempt)):
        own = policy.distribution(prefix + attempt[:i])
        other = reference.distribution(prefix + attempt[:i]).detach()
        total = total + (own.exp() * (own - other)).sum()
    return total


def is_right(problem: str, attempt: list[int]) -> float:
    return float(attempt in RIGHT[problem])


def trajectories() -> list[tuple[list[int], list[int]]]:
    return list(itertools.product(ATTEMPTS, ATTEMPTS))


def trajectory_probabilities(policy: TablePolicy, problem: str) -> Tensor:
    """[9] probabilities, in the order of `trajectories`."""
    logs = [
        attempt_logprob(policy, PROMPTS[problem], first)
        + attempt_logprob(policy, second_prompt(problem, first), second)
        for first, second in trajectories()
    ]
    return torch.stack(logs).exp()


def batches(policy: TablePolicy, sizes: dict[str, int]) -> Iterator[tuple[float, list[tuple[str, int]]]]:
    """Every batch of `sizes[problem]` samples with its probability: (problem, number of the trajectory) of each trace.

    Samples of a problem are exchangeable, so batches are visited as multisets with their multiplicity.
    """
    choices = []
    for problem, size in sizes.items():
        probabilities = trajectory_probabilities(policy, problem).tolist()
        weighted = []
        for members in itertools.combinations_with_replacement(range(9), size):
            ways = math.factorial(size)
            for number in set(members):
                ways //= math.factorial(members.count(number))
            weighted.append((ways * math.prod(probabilities[m] for m in members), [(problem, m) for m in members]))
        choices.append(weighted)
    for parts in itertools.product(*choices):
        yield math.prod(part[0] for part in parts), [member for part in parts for member in part[1]]


def make_trace(policy: TablePolicy, problem: str, index: int, first: list[int], second: list[int]) -> Trace:
    """The trace a sampler would have written, logprobs in double precision."""
    prompt, bridge = PROMPTS[problem], second_prompt(problem, first)[len(PROMPTS[problem]) + len(first) :]
    tokens = prompt + first + bridge + second
    owners = [0] * len(prompt) + [1] * len(first) + [0] * len(bridge) + [2] * len(second)
    logprobs = [
        policy.logprob(tokens[:i], token).item() if owner else 0.0
        for i, (token, owner) in enumerate(zip(tokens, owners, strict=True))
    ]
    reasons = ["stop" if attempt[-1] == END else "length" for attempt in (first, second)]
    return Trace(
        problem_id=problem,
        sample_index=index,
        attempts=[str(first), str(second)],
        finish_reasons=reasons,
        token_ids=np.array(tokens, dtype=np.int32),
        attempt_ids=np.array(owners, dtype=np.int8),
        logprobs=np.array(logprobs),
        offline_attempts=0,
    )


def stage_rewards(stage: str, alpha: float, r1: float, r2: float) -> tuple[float, float]:
    """Attempt rewards as the paper writes them: Eq. 3, or Eq. 4 with the bonus on the second attempt."""
    return (0.0, r2) if stage == "stage1" else (r1, r2 + alpha * (r2 - r1))


def exact_gradient(
    policy: TablePolicy,
    reference: TablePolicy,
    *,
    stage: str,
    alpha: float,
    kl_coefficients: tuple[float, float],
    discount: float,
    kl: str,
    problems: tuple[str, ...] = ("p",),
) -> Tensor:
    """The gradient that an update should have in expectation (of the loss: minus the objective).

    Each attempt's score function is paired with its own return: its shaped reward minus its KL cost,
    plus `discount` times those of the attempt after it. With discount 1 this is the gradient of the
    whole objective, which `whole_objective_gradient` computes another way.
    """
    loss = torch.zeros((), dtype=torch.float64)
    for problem in problems:
        for first, second in trajectories():
            x1, x2 = PROMPTS[problem], second_prompt(problem, first)
            log1, log2 = attempt_logprob(policy, x1, first), attempt_logprob(policy, x2, second)
            probability = (log1 + log2).exp().detach()
            reward1, reward2 = stage_rewards(stage, alpha, is_right(problem, first), is_right(problem, second))
            value1, value2 = torch.tensor(reward1), torch.tensor(reward2)
            if kl == "sampled":
                ratio1 = log1 - attempt_logprob(reference, x1, first)
                ratio2 = log2 - attempt_logprob(reference, x2, second)
                value1 = value1 - kl_coefficients[0] * ratio1.detach()
                value2 = value2 - kl_coefficients[1] * ratio2.detach()
            else:
                # Known bias: the divergence at each visited prefix, not its effect on where the policy goes.
                loss = loss + probability * kl_coefficients[0] * attempt_full_kl(policy, reference, x1, first)
                loss = loss + probability * kl_coefficients[1] * attempt_full_kl(policy, reference, x2, second)
            loss = loss - probability * (log1 * (value1 + discount * value2) + log2 * value2)
    return gradient(loss / len(problems), policy)


def whole_objective_gradient(
    policy: TablePolicy, reference: TablePolicy, *, stage: str, alpha: float, kl_coefficients: tuple[float, float]
) -> Tensor:
    """Minus the gradient of Eq. 3 or Eq. 4, by differentiating the expectation itself."""
    objective = torch.zeros((), dtype=torch.float64)
    for first, second in trajectories():
        x1, x2 = PROMPTS["p"], second_prompt("p", first)
        log1, log2 = attempt_logprob(policy, x1, first), attempt_logprob(policy, x2, second)
        rewards = sum(stage_rewards(stage, alpha, is_right("p", first), is_right("p", second)))
        cost1 = kl_coefficients[0] * (log1 - attempt_logprob(reference, x1, first).detach())
        cost2 = kl_coefficients[1] * (log2 - attempt_logprob(reference, x2, second).detach())
        objective = objective + (log1 + log2).exp() * (rewards - cost1 - cost2)
    return -gradient(objective, policy)


# The same for any number of attempts, written down once more: a chain is the attempts of one trajectory.

Chain = tuple[list[int], ...]


def chains(attempts: int) -> list[Chain]:
    return list(itertools.product(ATTEMPTS, repeat=attempts))


def chain_prompts(problem: str, chain: Chain) -> list[list[int]]:
    """The context of each attempt of a chain: all before it, each turn ended once and followed by the request."""
    prompts = [PROMPTS[problem]]
    for attempt in chain[:-1]:
        prompts.append(prompts[-1] + attempt + ([] if attempt[-1] == END else [END]) + CORRECTION)
    return prompts


def chain_logprobs(policy: TablePolicy, problem: str, chain: Chain) -> Tensor:
    """[A] log-probability of each attempt in its context."""
    prompts = chain_prompts(problem, chain)
    return torch.stack([attempt_logprob(policy, prompt, y) for prompt, y in zip(prompts, chain, strict=True)])


def chain_trace(policy: TablePolicy, problem: str, index: int, chain: Chain) -> Trace:
    """The trace a sampler would have written of a chain."""
    prompts = chain_prompts(problem, chain)
    tokens = prompts[-1] + chain[-1]
    owners = np.zeros(len(tokens), dtype=np.int8)
    for number, (prompt, attempt) in enumerate(zip(prompts, chain, strict=True), start=1):
        owners[len(prompt) : len(prompt) + len(attempt)] = number
    logprobs = [policy.logprob(tokens[:i], token).item() if owners[i] else 0.0 for i, token in enumerate(tokens)]
    return Trace(
        problem_id=problem,
        sample_index=index,
        attempts=[str(attempt) for attempt in chain],
        finish_reasons=["stop" if attempt[-1] == END else "length" for attempt in chain],
        token_ids=np.array(tokens, dtype=np.int32),
        attempt_ids=owners,
        logprobs=np.array(logprobs),
        offline_attempts=0,
    )


def chain_rewards(stage: str, alpha: float, rewards: list[float], penalty: float = 0.0) -> list[float]:
    """Stage I: the last attempt's alone. Stage II: each its own, a bonus over the one before, a penalty if stuck."""
    if stage == "stage1":
        return [0.0] * (len(rewards) - 1) + [rewards[-1]]
    shaped = [rewards[0]]
    for before, now in itertools.pairwise(rewards):
        shaped.append(-penalty if before == now == 0.0 else now + alpha * (now - before))
    return shaped


def chain_gradient(
    policy: TablePolicy,
    reference: TablePolicy,
    *,
    stage: str,
    alpha: float,
    kl_coefficients: list[float],
    discount: float,
    penalty: float = 0.0,
) -> Tensor:
    """What an update should have in expectation for problem `p`, sampled KL: see `exact_gradient`."""
    loss = torch.zeros((), dtype=torch.float64)
    for chain in chains(len(kl_coefficients)):
        logs = chain_logprobs(policy, "p", chain)
        ratios = (logs - chain_logprobs(reference, "p", chain)).detach()
        own = chain_rewards(stage, alpha, [is_right("p", attempt) for attempt in chain], penalty)
        values = [r - c * ratio for r, c, ratio in zip(own, kl_coefficients, ratios, strict=True)]
        credits = [sum(discount ** (j - i) * values[j] for j in range(i, len(chain))) for i in range(len(chain))]
        loss = loss - logs.sum().exp().detach() * sum(log * credit for log, credit in zip(logs, credits, strict=True))
    return gradient(loss, policy)


def single_turn_gradient(policy: TablePolicy, reference: TablePolicy, beta: float) -> Tensor:
    """Minus the gradient of Eq. 2, E[r(y) - beta KL], by differentiating the expectation over the three attempts."""
    objective = torch.zeros((), dtype=torch.float64)
    for attempt in ATTEMPTS:
        log = attempt_logprob(policy, PROMPTS["p"], attempt)
        cost = beta * (log - attempt_logprob(reference, PROMPTS["p"], attempt).detach())
        objective = objective + log.exp() * (is_right("p", attempt) - cost)
    return -gradient(objective, policy)
