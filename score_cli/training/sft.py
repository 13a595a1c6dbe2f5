"""One round of supervised training: on a policy's own traces (STaR, Pair-SFT, filtered dialogues), or on given ones.

Each round starts with fresh Adam moments. The loss is minus the logprob of the learned tokens, averaged over
all of them in a batch, so a long response counts for more than a short one.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import DIALOGUE_METHODS, SftConfig
from score_cli.errors import JobError, UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.adapters import only_adapter_learns
from score_cli.tables.checkpoints import Policy, TrainerState, context_length
from score_cli.tables.processes import ALONE, Share
from score_cli.tables.provenance import short_digest
from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tables.schemas import STOP
from score_cli.tasks.loss_mask import learned_turns
from score_cli.training.adapt import trainable
from score_cli.training.batching import micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.learner import Learner, make_learner
from score_cli.training.logprobs import TokenLoss, add_gradient
from score_cli.training.sft_dialogues import filtered_examples, given_examples
from score_cli.training.sft_examples import Example, build_examples
from score_cli.training.step import take_part
from score_cli.training.train_metrics import answer_rows, length_rows

STAGE = "sft"
# Examples that the loss before and after a round is measured on, spread evenly over them: all would cost half a round.
LOSS_ROWS = 256


@dataclass(frozen=True)
class SftRound:
    """What one round made: the next policy, what it learned, and the rows of its train metrics."""

    policy: Policy
    examples: list[Example]
    metrics: list[dict[str, Any]]
    summary: str


def make_examples(
    config: SftConfig, policy: Policy, traces: Sequence[Trace], verdicts: Sequence[Verdict]
) -> list[Example]:
    """The examples that a policy's own traces give.

    Raises:
        UserError: an example outgrew the model's context, or the method is for two solves and the traces are others.
        JobError: no trace makes an example.
    """
    if config.method in DIALOGUE_METHODS:
        made = filtered_examples(traces, verdicts, config.method, config.loss_on)
        needed = "dialogues with a right solve" if config.method == "search" else "dialogues whose last solve is right"
    else:
        _check_two_solves(traces, config)
        made = build_examples(traces, verdicts, config.method, seed=config.seed)
        needed = "right responses (star: second attempts right after wrong first ones)"
    if not made:
        raise JobError(f"the traces give no example of method {config.method}, which needs {needed}: sample more")
    _check_context(made, policy, "sample with a lower --max-tokens")
    return made


def make_given_examples(config: SftConfig, policy: Policy, traces: Sequence[Trace]) -> list[Example]:
    """The examples of given dialogues.

    Raises:
        UserError: a dialogue is longer than the model's context, or `loss_on` learns none of any.
    """
    made = given_examples(traces, config.loss_on)
    if not made:
        raise UserError(f"loss_on is {config.loss_on!r}, and no dialogue has such a turn: name turns that they have")
    _check_context(made, policy, "leave the dialogue out")
    return made


def _check_two_solves(traces: Sequence[Trace], config: SftConfig) -> None:
    for trace in traces:
        if any(role != SOLVE for role in trace.turn_roles):
            raise UserError(
                f"method {config.method} learns from two solves, and a trace of problem {trace.problem_id} has other "
                f"turns: use one of {', '.join(DIALOGUE_METHODS)}"
            )
        if len(trace.attempts) != 2:
            raise UserError(
                f"a trace of problem {trace.problem_id} has {len(trace.attempts)} attempts, expected 2: sample with "
                "--attempts 2"
            )


def sft_round(
    config: SftConfig,
    policy: Policy,
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    examples: Sequence[Example],
    *,
    progress: Progress = SILENT,
) -> SftRound:
    """Train a policy, in place, on examples.

    Args:
        traces, verdicts: that the examples are of, for the train metrics; none where the dialogues were given.
    Raises:
        UserError: it has another adapter than the settings ask for.
        JobError: a gradient is not finite.
    """
    policy = trainable(policy, config)
    iteration = policy.state.iteration
    measured = fine_tune(policy.model, examples, config, iteration=iteration, progress=progress)
    own = [*length_rows(traces, verdicts), *answer_rows(traces, verdicts)] if traces else []
    values = [
        *own,
        *((name, None, value) for name, value in measured.items()),
    ]
    trained = _advance(policy)
    return SftRound(
        policy=trained,
        examples=list(examples),
        metrics=[
            {"stage": STAGE, "iteration": iteration, "name": name, "attempt": attempt, "value": value}
            for name, attempt, value in values
        ],
        summary=f"policy {short_digest(trained.state.fingerprint)}, round {trained.state.iteration} "
        f"({examples[0].method}); {len(examples)} examples"
        + (f" of {len(traces)} traces, " if traces else ", ")
        + f"{measured['steps']:.0f} steps, "
        f"loss {measured['loss_before']:.4f} to {measured['loss_after']:.4f} nats a token",
    )


def fine_tune(
    model: PreTrainedModel,
    examples: Sequence[Example],
    config: SftConfig,
    *,
    iteration: int = 0,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Train a model on examples, in place; dropout stays off, as everywhere.

    Args:
        iteration: the policy's, which with the seed gives the order of the examples.
    Returns:
        Names and values for the curve: see `training.logged`.
    Raises:
        JobError: a gradient is not finite.
    """
    rows = [learned_trace(example, config.loss_on) for example in examples]
    learner = make_learner(config, model, model)
    measured = rows[:: math.ceil(len(rows) / LOSS_ROWS)]
    before = mean_loss(learner, measured)
    norms = []
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    with progress.phase(examples[0].method, steps) as task:
        for batch in _batches(rows, config, iteration):
            loss = learner.take_gradient(_gradient, batch)
            norms.append(learner.clip(config.max_grad_norm))
            if not math.isfinite(norms[-1]):
                raise JobError("the gradient of the examples is not finite: lower --learning-rate")
            learner.step()
            task.advance(1, f"loss {loss:.3f}")
    learner.put_back()
    return {
        "examples": float(len(rows)),
        "steps": float(steps),
        "loss_before": before,
        "loss_after": mean_loss(learner, measured),
        "grad_norm": math.fsum(norms) / len(norms),
    }


def learned_trace(example: Example, loss_on: str) -> Trace:
    """An example in the form that batches are made of; `attempt_ids` is 0 but on the tokens to be learned."""
    count = len(example.attempts)
    learned = learned_turns(loss_on, [SOLVE] * count) if example.learned is None else example.learned
    return Trace(
        problem_id=example.problem_id,
        sample_index=example.sample_index,
        attempts=example.attempts,
        finish_reasons=[STOP] * count,
        token_ids=example.token_ids,
        attempt_ids=np.where(np.isin(example.attempt_ids, learned), example.attempt_ids, 0).astype(np.int8),
        logprobs=np.zeros(len(example.token_ids), dtype=np.float32),
        offline_attempts=count,
    )


def sft_forward_backward(
    model: PreTrainedModel, batch: Sequence[Trace], config: SftConfig, share: Share = ALONE
) -> float:
    """Add the gradient of the batch's mean loss a learned token to the model's; returns the loss, nats.

    Micro-batches change the order of additions, nothing else.

    Args:
        share: of the micro-batches, where other processes take the rest over parts of the same model.
    """
    count = _count_tokens(batch)

    def loss_of(tokens: TokenLoss) -> Tensor:
        return -tokens.logprobs.sum(0, keepdim=True) / count

    parts = micro_batches(batch, config.micro_batch_tokens, model.device)
    with only_adapter_learns(model):
        head, gradients = Head(model), Gradients(model)
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        for part in share.own(parts):
            if part is None:
                take_part(head, None, gradients)
            else:
                total += add_gradient(head, part, 1.0, loss_of, gradients).logprobs.sum()
    return -share.add_up(total).item() / count


def _gradient(
    model: PreTrainedModel, reference: PreTrainedModel, batch: Sequence[Trace], config: SftConfig, share: Share
) -> float:
    """As `sft_forward_backward`, which knows no reference."""
    return sft_forward_backward(model, batch, config, share)


def mean_loss(learner: Learner, rows: Sequence[Trace]) -> float:
    """Mean loss a learned token over rows, nats, without gradient."""
    logprobs = learner.trace_logprobs(learner.model, rows, 1.0, learner.config.scoring_tokens)
    return -logprobs.double().sum().item() / _count_tokens(rows)


def _count_tokens(rows: Sequence[Trace]) -> int:
    return sum(int((row.attempt_ids > 0).sum()) for row in rows)


def _batches(rows: Sequence[Trace], config: SftConfig, iteration: int) -> Iterator[list[Trace]]:
    """The batches of every epoch; each epoch shuffles the rows by a hash, and its last batch may be smaller."""
    for epoch in range(config.epochs):
        names = [json.dumps([config.seed, iteration, epoch, row]) for row in range(len(rows))]
        keys = [hashlib.sha256(name.encode()).digest() for name in names]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        for start in range(0, len(order), config.batch_size):
            yield [rows[row] for row in order[start : start + config.batch_size]]


def _check_context(examples: Sequence[Example], policy: Policy, advice: str) -> None:
    """Check that no example, such as a long first attempt paired with a long response, outgrew the model."""
    context = context_length(policy.model)
    longest = max(examples, key=lambda example: len(example.token_ids))
    if context is not None and len(longest.token_ids) > context:
        raise UserError(
            f"an example has {len(longest.token_ids)} tokens (problem {longest.problem_id}), the model's context is "
            f"{context}: {advice}"
        )


def _advance(policy: Policy) -> Policy:
    """The policy with the state of the round just trained: the KL reference of its chain stays."""
    state = policy.state
    return replace(
        policy,
        state=TrainerState(
            stage=STAGE,
            iteration=state.iteration + 1,
            fingerprint=policy.fingerprint(),
            parent=state.fingerprint,
            reference=state.reference or state.fingerprint,
        ),
    )
