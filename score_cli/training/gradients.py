"""Gradients that are added up over micro-batches, by attempt where their norms are wanted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Gradients:
    """Where the gradient of a loss, or of each part of it, is added to."""

    def __init__(self, model: nn.Module, parts: int = 1) -> None:
        """Args:
        parts: that the loss has; with one, everything goes to the parameters' `.grad` at once.
        """
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._parts = [[torch.zeros_like(p) for p in self._parameters] for _ in range(parts)] if parts > 1 else []
        self.parts = parts

    def of(self, parameter: Tensor, part: int) -> Tensor:
        """What a part's gradient of a parameter is to be added to, in place."""
        if self._parts:
            return self._parts[part][self._places[id(parameter)]]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def add(self, states: Tensor, gradients: Sequence[Tensor]) -> None:
        """Go back from states through their history, with the gradient of each part there."""
        if not states.requires_grad:  # all that learns comes after them
            return
        if not self._parts:
            states.backward(gradients[0])
            return
        for number, (part, gradient) in enumerate(zip(self._parts, gradients, strict=True), start=1):
            found = torch.autograd.grad(
                states, self._parameters, gradient, retain_graph=number < len(self._parts), allow_unused=True
            )
            for total, more in zip(part, found, strict=True):
                if more is not None:
                    total += more

    def finish(self) -> list[float]:
        """Leave the sum in the parameters' `.grad`; return the norm of each part."""
        for place, parameter in enumerate(self._parameters):
            for part in self._parts:
                parameter.grad = part[place] if parameter.grad is None else parameter.grad + part[place]
        return [torch.nn.utils.get_total_norm(part).item() for part in self._parts]
