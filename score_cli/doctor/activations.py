"""What a pass through a model's layers holds: measured by running one and two of them on tensors without memory.

Whatever the architecture, every layer holds as much as the next. So the passes of a model of one layer and of one of
two, with one row of tokens and with two, give the four numbers of a straight line in both.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM

from score_cli.doctor.shape import Shape, shortened


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


def measure_passes(shape: Shape, length: int, *, bfloat16: bool, checkpointing: bool) -> Passes:
    """Run a model of this shape with one and two layers, on one and two rows of so many tokens."""
    found = {
        (layers, rows): _run(shape, layers, rows, length, bfloat16=bfloat16, checkpointing=checkpointing)
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
    shape: Shape, layers: int, rows: int, length: int, *, bfloat16: bool, checkpointing: bool
) -> tuple[int, int, int]:
    """Bytes kept for the backward pass, at its peak, and at the peak of a pass without gradient."""
    with FakeTensorMode(), ExitStack() as stack:
        model = AutoModelForCausalLM.from_config(shortened(shape, layers), attn_implementation="sdpa").eval()
        body = model.base_model
        tokens = torch.zeros(rows, length, dtype=torch.long)
        mask = torch.ones_like(tokens)

        def forward() -> Tensor:
            hidden: Tensor = body(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            return hidden

        # The CPU's bfloat16 arithmetic stands for a GPU's.
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16))
        with torch.no_grad(), _tracked(model) as tracker:
            before = _bytes(tracker, "current")
            forward()
            unkept = _bytes(tracker, "peak") - before
        if checkpointing:
            _recompute(model)
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


def _tracked(model: Any) -> MemTracker:
    tracker = MemTracker()
    tracker.track_external(model)
    return tracker


def _bytes(tracker: MemTracker, when: str) -> int:
    shot = tracker.get_tracker_snapshot(when)
    return sum(count for device in shot.values() for kind, count in device.items() if str(kind) == "Total")


def _recompute(model: Any) -> None:
    model.gradient_checkpointing_enable()
    model.train()
