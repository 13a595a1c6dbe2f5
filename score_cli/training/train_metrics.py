"""The metrics of one update, as rows of the curve table.

Per attempt (`attempt` 1..A): `reward` (shaped, before KL), `accuracy`, `kl` (sampled log-ratio, nats an
attempt), `k3`, `full_kl` (where computed), `entropy` (nats a token), `length` (tokens), `truncated` (share),
`advantage_sd`, `frac_zero_advantage` (share of problems whose rewards, shaped, give no advantage), `logprob_diff` and
`logprob_diff_abs` (trainer minus sampler logprob, nats a token), `grad_norm` (where asked for). Over all
attempts (`attempt` null): `grad_norm`, `grad_clipped` (1 where the gradient was scaled down, so that its mean
is a share of updates), `learning_rate`, `unscored`, and `delta@t2`, `i_to_c@t2`, `c_to_i@t2`, `edit_ratio@t2`,
`changed@t2` and so on as in the metrics table; of a script's traces also `verify_acc` and its kin. There `attempt`
counts turns, and solves alone in `accuracy` and in `@t2`.

Of a signal: `confidence` or `judge` (mean score), and of a judge `judged` (share of solves that it accepts),
`judge_gap` (that minus the share that is right, over the scored ones) and `judge_agrees`; `attempt` counts solves.
Of critiques `revision`: the mean reward of the solves after them.

A round of supervised training (stage `sft`) logs the measures of its traces, and over all attempts
`examples`, `steps`, `loss_before` and `loss_after` (nats a trained token, over at most 256 examples), and
`grad_norm` (mean over its steps).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import torch

from score_cli.metrics import SINGLE, by_solve, by_turn, measure_dialogues, measures_of, most_attempts
from score_cli.tables.records import REVISION, SOLVE, Signal, Trace, Verdict
from score_cli.tables.schemas import UNGRADED, UNSCORED
from score_cli.tables.traces import graded_piece
from score_cli.training.step import StepStats, TrainBatch

Row = tuple[str, int | None, float]

# Measures that turns of every kind have, not solves alone.
LENGTHS = ("length", "truncated")


def train_metric_rows(
    stage: str,
    iteration: int,
    *,
    batch: TrainBatch,
    stats: StepStats,
    grad_norm: float,
    grad_clipped: bool,
    learning_rate: float,
) -> list[dict[str, Any]]:
    """Rows of the train metrics for one update; what could not be measured has no row."""
    found = [
        *_per_attempt(batch, stats),
        *length_rows(batch.traces, batch.verdicts),
        *answer_rows(batch.traces, batch.verdicts),
        *signal_rows(batch.traces, batch.verdicts, batch.signals),
        ("grad_norm", None, grad_norm),
        ("grad_clipped", None, float(grad_clipped)),
        ("learning_rate", None, learning_rate),
    ]
    return [
        {"stage": stage, "iteration": iteration, "name": name, "attempt": attempt, "value": value}
        for name, attempt, value in found
        if math.isfinite(value)
    ]


def _per_attempt(batch: TrainBatch, stats: StepStats) -> Iterator[Row]:
    sums = stats.sums
    for column in range(batch.trainable.shape[1]):
        attempt = column + 1
        taking_part = batch.trainable[:, column] > 0
        tokens = sums.tokens[taking_part, column].sum()
        yield "reward", attempt, batch.shaped_rewards[taking_part, column].nanmean().item()
        for name in ("kl", "k3", "full_kl") if stats.has_full_kl else ("kl", "k3"):
            yield name, attempt, getattr(sums, name)[taking_part, column].mean().item()
        for name in ("entropy", "logprob_diff", "logprob_diff_abs"):
            yield name, attempt, (getattr(sums, name)[taking_part, column].sum() / tokens).item()
        advantage = batch.advantages[:, column]
        if taking_part.any():  # torch warns of the spread of nothing
            yield "advantage_sd", attempt, advantage[taking_part].std(correction=0).item()
        # Of the rewards alone: sampled KL differs from trace to trace and would hide that they are all equal.
        signal = batch.reward_advantages[:, column].abs()
        silent = torch.zeros(int(batch.groups.max()) + 1).index_add(0, batch.groups, signal) == 0
        yield "frac_zero_advantage", attempt, silent.float().mean().item()
    for column, norm in enumerate(stats.grad_norms_by_attempt):
        yield "grad_norm", column + 1, norm


def length_rows(traces: Sequence[Trace], rewards: Sequence[Verdict]) -> Iterator[Row]:
    """(name, turn, value): mean tokens sampled in a turn, and the share of such turns that were cut off."""
    frame = by_turn(graded_piece(traces, rewards).frame())
    for turn in range(1, most_attempts(frame) + 1):
        for name in LENGTHS:
            known = _known(frame.select(SINGLE[name](turn).cast(pl.Float64)).to_series())
            if known:
                yield name, turn, sum(known) / len(known)


def answer_rows(traces: Sequence[Trace], rewards: Sequence[Verdict]) -> Iterator[Row]:
    """(name, attempt, value) of what the verdicts alone tell: accuracies, deltas, the unscored share."""
    solves = by_solve(graded_piece(traces, rewards).frame())
    for name, values in solves.select(**measures_of(most_attempts(solves))).to_dict().items():
        known = _known(values)
        if not known:
            continue
        own, _, attempt = name.partition("@t")
        if own == "acc":
            yield "accuracy", int(attempt), sum(known) / len(known)
        elif own not in LENGTHS:
            yield name, None, sum(known) / len(known)
    for name, pairs in measure_dialogues(traces, rewards).items():
        yield name, None, sum(value for _, value in pairs) / len(pairs)
    verdicts = [name for reward in rewards for name in reward.verdicts if name != UNGRADED]
    yield "unscored", None, sum(name == UNSCORED for name in verdicts) / len(verdicts)


def _known(values: pl.Series) -> list[float]:
    return values.drop_nulls().to_list()


def signal_rows(traces: Sequence[Trace], rewards: Sequence[Verdict], signals: Sequence[Signal]) -> Iterator[Row]:
    """(name, solve, value) of a signal's scores, and of a judge's yes beside what is right."""
    if not signals:
        return
    found: dict[tuple[str, int], list[float]] = {}
    if signals[0].name == REVISION:
        known = [value for signal in signals for value in signal.values if value is not None]
        if known:
            yield REVISION, None, sum(known) / len(known)
        return
    for trace, reward, signal in zip(traces, rewards, signals, strict=True):
        solves = [turn for turn, role in enumerate(trace.turn_roles) if role == SOLVE]
        for number, turn in enumerate(solves, start=1):
            score, accepted, right = signal.scores[turn], signal.accepted[turn], reward.correct[turn]
            if score is not None:
                found.setdefault((signal.name, number), []).append(score)
            if accepted is None:
                continue
            found.setdefault(("judged", number), []).append(float(accepted))
            if right is not None:
                found.setdefault(("judge_gap", number), []).append(float(accepted) - float(right))
                found.setdefault(("judge_agrees", number), []).append(float(accepted == right))
    for (name, number), values in sorted(found.items()):
        yield name, number, sum(values) / len(values)
