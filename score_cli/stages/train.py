"""`score train-stage1` and `train-stage2`: traces, rewards and a policy to the next policy.

The policy must be the one that the traces were sampled from: by fingerprint before anything is
computed, and by the logprobs themselves before a step is taken.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from score_cli.errors import UserError
from score_cli.tables.checkpoints import Policy, context_length, load_optimizer, load_policy, renderer_digest
from score_cli.tables.device import setup_device
from score_cli.tables.processes import resting_device
from score_cli.tables.provenance import Footer, short_digest
from score_cli.tables.records import Signal, Trace, Verdict
from score_cli.tables.signals import read_signals
from score_cli.tables.traces import read_graded
from score_cli.training.adapt import keeps_base
from score_cli.training.step import StageConfig
from score_cli.training.trainer import Trainer


def train(
    config: StageConfig,
    *,
    model: Path,
    reference: Path | None,
    traces: Path,
    rewards: Path,
    out: Path,
    signals: Path | None = None,
    allow_foreign: bool = False,
    new_phase: bool = False,
) -> str:
    """Load a policy, take one step on a file of its traces, and write the next policy.

    Args:
        signals: of these traces, where [pay] reads them.
        new_phase: as for `Trainer`; the reference is then the policy itself if left out.
    Returns:
        One line that sums the update up.
    Raises:
        UserError, JobError: see `Trainer`; nothing is written.
    """
    trainer = open_trainer(config, model=model, reference=reference, new_phase=new_phase)
    batch = read_batch(trainer, traces, rewards, signals, allow_foreign=allow_foreign)
    trainer.update(
        batch.traces,
        batch.verdicts,
        temperature=batch.temperature,
        other_engine=batch.other_engine,
        signals=batch.signals,
        check=batch.proved,
    )
    trainer.save(out)
    return _summary(trainer)


class GradedBatch(NamedTuple):
    """A file of traces with their rewards, seen to be of the policy that is to be updated.

    Attributes:
        other_engine: than the trainer's own sampled them; proved: their footer says from which policy.
    """

    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    temperature: float
    other_engine: bool
    proved: bool
    signals: Sequence[Signal] = ()


def open_trainer(
    config: StageConfig, *, model: Path, reference: Path | None, new_phase: bool = False, as_base: bool = False
) -> Trainer:
    """A trainer with the policy, the reference and the moments of checkpoints; arguments and errors as `train`.

    With `as_base` a chain begins at the policy: it is taken without what trained it.
    """
    device = resting_device(setup_device(config))
    policy = load_policy(model, device=device)
    if new_phase and reference is None:
        reference = model
    # Where the policy's weights stay, the reference may be made of them too.
    beside = policy if keeps_base(policy, config) else None
    other = None if reference is None else load_policy(reference, device=device, beside=beside)
    if as_base:
        return Trainer(config, policy.as_base(), other, None, new_phase=new_phase)
    return Trainer(config, policy, other, load_optimizer(model), new_phase=new_phase)


def read_batch(
    trainer: Trainer, traces: Path, rewards: Path, signals: Path | None = None, *, allow_foreign: bool = False
) -> GradedBatch:
    """Traces, rewards and signals to update a trainer's policy on.

    Raises:
        UserError: they are another policy's, or cannot be trained on.
    """
    policy = trainer.policy
    graded = read_graded(traces, rewards, allow_foreign=allow_foreign)
    check_policy(graded.footer, traces, {policy.state.fingerprint}, policy)
    settings = graded.footer.config if graded.footer else {}
    temperature = float(settings.get("temperature", trainer.config.temperature))
    _check_distribution(settings, temperature, traces)
    check_tokens(graded.traces, policy.model, traces)
    _check_logprobs(graded.traces, traces)
    other_engine = settings.get("engine") != "transformers"
    paid = [] if signals is None else read_signals(signals, graded.traces, traces)
    return GradedBatch(graded.traces, graded.verdicts, temperature, other_engine, graded.footer is not None, paid)


def _summary(trainer: Trainer) -> str:
    values = {(row["name"], row["attempt"]): row["value"] for row in trainer.metrics}
    accuracies = [f"t{a} {100 * v:.1f}%" for (name, a), v in values.items() if name == "accuracy"]
    # Critiques hold no solve, and attempts no claim.
    right = f"right on its traces: {', '.join(accuracies)}; " if accuracies else ""
    true = f"of its claims true: {100 * values['verify_acc', None]:.1f}%; " if ("verify_acc", None) in values else ""
    kls = [f"{v:.3g}" for (name, _), v in values.items() if name == "kl"]
    state = trainer.policy.state
    return (
        f"policy {short_digest(state.fingerprint)}, update {state.iteration} ({trainer.stage}); "
        f"{right}{true}KL by attempt: {', '.join(kls)} nats; gradient norm {values['grad_norm', None]:.3g}"
        + "".join(f"; warning: {warning}" for warning in trainer.warnings)
    )


def check_policy(footer: Footer | None, traces: Path, allowed: set[str | None] | None, policy: Policy) -> None:
    """Refuse traces of another policy, or asked in other tokens, as far as a footer says so.

    Args:
        allowed: fingerprints of the policies whose traces are taken; None takes any.
    """
    if footer is None:
        return
    renderer = renderer_digest(policy)
    if footer.inputs.get("renderer", renderer) != renderer:
        raise UserError(
            f"{traces} was sampled with another tokenizer, chat template or stop token than {policy.name} has: resample"
        )
    if allowed is not None and footer.policy not in allowed:
        chain = ", which was not made from it" if len(allowed) > 1 else ""
        remedy = (
            ", or pass --allow-foreign to learn from another policy"
            if chain
            else ", or pass the checkpoint it came from"
        )
        raise UserError(
            f"{traces} was sampled from policy {short_digest(footer.policy)}, but --model is "
            f"{short_digest(policy.state.fingerprint)}{chain}: resample{remedy}"
        )


def _check_distribution(settings: dict[str, object], temperature: float, traces: Path) -> None:
    """Refuse traces that are not samples of the policy's whole distribution."""
    if temperature <= 0:
        raise UserError(f"{traces} was decoded greedily, expected samples: sample with --temperature 1")
    top_p, top_k = float(str(settings.get("top_p", 1.0))), int(str(settings.get("top_k", 0)))
    if top_p < 1 or top_k > 0:
        raise UserError(
            f"{traces} was sampled with top_p {top_p:g} and top_k {top_k}, "
            "expected the policy's whole distribution: sample without --top-p and --top-k"
        )


def check_tokens(traces: Sequence[Trace], model: PreTrainedModel, path: Path) -> None:
    """Check that the token columns are those of conversations this model can have had.

    Raises:
        UserError: a row's tokens could not have been sampled as the row says.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    context = context_length(model)
    for number, trace in enumerate(traces):
        sampled = trace.attempt_ids[trace.attempt_ids > 0]
        wrong = None
        if len(trace.token_ids) == 0 or trace.attempt_ids[0] != 0:
            wrong = "it does not begin with context"
        elif (sampled[1:] < sampled[:-1]).any() or set(sampled.tolist()) != set(range(1, len(trace.attempts) + 1)):
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
