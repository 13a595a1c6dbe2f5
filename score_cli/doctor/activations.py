"""What a pass through a model's layers holds: measured by running one and two of them on tensors without memory.

Whatever the architecture, every layer holds as much as the next. So the passes of a model of one layer and of one of
two, with one row of tokens and with two, give the four numbers of a straight line in both.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import PreTrainedModel, masking_utils

from score_cli.config import OptimizerConfig
from score_cli.doctor.shape import Shape, empty_model, shortened
from score_cli.tables.adapters import (
    adapter_parameters,
    linear_layers,
    lora_config,
    only_adapter_learns,
    with_adapter,
)
from score_cli.training.head import recomputing_layers


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes that grow with layers and rows: (fixed + rows x row) + layers x (layer_fixed + rows x layer_row)."""

    fixed: float
    row: float
    layer_fixed: float
    layer_row: float

    def at(self, layers: int, rows: float) -> float:
        """The bytes of so many layers and rows."""
        return self.fixed + rows * self.row + layers * (self.layer_fixed + rows * self.layer_row)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What passes over rows of some length hold, above weights and gradients that are there already.

    Attributes:
        length: tokens of a row.
        kept: from the forward pass to the backward pass, bfloat16 copies of weights included.
        backward: at the peak of the backward pass, `kept` included.
        forward: at the peak of a pass without gradient.
    """

    length: int
    kept: Line
    backward: Line
    forward: Line


def measure_passes(shape: Shape, length: int, train: OptimizerConfig, *, bfloat16: bool) -> Passes:
    """Run a model of this shape with one and two layers, on one and two rows of so many tokens.

    Args:
        train: says whether activations are computed again, and whether an adapter is trained.
    """
    found = {
        (layers, rows): _run(shape, layers, rows, length, train, bfloat16=bfloat16)
        for layers in (1, 2)
        for rows in (1, 2)
    }
    lines = []
    for place in range(3):
        one, two = ({rows: found[layers, rows][place] for rows in (1, 2)} for layers in (1, 2))
        layer_row = (two[2] - two[1]) - (one[2] - one[1])
        layer_fixed = (two[1] - one[1]) - layer_row
        row = (one[2] - one[1]) - layer_row
        lines.append(
            Line(fixed=one[1] - row - layer_row - layer_fixed, row=row, layer_fixed=layer_fixed, layer_row=layer_row)
        )
    return Passes(length=length, kept=lines[0], backward=lines[1], forward=lines[2])


def _run(
    shape: Shape, layers: int, rows: int, length: int, train: OptimizerConfig, *, bfloat16: bool
) -> tuple[int, int, int]:
    """Bytes kept for the backward pass, at its peak, and at the peak of a pass without gradient."""
    model = _shortened(shape, layers, train, bfloat16=bfloat16)
    with FakeTensorMode(), ExitStack() as stack:
        _to_cpu(model)
        # No row holds several sequences: of tensors without memory transformers cannot tell, and would make a mask.
        stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None))
        stack.enter_context(only_adapter_learns(model))
        body = model.base_model
        tokens = torch.zeros(rows, length, dtype=torch.long)

        def forward() -> Tensor:
            hidden: Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state
            return hidden

        # The CPU's bfloat16 arithmetic stands for a GPU's.
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16))
        with torch.no_grad(), _tracked(model) as tracker:
            before = _bytes(tracker, "current")
            forward()
            unkept = _bytes(tracker, "peak") - before
        if train.gradient_checkpointing:
            stack.enter_context(recomputing_layers(model))
        first = forward()
        first.backward(torch.ones_like(first))  # so that gradients are there
        del first
        torch.clear_autocast_cache()
        with _tracked(model) as tracker:
            before = _bytes(tracker, "current")
            hidden = forward()
            kept = _bytes(tracker, "current") - before
            hidden.backward(torch.ones_like(hidden))
            peak = _bytes(tracker, "peak") - before
    return kept, peak, unkept


def _shortened(shape: Shape, layers: int, train: OptimizerConfig, *, bfloat16: bool) -> PreTrainedModel:
    """A model of fewer layers, on no device; with an adapter, if one is trained.

    Beneath it linear layers have 2 bytes a number where passes compute in bfloat16.
    """
    model = empty_model(shortened(shape, layers))
    if not train.lora_rank:
        return model
    config = lora_config(model, rank=train.lora_rank, alpha=train.lora_alpha, targets=train.lora_targets)
    for _, layer in linear_layers(model) if bfloat16 else ():
        if type(layer) is nn.Linear:
            layer.to(torch.bfloat16)
    made = with_adapter(model, config)
    for weight in adapter_parameters(made).values():
        weight.data = weight.data.float()
    return made


def _to_cpu(model: nn.Module) -> None:
    """Give a model tensors of the CPU, made where this is called, in place of those of no device."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype))
            setattr(module, name, made.setdefault(id(weight), new))
        for name, values in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(values.shape, dtype=values.dtype))


class _Tracker(MemTracker):
    """One for models of which some weights take no gradient: torch's would hang a hook on each."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = False) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def _tracked(model: Any) -> MemTracker:
    tracker = _Tracker()
    tracker.track_external(model)
    return tracker


def _bytes(tracker: MemTracker, when: str) -> int:
    shot = tracker.get_tracker_snapshot(when)
    return sum(count for device in shot.values() for kind, count in device.items() if str(kind) == "Total")
