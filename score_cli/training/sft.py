"""`score train-sft`: one round of a supervised baseline (STaR, Pair-SFT) on a policy's own traces.

The examples are written first, as a table to be read; then the policy learns them. Each round
starts with fresh Adam moments. The loss is minus the logprob of the learned tokens, averaged over
all of them in a batch, so a long response counts for more than a short one.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import LossOn, SftConfig, check_config
from score_cli.errors import JobError, UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import (
    METRICS_FILE,
    TRAINER,
    Policy,
    TrainerState,
    fingerprint,
    load_policy,
    save_policy,
)
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import EXAMPLES, TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import STOP
from score_cli.tables.traces import check_pairs, read_traces, read_verdicts
from score_cli.training.batching import MicroBatch, micro_batches
from score_cli.training.logprobs import batch_logprobs, sampled_columns
from score_cli.training.sft_examples import Example, build_examples
from score_cli.training.train_metrics import answer_rows
from score_cli.training.trainer import check_tokens, read_origin

STAGE = "sft"


def train_sft(
    config: SftConfig,
    *,
    model: Path,
    traces: Path,
    rewards: Path,
    examples: Path,
    out: Path,
    overwrite: bool = False,
    allow_foreign: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Write the examples that traces give, train a policy on them, and write the next policy.

    Args:
        allow_foreign: learn from another policy's traces too, or from tables without a footer.
    Returns:
        One line that sums the round up.
    Raises:
        UserError: an input does not fit; nothing is written.
        JobError: no trace makes an example, or the loss is not finite.
    """
    check_config(config)
    check_output(examples, overwrite=overwrite)
    check_output(out, overwrite=overwrite, folder=True)
    policy = load_policy(model, device=setup_device(config))
    found, judged = _read_inputs(traces, rewards, policy, allow_foreign)
    made = build_examples(found, judged, config.method, seed=config.seed)
    if not made:
        raise JobError(
            f"{traces} gives no example of method {config.method}, which needs right responses (star: second attempts "
            "right after wrong first ones): sample more"
        )
    _check_context(made, policy.model, traces)
    _write_examples(examples, made, config, policy, traces, rewards)
    measured = fine_tune(policy.model, made, config, iteration=policy.state.iteration, progress=progress)
    values = [*answer_rows(found, judged), *((name, None, value) for name, value in measured.items())]
    trained = _advance(policy)
    rows = [
        {"stage": STAGE, "iteration": policy.state.iteration, "name": name, "attempt": attempt, "value": value}
        for name, attempt, value in values
    ]
    footer = Footer(
        table=TRAIN_METRICS.name,
        stage=STAGE,
        policy=policy.state.fingerprint,
        inputs={"examples": file_sha256(examples)},
    )
    with replacing_folder(out) as folder:
        save_policy(folder, trained.model, trained.tokenizer, trained.state)
        write_table(folder / TRAINER / METRICS_FILE, TRAIN_METRICS, rows, footer)
    return (
        f"policy {short_digest(trained.state.fingerprint)}, round {trained.state.iteration} ({config.method}); "
        f"{len(made)} examples of {len(found)} traces, {measured['steps']:.0f} steps, "
        f"loss {measured['loss_before']:.4f} to {measured['loss_after']:.4f} nats a token"
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
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )
    before = mean_loss(model, rows, config)
    norms = []
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    with progress.phase(config.method, steps) as task:
        for batch in _batches(rows, config, iteration):
            model.zero_grad()
            loss = accumulate_gradient(model, batch, config)
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


def accumulate_gradient(model: PreTrainedModel, batch: Sequence[Trace], config: SftConfig) -> float:
    """Add the gradient of the batch's mean loss a learned token to the model's; returns the loss, nats.

    Micro-batches change the order of additions, nothing else.
    """
    tokens = _count_tokens(batch)
    total = 0.0
    for part in micro_batches(batch, config.micro_batch_tokens, model.device):
        loss = _summed_loss(model, part) / tokens
        loss.backward()
        total += loss.item()
    return total


def mean_loss(model: PreTrainedModel, rows: Sequence[Trace], config: SftConfig) -> float:
    """Mean loss a learned token over all rows, nats, without gradient."""
    with torch.no_grad():
        parts = micro_batches(rows, config.micro_batch_tokens, model.device)
        return math.fsum(_summed_loss(model, part).item() for part in parts) / _count_tokens(rows)


def _summed_loss(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Minus the logprobs of a batch's learned tokens, summed, nats."""
    columns = sampled_columns(batch)
    logprobs = batch_logprobs(model, batch, columns, temperature=1.0).logprobs
    return -(logprobs * (batch.attempt_ids[:, columns] > 0)).sum()


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


def _read_inputs(traces: Path, rewards: Path, policy: Policy, allow_foreign: bool) -> tuple[list[Trace], list[Verdict]]:
    """Traces of two attempts, of this policy or one that it was made from, and their rewards."""
    origin = read_origin(traces, rewards, policy, allow_foreign=allow_foreign)
    state = policy.state
    if origin is not None and not allow_foreign:
        ancestors = {state.fingerprint, state.parent, state.reference} - {None}
        if origin.policy not in ancestors:
            raise UserError(
                f"{traces} was sampled from policy {short_digest(origin.policy)}, but --model is "
                f"{short_digest(state.fingerprint)}, which was not made from it: "
                "resample, or pass --allow-foreign to learn from another policy"
            )
    found, judged = read_traces(traces), read_verdicts(rewards)
    check_pairs(found, judged, traces, rewards)
    check_tokens(found, policy.model, traces)
    for number, trace in enumerate(found):
        if len(trace.attempts) != 2:
            raise UserError(
                f"{traces}, row {number}: {len(trace.attempts)} attempts, expected 2: sample with --attempts 2"
            )
    return found, judged


def _check_context(examples: Sequence[Example], model: PreTrainedModel, traces: Path) -> None:
    """Check that no pairing of a long first attempt with a long response outgrew the model."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(examples, key=lambda example: len(example.token_ids))
    if context is not None and len(longest.token_ids) > context:
        raise UserError(
            f"an example of {traces} has {len(longest.token_ids)} tokens (problem {longest.problem_id}), the model's "
            f"context is {context}: sample with a lower --max-tokens"
        )


def _write_examples(
    path: Path, examples: Sequence[Example], config: SftConfig, policy: Policy, traces: Path, rewards: Path
) -> None:
    footer = Footer(
        table=EXAMPLES.name,
        stage="train-sft",
        config={"method": config.method},
        seed=config.seed,
        inputs={"traces": file_sha256(traces), "rewards": file_sha256(rewards)},
        policy=policy.state.fingerprint,
    )
    rows: list[dict[str, Any]] = [asdict(example) for example in examples]
    write_table(path, EXAMPLES, rows, footer)


def _advance(policy: Policy) -> Policy:
    """The policy with the state of the round just trained: the KL reference of its chain stays."""
    state = policy.state
    return replace(
        policy,
        state=TrainerState(
            stage=STAGE,
            iteration=state.iteration + 1,
            fingerprint=fingerprint(policy.model),
            parent=state.fingerprint,
            reference=state.reference or state.fingerprint,
        ),
    )
