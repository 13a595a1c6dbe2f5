"""Where the models of an update are: in this process, or in shards over all processes of `torchrun`.

`Learner` has what a trainer does with them. `Shards` is one process's part of the same, and `TeamLearner` a learner in
the first process that lets every process do its part. There the policy's own model keeps the whole weights, on which
nothing is computed: they are hashed, saved and sampled from as ever.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import SftConfig, UpdateConfig
from score_cli.errors import UserError
from score_cli.tables.adapters import adapter_parameters
from score_cli.tables.device import setup_device
from score_cli.tables.processes import ALONE, Share, Team, team
from score_cli.tables.records import Trace
from score_cli.training.adapt import trained_weights
from score_cli.training.head import layers_of
from score_cli.training.logprobs import trace_logprobs
from score_cli.training.optimizer import Optimizer, make_adam
from score_cli.training.shards import fill, outline, shard, whole

Config = UpdateConfig | SftConfig
Found = TypeVar("Found")
# Leaves a gradient: of a model, a reference, what is known of a batch, the settings, the share to take.
GradientOf = Callable[[PreTrainedModel, PreTrainedModel, Any, Any, Share], Found]

# What the processes know the shards by.
_NAME = "learner"


class Learner:
    """A policy's model, the reference's, and the optimiser over the policy's weights."""

    def __init__(
        self, config: Config, model: PreTrainedModel, reference: PreTrainedModel, *, share: Share = ALONE
    ) -> None:
        """Raises:
        UserError: see `Optimizer`, `make_adam`.
        """
        self.model = model
        self.reference = reference
        self.config = config
        self.share = share
        weights = trained_weights(model)
        self.optimizer: Any = (
            Optimizer(config, weights)
            if isinstance(config, UpdateConfig)
            else make_adam(config, weights.values(), weight_decay=config.weight_decay)
        )

    def trace_logprobs(
        self, model: PreTrainedModel, traces: Sequence[Trace], temperature: float, token_budget: int
    ) -> Tensor:
        """See `logprobs.trace_logprobs`; of `self.model` or `self.reference`."""
        return trace_logprobs(model, traces, temperature, token_budget, self.share)

    def take_gradient(self, gradient_of: GradientOf[Found], batch: Any) -> Found:
        """Leave the gradient of a batch, in place of any that was there; returns what was measured on the way."""
        self.zero_grad()
        return gradient_of(self.model, self.reference, batch, self.config, self.share)

    def zero_grad(self) -> None:
        """Drop the gradient."""
        self.model.zero_grad()

    def clip(self, most: float) -> float:
        """Scale the gradient down to a norm; returns the norm that it had."""
        return whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), most)).item()

    def step(self) -> Any:
        """Move the weights against the gradient, which is then dropped; returns what the optimiser does."""
        found = self.optimizer.step()
        self.zero_grad()
        return found

    def put_back(self) -> None:
        """Give the policy's own model the weights as they are now; in one process it has them."""

    def moments(self) -> dict[str, Tensor]:
        """See `Optimizer.moments`."""
        found: dict[str, Tensor] = self.optimizer.moments()
        return found

    def load(self, moments: Mapping[str, Tensor]) -> None:
        """See `Optimizer.load`."""
        self.optimizer.load(moments)


class Shards(Learner):
    """One process's part of a learner; all processes are asked the same, in the same order."""

    def __init__(self, config: Config, model: Any, reference: Any) -> None:
        """Args:
        model, reference: outlines (`shards.outline`); no reference where the policy is its own.
        """
        device = setup_device(config)
        here = team()
        assert here is not None
        own = shard(model, device)
        super().__init__(config, own, own if reference is None else shard(reference, device), share=here.share)

    def fill(self, of: str, source: PreTrainedModel | None) -> None:
        """Take the weights of a whole model, which the first process alone has."""
        given = {} if source is None else dict(source.named_parameters())
        for name, weight in getattr(self, of).named_parameters():
            empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
            fill(weight, given.get(name, empty))

    def gather(self, into: PreTrainedModel | None) -> None:
        """Put the weights together, in the first process into a whole model."""
        targets = {} if into is None else dict(into.named_parameters())
        for name, weight in self.model.named_parameters():
            values = whole(weight.detach())
            if name in targets:
                targets[name].data.copy_(values)

    def logprobs_of(self, of: str, traces: Sequence[Trace], temperature: float, token_budget: int) -> Tensor:
        """As `trace_logprobs`, of `model` or `reference`."""
        return self.trace_logprobs(getattr(self, of), traces, temperature, token_budget)

    def take_gradient(self, gradient_of: GradientOf[Found], batch: Any) -> Found:
        """See `Learner`."""
        return super().take_gradient(gradient_of, batch.to(self.model.device) if hasattr(batch, "to") else batch)

    def load_or_say(self, moments: Mapping[str, Tensor]) -> str | None:
        """As `load`; what is wrong with them, in words: no process leaves the others alone with it."""
        try:
            self.load(moments)
        except ValueError as error:
            return str(error)
        return None

    def moments_of_all(self, keep: bool) -> dict[str, Tensor]:
        """As `moments`; none where they are not to be kept: each is dropped as soon as it is gathered."""
        found: dict[str, Tensor] = self.optimizer.moments(keep=keep)
        return found


class TeamLearner(Learner):
    """A learner in the first of several processes; the weights are in shards over all of them."""

    def __init__(self, config: Config, model: PreTrainedModel, reference: PreTrainedModel, team: Team) -> None:
        """Raises:
        UserError: a setting asks for what is for one process alone.
        """
        check_shardable(config, model)
        self._team = team
        self._whole = model
        other = None if reference is model else outline(reference)
        own: Shards = team.make(_NAME, Shards, config, outline(model), other)
        self.model, self.reference, self.optimizer = own.model, own.reference, own.optimizer
        self.config, self.share = config, own.share
        self._call("fill", "model", None, own=("model", model))
        if other is not None:
            self._call("fill", "reference", None, own=("reference", reference))

    def trace_logprobs(
        self, model: PreTrainedModel, traces: Sequence[Trace], temperature: float, token_budget: int
    ) -> Tensor:
        """See `Learner`."""
        of = "model" if model is self.model else "reference"
        found: Tensor = self._call("logprobs_of", of, traces, temperature, token_budget)
        return found

    def take_gradient(self, gradient_of: GradientOf[Found], batch: Any) -> Found:
        """See `Learner`."""
        sent = batch.to("cpu") if hasattr(batch, "to") else batch
        found: Found = self._call("take_gradient", gradient_of, sent)
        return found

    def zero_grad(self) -> None:
        """See `Learner`."""
        self._call("zero_grad")

    def clip(self, most: float) -> float:
        """See `Learner`."""
        return float(self._call("clip", most))

    def step(self) -> Any:
        """See `Learner`."""
        return self._call("step")

    def put_back(self) -> None:
        """See `Learner`."""
        self._call("gather", None, own=(self._whole,))

    def moments(self) -> dict[str, Tensor]:
        """See `Learner`."""
        found: dict[str, Tensor] = self._call("moments_of_all", False, own=(True,))
        return found

    def load(self, moments: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        # A count is one number, and is looked at; all else is filled in by the first process.
        sent = {key: tensor if tensor.dim() == 0 else tensor.to("meta") for key, tensor in moments.items()}
        wrong = self._call("load_or_say", sent, own=(moments,))
        if wrong is not None:
            raise ValueError(wrong)

    def _call(self, verb: str, *arguments: Any, own: tuple[Any, ...] | None = None) -> Any:
        return self._team.call(_NAME, verb, *arguments, own=own)


def make_learner(config: Config, model: PreTrainedModel, reference: PreTrainedModel) -> Learner:
    """A learner in this process, or in all processes of `torchrun`, if there are several.

    Raises:
        UserError: a setting asks for what is for one process alone, or is not there.
    """
    here = team()
    return Learner(config, model, reference) if here is None else TeamLearner(config, model, reference, here)


def check_shardable(config: Config, model: PreTrainedModel) -> None:
    """Refuse what one process alone can train.

    Raises:
        UserError: the settings or the model ask for it.
    """
    wrong = None
    if adapter_parameters(model):
        wrong = "an adapter is trained (lora_rank)", "which fits one GPU: train it in one process, without torchrun"
    elif not layers_of(model):
        wrong = f"no layers are known of {type(model).__name__}", "in shards by layer: train it in one process"
    elif config.optimizer != "adam":
        wrong = f"optimizer is {config.optimizer}", "whose moments cannot be in shards: use --optimizer adam"
    elif getattr(config, "log_grad_norm_by_attempt", False):
        wrong = "log_grad_norm_by_attempt is on", "and the gradient is in shards: leave it off"
    if wrong is not None:
        raise UserError(f"{wrong[0]}, but several processes train one policy, {wrong[1]}")
