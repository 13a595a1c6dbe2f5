"""A policy under training: what is known of a batch beforehand, its gradient, and the step.

The verbs of one update, in order: `prepare`, `forward_backward`, `check_batch_is_on_policy`, `optim_step`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import Stage1Config
from score_cli.errors import JobError, UserError
from score_cli.settings import check_config
from score_cli.tables.atomic import replacing_folder
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, Policy, TrainerState, save_policy
from score_cli.tables.device import computes_in_bfloat16, setup_device
from score_cli.tables.parquet import TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer, short_digest
from score_cli.tables.records import Signal, Trace, Verdict
from score_cli.tasks.pay import signal_earner
from score_cli.training import step
from score_cli.training.adapt import trainable
from score_cli.training.learner import make_learner
from score_cli.training.logprobs import trace_logprobs
from score_cli.training.on_policy import FLOAT32_LIMIT, WARNING, logprob_limit
from score_cli.training.step import StageConfig, StepStats, TrainBatch
from score_cli.training.train_metrics import train_metric_rows


class Trainer:
    """A policy under training, with its optimiser; kept warm between the updates of a run."""

    def __init__(
        self,
        config: StageConfig,
        policy: Policy,
        reference: Policy | None = None,
        optimizer_state: dict[str, Tensor] | None = None,
        *,
        new_phase: bool = False,
    ) -> None:
        """Args:
            policy: is updated in place; with `config.lora_rank`, and where it has none yet, it is given an adapter.
            reference: the policy that KL is measured from. None where that is the base of the policy's adapter, or
                where the policy itself is the start of its chain: without an adapter it can then be updated once,
                since a reference must stay as it is.
            optimizer_state: as saved with the checkpoint; used only within one stage, since the
                next stage maximises something of another scale.
            new_phase: the policy is the end of one phase and the start of another, which has moments
                and a reference of its own.
        Raises:
            UserError: the reference is not the one this chain started from, or is missing.
        """
        check_config(config)
        self.config = config
        self.policy = trainable(policy, config)
        self.stage = "stage1" if isinstance(config, Stage1Config) else "stage2"
        self.reference = reference or _start_of_chain(policy)
        if not new_phase:
            _check_reference(policy, self.reference)
        self._reference_fingerprint = self.reference.state.fingerprint
        self.metrics: list[dict[str, Any]] = []
        self._measured: tuple[TrainBatch, StepStats] | None = None
        self._limit = FLOAT32_LIMIT
        self.warnings: list[str] = []
        self.pay = step.pay_of(config)
        self._learner = make_learner(config, self.policy.model, self.reference.model)
        if optimizer_state is not None and policy.state.stage == self.stage and not new_phase:
            self._load_moments(optimizer_state)

    def prepare(
        self,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
        *,
        temperature: float = 1.0,
        other_engine: bool = False,
        signals: Sequence[Signal] = (),
    ) -> TrainBatch:
        """Reference logprobs, KL, returns and baselines: all that the gradient takes as given.

        Args:
            verdicts: of the traces, one for each.
            temperature: that the traces were sampled at.
            other_engine: another engine than ours sampled them; importance weights correct for how it computes.
            signals: of the traces, one for each, where [pay] reads them.
        Raises:
            UserError: the signals are not those that [pay] reads, no problem has a second trace to compare with, traces
                differ in their number of attempts, there is no frozen reference, or the schedule has ended.
            JobError: no attempt is scored and sampled from this policy.
        """
        setup_device(self.config)
        _ = self._learner.optimizer.learning_rate
        if self.reference.model is self.policy.model and self.policy.state.reference is not None:
            raise UserError(
                "the policy was updated and is its own reference: give the base as --reference (`reference` of Trainer)"
            )
        if len(set(step.group_numbers(traces).tolist())) == len(traces):
            raise UserError(
                "there is one trace a problem, which leaves a leave-one-out baseline nothing to average: "
                "sample with --samples 2 or more"
            )
        _check_signals(self.pay.signals, signals)
        scripted = any(trace.roles is not None for trace in traces)
        if scripted and isinstance(self.config, Stage1Config):
            raise UserError(
                "Stage I pins every attempt but the last to the reference, and a script's traces end where they will: "
                "train on them with train-stage2"
            )
        try:
            rewards = step.reward_matrix(verdicts, ragged=scripted)
        except ValueError as error:
            raise UserError(str(error)) from None
        batch = step.prepare(
            self._learner.model,
            self._learner.reference,
            traces,
            rewards,
            self.config,
            temperature=temperature,
            other_engine=other_engine,
            unmoved=self.policy.state.fingerprint == self.reference.state.fingerprint,
            verdicts=verdicts,
            signals=signals,
            logprobs=self._learner.trace_logprobs,
        )
        if not batch.trainable.any():
            raise JobError("no attempt is scored and sampled from this policy: nothing to learn from")
        return batch

    def forward_backward(self, batch: TrainBatch) -> StepStats:
        """The gradient of the stage's loss, in place of any that was there; the weights stay as they are."""
        stats = self._learner.take_gradient(step.forward_backward, batch)
        self._measured = batch, stats
        bfloat16 = computes_in_bfloat16(self._learner.model)
        self._limit = logprob_limit(stats.entropy, batch.temperature, bfloat16=bfloat16)
        return stats

    def check_batch_is_on_policy(self, stats: StepStats) -> None:
        """See that the traces were sampled from the weights about to be updated: by the logprobs themselves.

        A difference that rounding may just explain becomes one of `warnings`.

        Raises:
            JobError: the trainer's logprobs are not those the tokens were sampled with; the gradient is dropped.
        """
        self.warnings.clear()
        # `not <=`, so that a NaN fails.
        if not stats.logprob_diff <= self.logprob_tolerance:
            self._learner.zero_grad()
            raise JobError(
                f"the batch is not on policy: trainer and sampler logprobs differ by {stats.logprob_diff:.2g} nats a "
                f"token (limit {self.logprob_tolerance:g}): these tokens were not sampled from this policy; "
                "sample again"
            )
        if stats.logprob_diff > WARNING:
            self.warnings.append(
                f"trainer and sampler logprobs differ by {stats.logprob_diff:.2g} nats a token at update "
                f"{self.policy.state.iteration} (limit {self.logprob_tolerance:.2g}): more than rounding has been seen "
                "to explain"
            )

    def optim_step(self) -> list[dict[str, Any]]:
        """Clip the gradient, take one step of Adam, and give the policy its new name.

        Returns:
            The update's rows of the train metrics.
        Raises:
            JobError: the gradient is not finite; the policy stays as it was.
        """
        assert self._measured is not None, "forward_backward comes first"
        (batch, stats), self._measured = self._measured, None
        state = self.policy.state
        norm = self._learner.clip(self.config.max_grad_norm)
        if not math.isfinite(norm):
            self._learner.zero_grad()
            raise JobError("the gradient is not finite: lower --learning-rate and go back a checkpoint")
        rate = self._learner.step()
        self._learner.put_back()
        self.metrics = train_metric_rows(
            self.stage,
            state.iteration,
            batch=batch,
            stats=stats,
            grad_norm=norm,
            grad_clipped=norm > self.config.max_grad_norm,
            learning_rate=rate,
        )
        self.policy = replace(
            self.policy,
            state=TrainerState(
                stage=self.stage,
                iteration=state.iteration + 1,
                fingerprint=self.policy.fingerprint(),
                parent=state.fingerprint,
                reference=self._reference_fingerprint,
            ),
        )
        return self.metrics

    def update(
        self,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
        *,
        temperature: float = 1.0,
        other_engine: bool = False,
        signals: Sequence[Signal] = (),
        check: bool = True,
    ) -> list[dict[str, Any]]:
        """One update: the verbs one after another. On an error the policy is left as it was.

        Args:
            check: see that the batch is on policy; off for traces that cannot be.
        """
        batch = self.prepare(traces, verdicts, temperature=temperature, other_engine=other_engine, signals=signals)
        stats = self.forward_backward(batch)
        if check:
            self.check_batch_is_on_policy(stats)
        return self.optim_step()

    def token_logprobs(
        self, traces: Sequence[Trace], temperature: float, model: PreTrainedModel | None = None
    ) -> list[list[float]]:
        """The policy's logprob of each sampled token of some traces, or another model's; 0.0 on context."""
        learner, budget = self._learner, self.config.scoring_tokens
        if model is None or model is self.policy.model:
            scores = learner.trace_logprobs(learner.model, traces, temperature, budget)
        elif model is self.reference.model:
            scores = learner.trace_logprobs(learner.reference, traces, temperature, budget)
        else:
            scores = trace_logprobs(model, traces, temperature, budget)
        return [row[: len(trace.token_ids)] for row, trace in zip(scores.tolist(), traces, strict=True)]

    def save(self, out: Path, *, moments: bool = True) -> None:
        """Write the checkpoint as a whole; an existing one is replaced.

        Args:
            moments: write the optimiser's too, to go on from.
        """
        with replacing_folder(out) as folder:
            save_policy(
                folder,
                self.policy.model,
                self.policy.tokenizer,
                self.policy.state,
                self._learner.moments() if moments else None,
                base=self.policy.base,
            )
            if self.metrics:
                write_table(folder / TRAINER / METRICS_FILE, TRAIN_METRICS, self.metrics, self.metrics_footer())

    def metrics_footer(self) -> Footer:
        """The provenance of the last update's metrics."""
        return Footer(table=TRAIN_METRICS.name, stage=self.stage, policy=self.policy.state.parent)

    @property
    def logprob_tolerance(self) -> float:
        """Largest mean difference between trainer and sampler that rounding explains on the latest batch, nats a token.

        The one of the settings, or that of `on_policy.logprob_limit`.
        """
        return self._limit if self.config.logprob_tolerance is None else self.config.logprob_tolerance

    def _load_moments(self, saved: dict[str, Tensor]) -> None:
        try:
            self._learner.load(saved)
        except ValueError as error:
            raise UserError(
                f"the optimiser state of {self.policy.name} belongs to another model or --optimizer ({error}): name "
                f"the one it was made with, or delete its {TRAINER} folder to start anew"
            ) from None


def _start_of_chain(policy: Policy) -> Policy:
    """The base of a policy's adapter, where its chain started from that; else the policy itself."""
    base = policy.base
    return policy if base is None or base.state.fingerprint != policy.state.reference else base


def _check_reference(policy: Policy, reference: Policy) -> None:
    expected = policy.state.reference or policy.state.fingerprint
    if reference.state.fingerprint != expected:
        raise UserError(
            f"{policy.name} was trained against reference {short_digest(expected)}, not "
            f"{short_digest(reference.state.fingerprint)}: pass --reference with the checkpoint its chain started from"
        )


def _check_signals(paid: Sequence[str], signals: Sequence[Signal]) -> None:
    """See that the signals are those that the pay reads."""
    given = sorted({signal.name for signal in signals})
    if given and not paid:
        raise UserError(
            f"signals are given, and nothing is paid for them: give [pay] {signal_earner(given[0])} = "
            f'{{ "signal:{given[0]}" = 1.0 }}, or leave the signals out'
        )
    missing = [name for name in paid if name not in given]
    if missing:
        raise UserError(
            f"[pay] reads signal:{missing[0]}, and {' and '.join(given) or 'no signals'} are given: make them with "
            f"`score signal --kind {missing[0]}`, and pass --signals"
        )
