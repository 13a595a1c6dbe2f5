"""A model's last layer by itself: from its last hidden states to logits, and back, for a chunk of tokens at a time.

A vocabulary is large: the logits of a batch's tokens would be most of what an update holds. So the model is run up to
its head, and the head on a chunk of tokens after the other.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from score_cli.errors import UserError
from score_cli.tables.device import bfloat16_factor, compute_precision, computes_in_bfloat16, float32_product
from score_cli.training.batching import MicroBatch
from score_cli.training.gradients import Gradients

# Weights whose gradient in float32 is made apart before it is added, in bfloat16 arithmetic.
SLICE_ELEMENTS = 2**24


class _Kind(NamedTuple):
    """What a model does after its body: logits = cap x tanh(scale x layer(hidden) / cap); no tanh without a cap."""

    layer: nn.Linear
    scale: float
    cap: float | None


class Logits(NamedTuple):
    """A chunk's logits [m, V], at least float32, and the slope of their cap, where there is one."""

    values: Tensor
    slope: Tensor | None = None


class Head:
    """The head of a model as its weights are now; make another after they change.

    A model whose head is not known to be one linear layer, with a factor and a cap at most, makes its logits itself:
    they are then what is called hidden states here, and nothing is left to do for the head.
    """

    def __init__(self, model: PreTrainedModel, *, checkpointing: bool = False) -> None:
        """Args:
        checkpointing: keep each layer's input alone for the backward pass, which computes the rest again.
        """
        self.model = model
        self._layers = _layers_to_recompute(model) if checkpointing else []
        self._kind = _kind_of(model)
        # One that lies in shards is gathered by each pass, and may lie elsewhere after it.
        self._in_shards = isinstance(model, FSDPModule)
        if not self._in_shards:
            self._take_weight()
        self._buffer: Tensor | None = None

    @property
    def scale(self) -> float:
        """What the layer's logits are multiplied with."""
        return 1.0 if self._kind is None else self._kind.scale

    def states(self, batch: MicroBatch) -> Tensor:
        """[n, d] what the head predicts the sampled tokens from: the hidden states one place before each.

        Padding stands to the right, where causal attention never looks, so the model is told of none: attention kernels
        that take no mask are the fast ones, and share keys between heads without a copy for each.
        """
        seen: list[Tensor] = []

        def stop(hidden: Tensor) -> Tensor:
            seen.append(hidden)
            return hidden.new_zeros(*hidden.shape[:-1], 1)

        changes: list[tuple[nn.Module, Callable[..., Any]]] = []
        if self._kind is not None:
            changes.append((self._kind.layer, stop))
        if torch.is_grad_enabled():
            changes += [(layer, _recomputing(layer)) for layer in self._layers]
        with compute_precision(self.model), _replaced(changes):
            output = self.model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=batch.positions - 1)
        if self._in_shards:
            self._take_weight()
        found: Tensor = output.logits if self._kind is None else seen[0]
        return found.flatten(0, 1).index_select(0, batch.places)

    def release(self) -> None:
        """Let go of what a pass has gathered of a model in shards: it would be used again, grown old."""
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def operand(self, hidden: Tensor) -> Tensor:
        """[m, d] hidden states as the layer multiplies them, without history."""
        return hidden.detach() if self._kind is None else hidden.detach().to(self._factors)

    def vocabulary(self, states: Tensor) -> int:
        """How many logits one of the states becomes."""
        return states.shape[-1] if self._kind is None else len(self._weight)

    def logits(self, operand: Tensor, *, slope: bool = False) -> Logits:
        """Logits of [m, d] states, to be overwritten by who asked for them: the next call uses their memory again.

        Args:
            slope: give the cap's slope too.
        """
        if self._kind is None:
            return Logits(operand.to(torch.promote_types(operand.dtype, torch.float32), copy=True))
        if operand.dtype == torch.bfloat16:
            values = float32_product(operand, self._weight.t())
        else:
            values = torch.mm(operand, self._weight.t(), out=self._room(operand))
        if self._kind.layer.bias is not None:
            values += self._kind.layer.bias.detach()
        if self._kind.scale != 1.0:
            values *= self._kind.scale
        if self._kind.cap is None:
            return Logits(values)
        values.div_(self._kind.cap).tanh_()
        squared = 1 - values.square() if slope else None
        return Logits(values.mul_(self._kind.cap), squared)

    def pull_back(self, operand: Tensor, gradient: Tensor, gradients: Gradients, part: int) -> Tensor:
        """From [m, V] the gradient of what the layer gave, add its weights' own, and return that of the states."""
        if self._kind is None:
            return gradient
        layer = self._kind.layer
        if layer.bias is not None and layer.bias.requires_grad:
            gradients.of(layer.bias, part).add_(gradient.sum(0))
        gradient = gradient.to(operand.dtype)
        if layer.weight.requires_grad:
            _add_product(gradients.of(layer.weight, part), gradient, operand)
        return float32_product(gradient, self._weight)

    def _take_weight(self) -> None:
        if self._kind is not None:
            weight = self._kind.layer.weight.detach()
            rounds = computes_in_bfloat16(self.model)
            self._weight = bfloat16_factor(weight) if rounds else weight
            self._factors = torch.bfloat16 if rounds else weight.dtype

    def _room(self, operand: Tensor) -> Tensor:
        """[m, V] of memory that was used before where there is some: fresh pages cost more than a pass over them."""
        if self._buffer is None or len(self._buffer) < len(operand):
            self._buffer = None  # before there is another
            self._buffer = operand.new_empty(len(operand), len(self._weight))
        return self._buffer[: len(operand)]


def _add_product(total: Tensor, gradient: Tensor, operand: Tensor) -> None:
    """Add [m, V]' [m, d] to [V, d]."""
    if operand.dtype != torch.bfloat16:
        total.addmm_(gradient.t(), operand)
        return
    rows = max(1, SLICE_ELEMENTS // operand.shape[1])
    for target, columns in zip(total.split(rows), gradient.split(rows, dim=1), strict=True):
        target.add_(float32_product(columns.t(), operand))


_KINDS: WeakKeyDictionary[nn.Module, _Kind | None] = WeakKeyDictionary()


def _kind_of(model: PreTrainedModel) -> _Kind | None:
    """What a model does after its body, found out once; None where it is none of what is known here."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(model, FSDPModule):
        return _KINDS[cast(nn.Module, model)]
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return None
    known = _KINDS.get(model)
    if model not in _KINDS or (known is not None and known.layer is not layer):
        _KINDS[model] = known = _try_out(model, layer)
    return known


def known_head(model: PreTrainedModel) -> tuple[float, float | None] | None:
    """The factor and the cap of a model's logits; None where it makes them in a way of its own."""
    kind = _kind_of(model)
    return None if kind is None else (kind.scale, kind.cap)


def remember_head(model: PreTrainedModel, known: tuple[float, float | None] | None) -> None:
    """Say of a model what was found out about the head of another like it."""
    layer = None if known is None else model.get_output_embeddings()
    _KINDS[model] = None if known is None or layer is None else _Kind(layer, *known)


def _try_out(model: PreTrainedModel, layer: nn.Linear) -> _Kind | None:
    """Let the model go on from given logits, and see what it makes of them."""
    given = torch.linspace(-60, 60, layer.out_features, dtype=torch.float64, device=model.device)[None, None]
    seen: list[Tensor] = []

    def give(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return given.clone()

    with torch.no_grad(), compute_precision(model), _replaced([(layer, give)]):
        tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        keep = torch.ones(1, dtype=torch.long, device=model.device)
        found = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
    if [tuple(hidden.shape) for hidden in seen] != [(1, 1, layer.in_features)] or found.shape != given.shape:
        return None
    scale = (found[0, 0, -1] / given[0, 0, -1]).item()
    if torch.allclose(found.double(), given * scale, rtol=1e-6, atol=0):
        return _Kind(layer, scale, None)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap and torch.allclose(found.double(), cap * (given / cap).tanh(), rtol=1e-6, atol=1e-9):
        return _Kind(layer, 1.0, float(cap))
    return None


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's layers, as transformers marks them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _layers_to_recompute(model: PreTrainedModel) -> list[nn.Module]:
    """Raises:
    UserError: the model has no layers that are marked.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError(f"gradient checkpointing knows no layers of {type(model).__name__}: leave it off")
    return layers


def _recomputing(layer: nn.Module) -> Callable[..., Any]:
    """A layer's forward pass that keeps its input alone. Nothing is drawn at random in it: dropout is off."""
    return functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def recomputing_layers(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a model's layers keep their input alone for the backward pass, which computes the rest again."""
    with _replaced([(layer, _recomputing(layer)) for layer in _layers_to_recompute(model)]):
        yield


@contextmanager
def _replaced(changes: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the block some layers compute something else."""
    before = [vars(layer).get("forward") for layer, _ in changes]
    for layer, forward in changes:
        layer.forward = forward
    try:
        yield
    finally:
        for (layer, _), own in zip(changes, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own
