"""One round of a supervised baseline (STaR, Pair-SFT) on a policy's own traces.

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

from score_cli.config import LossOn, SftConfig
from score_cli.errors import JobError, UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.adapters import only_adapter_learns
from score_cli.tables.checkpoints import Policy, TrainerState, context_length
from score_cli.tables.provenance import short_digest
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import STOP
from score_cli.training.adapt import trainable, trained_weights
from score_cli.training.batching import micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import TokenLoss, add_gradient, trace_logprobs
from score_cli.training.optimizer import make_adam
from score_cli.training.sft_examples import Example, build_examples
from score_cli.training.train_metrics import answer_rows, length_rows

STAGE = "sft"


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
    """The examples that traces of two attempts give.

    Raises:
        UserError: an example outgrew the model's context, or traces have another number of attempts.
        JobError: no trace makes an example.
    """
    for trace in traces:
        if len(trace.attempts) != 2:
            raise UserError(
                f"a trace of problem {trace.problem_id} has {len(trace.attempts)} attempts, expected 2: sample with "
                "--attempts 2"
            )
    made = build_examples(traces, verdicts, config.method, seed=config.seed)
    if not made:
        raise JobError(
            f"the traces give no example of method {config.method}, which needs right responses (star: second attempts "
            "right after wrong first ones): sample more"
        )
    _check_context(made, policy)
    return made


def sft_round(
    config: SftConfig,
    policy: Policy,
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    examples: Sequence[Example],
    *,
    progress: Progress = SILENT,
) -> SftRound:
    """Train a policy, in place, on the examples of its traces.

    Raises:
        UserError: it has another adapter than the settings ask for.
        JobError: a gradient is not finite.
    """
    policy = trainable(policy, config)
    iteration = policy.state.iteration
    measured = fine_tune(policy.model, examples, config, iteration=iteration, progress=progress)
    values = [
        *length_rows(traces, verdicts),
        *answer_rows(traces, verdicts),
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
        summary=f"policy {short_digest(trained.state.fingerprint)}, round {trained.state.iteration} ({config.method}); "
        f"{len(examples)} examples of {len(traces)} traces, {measured['steps']:.0f} steps, "
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
    optimizer = make_adam(config, trained_weights(model).values(), weight_decay=config.weight_decay)
    before = mean_loss(model, rows, config)
    norms = []
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    with progress.phase(config.method, steps) as task:
        for batch in _batches(rows, config, iteration):
            model.zero_grad()
            loss = sft_forward_backward(model, batch, config)
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item())
            if not math.isfinite(norms[-1]):
                raise JobError("the gradient of the examples is not finite: lower --learning-rate")
            optimizer.step()
            task.advance(1, f"loss {loss:.3f}")
    model.zero_grad()
    return {
        "examples": float(len(rows)),
        "steps": float(steps),
        "loss_before": before,
        "loss_after": mean_loss(model, rows, config),
        "grad_norm": math.fsum(norms) / len(norms),
    }


def learned_trace(example: Example, loss_on: LossOn) -> Trace:
    """An example in the form that batches are made of; `attempt_ids` is 0 but on the tokens to be learned."""
    first_learned = 1 if loss_on == "both" else 2
    return Trace(
        problem_id=example.problem_id,
        sample_index=example.sample_index,
        attempts=example.attempts,
        finish_reasons=[STOP, STOP],
        token_ids=example.token_ids,
        attempt_ids=np.where(example.attempt_ids >= first_learned, example.attempt_ids, 0).astype(np.int8),
        logprobs=np.zeros(len(example.token_ids), dtype=np.float32),
        offline_attempts=2,
    )


def sft_forward_backward(model: PreTrainedModel, batch: Sequence[Trace], config: SftConfig) -> float:
    """Add the gradient of the batch's mean loss a learned token to the model's; returns the loss, nats.

    Micro-batches change the order of additions, nothing else.
    """
    count = _count_tokens(batch)

    def loss_of(tokens: TokenLoss) -> Tensor:
        return -tokens.logprobs.sum(0, keepdim=True) / count

    parts = micro_batches(batch, config.micro_batch_tokens, model.device)
    with only_adapter_learns(model):
        head, gradients = Head(model), Gradients(model)
        scores = [add_gradient(head, part, 1.0, loss_of, gradients).logprobs.sum() for part in parts]
    return -math.fsum(score.item() for score in scores) / count


def mean_loss(model: PreTrainedModel, rows: Sequence[Trace], config: SftConfig) -> float:
    """Mean loss a learned token over all rows, nats, without gradient."""
    return -trace_logprobs(model, rows, 1.0, config.scoring_tokens).double().sum().item() / _count_tokens(rows)


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


def _check_context(examples: Sequence[Example], policy: Policy) -> None:
    """Check that no pairing of a long first attempt with a long response outgrew the model."""
    context = context_length(policy.model)
    longest = max(examples, key=lambda example: len(example.token_ids))
    if context is not None and len(longest.token_ids) > context:
        raise UserError(
            f"an example has {len(longest.token_ids)} tokens (problem {longest.problem_id}), the model's context is "
            f"{context}: sample with a lower --max-tokens"
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
