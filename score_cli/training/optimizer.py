"""The optimiser of an update: Adam with moments of 32 or of 8 bits, and the step size of each update.

Eight bits are bitsandbytes' block-wise quantiles (Dettmers et al. 2022): a moment is one byte, and four bytes scale a
block of 256. Tensors of fewer than 4,096 numbers keep 32 bits. Updates are counted by the moments, which travel with
the checkpoint: a policy that goes on in its stage goes on in its schedule, in whichever process.
"""

import importlib.util
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from score_cli.config import OptimizerConfig, UpdateConfig
from score_cli.errors import UserError
from score_cli.training.shards import fill, whole

# What a checkpoint keeps of a weight's state: 32 bits, and 8 bits with the scales of its blocks.
ADAM = ("exp_avg", "exp_avg_sq")
ADAM_8BIT = ("state1", "state2", "absmax1", "absmax2")


class Optimizer:
    """Adam over some weights, its place in the schedule, and its moments as a checkpoint holds them."""

    def __init__(self, config: UpdateConfig, weights: Mapping[str, Tensor]) -> None:
        """Args:
            weights: to be trained, by the names that their moments are saved under.
        Raises:
            UserError: the schedule is not whole, or bitsandbytes is asked for and not installed.
        """
        check_schedule(config)
        self.config = config
        self.updates = 0
        self._weights = dict(weights)
        self._adam = make_adam(config, self._weights.values())

    @property
    def learning_rate(self) -> float:
        """Step size of the update that comes next.

        Raises:
            UserError: the schedule has ended.
        """
        return learning_rate(self.config, self.updates)

    def step(self) -> float:
        """Move the weights against their gradients; returns the step size."""
        rate = self.learning_rate
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self.updates += 1
        return rate

    def moments(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Everything that the next step depends on besides the weights: `exp_avg.NAME`, `step.NAME` and so on.

        Args:
            keep: nothing, where other processes put theirs together with ours.
        """
        found: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            state = self._adam.state.get(weight, {})
            kept = {}
            for key in (*ADAM, *ADAM_8BIT):
                gathered = whole(state[key].detach()) if key in state else None
                if gathered is not None and keep:
                    kept[key] = gathered.cpu().contiguous()
            if kept:
                kept["step"] = torch.as_tensor(state["step"], dtype=torch.float32).cpu()
            found |= {f"{key}.{name}": tensor for key, tensor in kept.items()}
        return found

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on with the moments of a checkpoint, to the bit.

        Raises:
            ValueError: they belong to other weights, or to another kind of moments.
        """
        states = {weight: self._empty_state(weight) for weight in self._weights.values()}
        for name, weight in self._weights.items():
            state = states[weight]
            for key, tensor in state.items():
                # bitsandbytes' maps from a byte to its value are its own, the same for all.
                if isinstance(tensor, Tensor) and not key.startswith("qmap"):
                    found = saved.get(f"{key}.{name}")
                    if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                        raise ValueError(f"no {key} of {name}, of shape {list(tensor.shape)} and {tensor.dtype}")
                    fill(tensor, found)
        steps = {saved[f"step.{name}"].item() for name in self._weights}
        known = {f"{key}.{name}" for name, weight in self._weights.items() for key in (*states[weight], "step")}
        if set(saved) - known:
            raise ValueError(f"{min(set(saved) - known)} is of no weight that is trained")
        self.updates = int(max(steps, default=0))
        for weight, state in states.items():
            if isinstance(state["step"], int):
                state["step"] = self.updates
            self._adam.state[weight] = state

    def _empty_state(self, weight: Tensor) -> dict[str, Any]:
        if self.config.optimizer == "adam8bit":
            adam: Any = self._adam
            adam.init_state(adam.param_groups[0], weight, 0, 0)
            state: dict[str, Any] = adam.state.pop(weight)
            return state
        fused = self._adam.defaults.get("fused")
        step = torch.zeros((), dtype=torch.float32, device=weight.device if fused else "cpu")
        return {"step": step} | {key: torch.zeros_like(weight, requires_grad=False) for key in ADAM}


def make_adam(
    config: OptimizerConfig, weights: Iterable[Tensor], *, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam (with weight decay, AdamW) with the settings' moments; one fused kernel for all weights on a GPU.

    Raises:
        UserError: as `check_packages`.
    """
    trained = list(weights)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": weight_decay,
    }
    if config.optimizer == "adam8bit":
        check_packages(config)
        # At its import it says which of its kernels for inference it has not found.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.optim import AdamW8bit

        adam: torch.optim.Optimizer = AdamW8bit(trained, **settings)
        return adam
    on_gpu = bool(trained) and trained[0].device.type == "cuda"
    return torch.optim.AdamW(trained, **settings, fused=True if on_gpu else None)


def check_packages(config: OptimizerConfig) -> None:
    """See that the packages that a training asks for are there.

    Raises:
        UserError: one is not.
    """
    if config.lora_rank and importlib.util.find_spec("peft") is None:
        raise UserError(
            f"lora_rank is {config.lora_rank}, but peft is not installed: `pip install 'score-cli[lora]'`, or leave "
            "it out"
        )
    if config.optimizer == "adam8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer is adam8bit, but bitsandbytes is not installed: `pip install 'score-cli[adam8bit]'`, or use "
            "--optimizer adam"
        )


def check_schedule(config: UpdateConfig) -> None:
    """See that the schedule says where it ends, if it does.

    Raises:
        UserError: it does not, or ends before the warm-up, or is given an end that it has not.
    """
    total = config.schedule_updates
    if config.schedule == "constant" and total is not None:
        raise UserError(
            f"schedule_updates is {total}, but schedule is constant, which has no end: leave it out, or set "
            "--schedule linear or cosine"
        )
    if config.schedule != "constant" and total is None:
        raise UserError(
            f"schedule is {config.schedule}, which falls to 0 over the updates of a stage: say how many there are "
            "(--schedule-updates)"
        )
    if total is not None and total <= config.warmup_updates:
        raise UserError(
            f"schedule_updates is {total}, expected more than the {config.warmup_updates} of warmup_updates: raise it"
        )


def learning_rate(config: UpdateConfig, update: int) -> float:
    """Step size of a stage's update, counted from 0.

    It rises in a line over the first `warmup_updates`, the first of which has one share of it and the last all of
    it; then it stays, or falls towards 0, which it would reach at update `schedule_updates`.

    Raises:
        UserError: the schedule has ended.
    """
    peak, warm, total = config.learning_rate, config.warmup_updates, config.schedule_updates
    if total is not None and update >= total:
        raise UserError(
            f"the schedule ended after {total} updates, and this is update {update + 1} of its stage: raise "
            "--schedule-updates, or start another phase (--new-phase)"
        )
    if update < warm:
        return peak * (update + 1) / warm
    if config.schedule == "constant" or total is None:
        return peak
    share = (update - warm) / (total - warm)
    return peak * (1 - share) if config.schedule == "linear" else peak * (1 + math.cos(math.pi * share)) / 2
