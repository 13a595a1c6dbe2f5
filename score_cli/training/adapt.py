"""What of a policy a stage trains: all of its weights, or an adapter over weights that stay."""

import copy
from dataclasses import replace

from torch import nn

from score_cli.config import OptimizerConfig
from score_cli.tables import adapters
from score_cli.tables.checkpoints import Policy, adapted


def trainable(policy: Policy, config: OptimizerConfig) -> Policy:
    """The policy that a stage trains in place: the one given, or the same with a fresh adapter.

    Raises:
        UserError: it has another adapter than the settings ask for, or peft is not installed.
    """
    if not config.lora_rank:
        return policy
    return adapted(
        policy,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        layers=config.lora_layers,
        seed=config.lora_seed,
    )


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training moves, by name: an adapter's, or all where there is none."""
    return adapters.adapter_parameters(model) or dict(model.named_parameters())


def keeps_base(policy: Policy, config: OptimizerConfig) -> bool:
    """Whether training leaves the weights that a policy was loaded with, or those beneath its adapter, as they are."""
    return config.lora_rank > 0 or policy.base is not None


def copy_to_train(policy: Policy, config: OptimizerConfig) -> Policy:
    """A policy that can be trained while the one given stays as it is, over the same base where that stays."""
    if not keeps_base(policy, config):
        return replace(policy, model=copy.deepcopy(policy.model))
    return policy if policy.base is None else replace(policy, model=adapters.share(policy.model))
