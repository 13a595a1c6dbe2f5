"""`score train-stage1` and `score train-stage2`: traces and rewards to the next policy.

One call is one optimiser step on the whole file. The policy must be the one the traces were
sampled from: by fingerprint before anything is computed, and by the logprobs themselves before
the step is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import Stage1Config, Stage2Config, check_config
from score_cli.errors import JobError, UserError
from score_cli.tables.atomic import replacing_folder
from score_cli.tables.checkpoints import (
    METRICS_FILE,
    TRAINER,
    Policy,
    TrainerState,
    fingerprint,
    load_optimizer,
    load_policy,
    renderer_digest,
    save_policy,
)
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import REWARDS, TRACES, TRAIN_METRICS, read_footer, write_table
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.traces import check_pairs, read_traces, read_verdicts
from score_cli.training.batching import micro_batches
from score_cli.training.logprobs import batch_logprobs, sampled_columns
from score_cli.training.train_metrics import train_metric_rows
from score_cli.training.update import StepStats, TrainBatch, accumulate_gradient

StageConfig = Stage1Config | Stage2Config


@dataclass(frozen=True)
class Reference:
    """The policy that the KL terms are measured from, and its fingerprint."""

    model: PreTrainedModel
    fingerprint: str


class Trainer:
    """A policy under training, with its optimiser; kept warm between the iterations of a run."""

    def __init__(
        self,
        config: StageConfig,
        policy: Policy,
        reference: Reference | None,
        optimizer_state: dict[str, Tensor] | None,
        *,
        new_phase: bool = False,
    ) -> None:
        """Args:
            reference: None where the policy itself is the start of the chain.
            optimizer_state: as saved with the checkpoint; used only within one stage, since the
                next stage maximises something of another scale.
            new_phase: the policy is the end of one phase and the start of another, which has moments
                and a reference of its own.
        Raises:
            UserError: the reference is not the one this chain started from, or is missing.
        """
        check_config(config)
        self.config = config
        self.policy = policy
        self.stage = "stage1" if isinstance(config, Stage1Config) else "stage2"
        self.reference = reference or Reference(policy.model, policy.state.fingerprint)
        if not new_phase:
            _check_reference(policy, self.reference)
        self.metrics: list[dict[str, Any]] = []
        self._names = [name for name, _ in policy.model.named_parameters()]
        self._optimizer = torch.optim.Adam(
            policy.model.parameters(), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2)
        )
        if optimizer_state is not None and policy.state.stage == self.stage and not new_phase:
            self._load_optimizer(optimizer_state)

    def update(self, traces_path: Path, rewards_path: Path, *, allow_foreign: bool = False) -> None:
        """Take one optimiser step; on an error the policy is left as it was.

        Raises:
            UserError: the files are not this policy's traces and those traces' rewards.
            JobError: the trainer's logprobs are not those the tokens were sampled with.
        """
        state = self.policy.state
        assert self.reference.model is not self.policy.model or state.reference is None, (
            "a reference must stay as it is"
        )
        origin = _check_origin(traces_path, rewards_path, self.policy, self.config, allow_foreign)
        traces, rewards = read_traces(traces_path), read_verdicts(rewards_path)
        check_pairs(traces, rewards, traces_path, rewards_path)
        check_tokens(traces, self.policy.model, traces_path)
        _check_logprobs(traces, traces_path)
        inputs = TrainBatch(
            traces=traces,
            rewards=_reward_matrix(rewards, rewards_path),
            groups=_groups(traces, traces_path),
            temperature=origin.temperature,
            other_engine=origin.other_engine,
        )
        if not inputs.active.any():
            raise JobError(f"no attempt of {traces_path} is scored and sampled from this policy: nothing to learn from")
        model = self.policy.model
        model.zero_grad()
        update = accumulate_gradient(model, self.reference.model, inputs, self.config)
        if origin.known:
            self._check_batch_is_on_policy(update, traces_path)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm).item()
        if not math.isfinite(norm):
            model.zero_grad()
            raise JobError(
                f"the gradient of {traces_path} is not finite: lower --learning-rate and go back a checkpoint"
            )
        self._optimizer.step()
        model.zero_grad()
        self.metrics = train_metric_rows(
            self.stage,
            state.iteration,
            update=update,
            groups=inputs.groups,
            traces=traces,
            rewards=rewards,
            grad_norm=norm,
        )
        self.policy = replace(
            self.policy,
            state=TrainerState(
                stage=self.stage,
                iteration=state.iteration + 1,
                fingerprint=fingerprint(model),
                parent=state.fingerprint,
                reference=self.reference.fingerprint,
            ),
        )

    def token_logprobs(self, traces: Sequence[Trace], temperature: float) -> list[list[float]]:
        """The trainer's logprob of each sampled token of some traces; 0.0 on context."""
        result: list[list[float]] = [[0.0] * len(trace.token_ids) for trace in traces]
        for batch in micro_batches(traces, self.config.micro_batch_tokens, self.policy.model.device):
            columns = sampled_columns(batch)
            with torch.no_grad():
                scores = batch_logprobs(self.policy.model, batch, columns, temperature)
            for index, row in enumerate(batch.rows):
                for place, column in enumerate(columns.tolist()):
                    if batch.attempt_ids[index, column] > 0:
                        result[row][column] = scores.logprobs[index, place].item()
        return result

    def save(self, out: Path) -> None:
        """Write the checkpoint as a whole; an existing one is replaced."""
        with replacing_folder(out) as folder:
            save_policy(folder, self.policy.model, self.policy.tokenizer, self.policy.state, self._saved_optimizer())
            if self.metrics:
                footer = Footer(table=TRAIN_METRICS.name, stage=self.stage, policy=self.policy.state.parent)
                write_table(folder / TRAINER / METRICS_FILE, TRAIN_METRICS, self.metrics, footer)

    @property
    def logprob_tolerance(self) -> float:
        """Largest mean gap between trainer and sampler that rounding explains, nats a token."""
        if self.config.logprob_tolerance is not None:
            return self.config.logprob_tolerance
        return 0.05 if self.policy.model.device.type == "cuda" else 1e-3

    def _check_batch_is_on_policy(self, update: StepStats, traces_path: Path) -> None:
        tokens = update.sums.tokens.sum().item()
        gap = update.sums.logprob_diff_abs.sum().item() / max(1.0, tokens)
        # `not <=`, so that a NaN fails.
        if not gap <= self.logprob_tolerance:
            self.policy.model.zero_grad()
            raise JobError(
                f"policy proof failed: on {traces_path} trainer and sampler logprobs differ by {gap:.2g} nats a token "
                f"(limit {self.logprob_tolerance:g}): these tokens were not sampled from this policy; sample again"
            )

    def _saved_optimizer(self) -> dict[str, Tensor]:
        state = self._optimizer.state_dict()["state"]
        return {
            f"{key}.{name}": tensor.detach().cpu().contiguous()
            for index, name in enumerate(self._names)
            if index in state
            for key, tensor in state[index].items()
        }

    def _load_optimizer(self, saved: dict[str, Tensor]) -> None:
        keys = ("step", "exp_avg", "exp_avg_sq")
        expected = {f"{key}.{name}" for key in keys for name in self._names}
        if set(saved) != expected:
            raise UserError(
                f"the optimiser state of {self.policy.name} belongs to another model: "
                f"delete its {TRAINER} folder to start anew"
            )
        state = self._optimizer.state_dict()
        state["state"] = {
            index: {key: saved[f"{key}.{name}"] for key in keys} for index, name in enumerate(self._names)
        }
        self._optimizer.load_state_dict(state)


def _check_reference(policy: Policy, reference: Reference) -> None:
    expected = policy.state.reference or policy.state.fingerprint
    if reference.fingerprint != expected:
        raise UserError(
            f"{policy.name} was trained against reference {short_digest(expected)}, not "
            f"{short_digest(reference.fingerprint)}: pass --reference with the checkpoint its chain started from"
        )


@dataclass(frozen=True)
class _Origin:
    """Where traces come from: whether a footer says so, their temperature, and whether another engine sampled them."""

    known: bool
    temperature: float
    other_engine: bool


def read_origin(traces: Path, rewards: Path, policy: Policy, *, allow_foreign: bool) -> Footer | None:
    """The traces' footer, once traces, rewards and the policy's tokenizer are seen to belong together.

    Raises:
        UserError: a table has no footer and `allow_foreign` is off, or they do not belong together.
    """
    origin, judged = read_footer(traces, TRACES), read_footer(rewards, REWARDS)
    for path, footer in ((traces, origin), (rewards, judged)):
        if footer is None and not allow_foreign:
            raise UserError(
                f"{path} was not made by score, so its policy cannot be proved: pass --allow-foreign to train on it"
            )
    if origin is not None and origin.inputs.get("renderer", renderer_digest(policy)) != renderer_digest(policy):
        raise UserError(
            f"{traces} was sampled with another tokenizer, chat template or stop token than {policy.name} has: resample"
        )
    if judged is not None and judged.inputs.get("traces") != file_sha256(traces):
        raise UserError(f"{rewards} was made from other traces than {traces}: run `score verify` again on these traces")
    return origin


def _check_origin(traces: Path, rewards: Path, policy: Policy, config: StageConfig, allow_foreign: bool) -> _Origin:
    state = policy.state
    origin = read_origin(traces, rewards, policy, allow_foreign=allow_foreign)
    if origin is not None and origin.policy != state.fingerprint:
        raise UserError(
            f"{traces} was sampled from policy {short_digest(origin.policy)}, but --model is "
            f"{short_digest(state.fingerprint)}: resample, or pass the checkpoint it came from"
        )
    settings = origin.config if origin else {}
    temperature = float(settings.get("temperature", config.temperature))
    if temperature <= 0:
        raise UserError(f"{traces} was decoded greedily, expected samples: sample with --temperature 1")
    if settings.get("top_p", 1.0) < 1 or settings.get("top_k", 0) > 0:
        raise UserError(
            f"{traces} was sampled with top_p {settings.get('top_p', 1.0):g} and top_k {settings.get('top_k', 0)}, "
            "expected the policy's whole distribution: sample without --top-p and --top-k"
        )
    return _Origin(origin is not None, temperature, settings.get("engine") != "transformers")


def check_tokens(traces: Sequence[Trace], model: PreTrainedModel, path: Path) -> None:
    """Check that the token columns are those of conversations this model can have had.

    Raises:
        UserError: a row's tokens could not have been sampled as the row says.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, trace in enumerate(traces):
        owners = trace.attempt_ids[trace.attempt_ids > 0]
        wrong = None
        if len(trace.token_ids) == 0 or trace.attempt_ids[0] != 0:
            wrong = "it does not begin with context"
        elif (owners[1:] < owners[:-1]).any() or set(owners.tolist()) != set(range(1, len(trace.attempts) + 1)):
            wrong = f"attempt_ids do not run through attempts 1 to {len(trace.attempts)} in order"
        elif trace.token_ids.min() < 0 or trace.token_ids.max() >= vocabulary:
            wrong = f"a token id is outside the model's vocabulary of {vocabulary}"
        elif context is not None and len(trace.token_ids) > context:
            wrong = f"{len(trace.token_ids)} tokens, the model's context is {context}"
        elif trace.logprobs.max() > 1e-3:
            wrong = "a logprob is above 0"
        elif not 0 <= trace.offline_attempts <= len(trace.attempts):
            wrong = f"{trace.offline_attempts} offline attempts of {len(trace.attempts)}"
        if wrong is not None:
            raise UserError(f"{path}, row {number}: {wrong}: sample again with this model")


def _check_logprobs(traces: Sequence[Trace], path: Path) -> None:
    """Check that the sampler wrote its logprobs down."""
    if not any(trace.logprobs.any() for trace in traces):
        raise UserError(f"{path} has no logprobs but 0, expected the sampler's: write them down when you sample")


def _reward_matrix(rewards: Sequence[Verdict], path: Path) -> Tensor:
    """[M, A], NaN where unscored."""
    widths = {len(reward.rewards) for reward in rewards}
    if len(widths) != 1:
        raise UserError(
            f"{path} mixes traces of {sorted(widths)} attempts, expected one number: train on one at a time"
        )
    return torch.tensor([[math.nan if value is None else value for value in reward.rewards] for reward in rewards])


def _groups(traces: Sequence[Trace], path: Path) -> Tensor:
    """[M] problem numbers, in order of appearance.

    Raises:
        UserError: no problem has a second trace to compare with.
    """
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(trace.problem_id, len(numbers)) for trace in traces]
    if len(numbers) == len(traces):
        raise UserError(
            f"{path} has one trace a problem, which leaves a leave-one-out baseline nothing to average: "
            "sample with --samples 2 or more"
        )
    return torch.tensor(groups)


def train(
    config: StageConfig,
    *,
    model: Path,
    reference: Path | None,
    traces: Path,
    rewards: Path,
    out: Path,
    allow_foreign: bool = False,
    new_phase: bool = False,
) -> str:
    """Load a policy, take one step on a file of its traces, and write the next policy.

    Args:
        new_phase: as for `Trainer`; the reference is then the policy itself if left out.
    Returns:
        One line that sums the update up.
    Raises:
        UserError, JobError: see `Trainer`; nothing is written.
    """
    device = setup_device(config)
    policy = load_policy(model, device=device)
    other = None
    if new_phase and reference is None:
        reference = model
    if reference is not None:
        loaded = load_policy(reference, device=device)
        other = Reference(loaded.model, loaded.state.fingerprint)
    trainer = Trainer(config, policy, other, load_optimizer(model), new_phase=new_phase)
    trainer.update(traces, rewards, allow_foreign=allow_foreign)
    trainer.save(out)
    values = {(row["name"], row["attempt"]): row["value"] for row in trainer.metrics}
    accuracies = [f"t{a} {100 * v:.1f}%" for (name, a), v in values.items() if name == "accuracy"]
    kls = [f"{v:.3g}" for (name, _), v in values.items() if name == "kl"]
    return (
        f"policy {short_digest(trainer.policy.state.fingerprint)}, "
        f"update {trainer.policy.state.iteration} ({trainer.stage}); "
        f"on its traces {', '.join(accuracies)}, KL by attempt {', '.join(kls)} nats, "
        f"gradient norm {values['grad_norm', None]:.3g}"
    )
