"""A model in shards: FSDP2 keeps of each weight, its gradient and its moments one part a process.

A layer's weights are gathered when its pass begins and dropped after it. What is not a layer (embeddings, the last
norm, the head) is gathered at the start of a pass, and stays to the end of its backward pass: the head is used alone.
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from score_cli.tables.device import BFLOAT16_DEVICES
from score_cli.training.head import known_head, layers_of, remember_head


def outline(model: PreTrainedModel) -> tuple[PreTrainedModel, Any]:
    """A model without its weights' values, to be sent to another process, and what is known of its head."""
    known = known_head(model)
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    outlined = copy.deepcopy(model, dict(empty))
    for module in outlined.modules():
        # Sent from one GPU they would come to the same one.
        module._buffers = {name: None if value is None else value.cpu() for name, value in module._buffers.items()}
    return outlined, known


def shard(outlined: tuple[PreTrainedModel, Any], device: str) -> PreTrainedModel:
    """Make an outline into a model of which each process holds a part, its values to be filled in."""
    model, known = outlined
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    mesh = DeviceMesh(device, list(range(dist.get_world_size())))
    for layer in layers_of(model):
        if device in BFLOAT16_DEVICES:
            # What compute_precision casts to, cast before it is gathered; gradients are added up in float32.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        else:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # FSDP takes the mean over processes; our loss is a sum, of which each has some terms.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    remember_head(model, known)
    return model.eval()


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Give a tensor the values of another, which the first process alone has where the target is in shards.

    Args:
        source: of the whole shape; without values (on the meta device) in the other processes.
    """
    if not isinstance(target, DTensor):
        target.copy_(source)
        return
    device = target.device
    whole = torch.empty(source.shape, dtype=source.dtype, device=device) if source.is_meta else source.to(device)
    part = distribute_tensor(whole.detach(), target.device_mesh, target.placements)
    target.to_local().copy_(part.to_local())


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A tensor's values, gathered where it is in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
