"""A policy's weights on their way to vLLM, and the digests that show what arrived.

vLLM starts from a folder. Later weights are handed over in memory.
"""

import copy
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from score_cli.errors import JobError, UserError
from score_cli.tables.adapters import adapted_layers, merged_weights
from score_cli.tables.atomic import locked_folder
from score_cli.tables.checkpoints import Policy, weight_bytes

PREFIX = "score-vllm-"
WEIGHTS = "model.safetensors"
# Numbers of a tensor that are copied from a GPU at a time: 64 MiB in bfloat16.
PIECE = 2**25
# Bytes that a weight in shared memory begins at a multiple of.
ALIGNMENT = 64


class Held(NamedTuple):
    """A weight as a worker holds it."""

    dtype: str
    shape: list[int]
    digest: str


class Taken(NamedTuple):
    """What a worker was given in place of its weights, and what it holds since then.

    Attributes:
        digests: of each weight that vLLM's loader was given.
        held: what the worker's memory shows.
    """

    digests: dict[str, str]
    held: dict[str, Held]


def tensor_digest(values: Tensor) -> str:
    """sha256 of a tensor's bytes, piece by piece."""
    digest = hashlib.sha256()
    for piece in values.detach().reshape(-1).split(PIECE):
        digest.update(weight_bytes(piece))
    return digest.hexdigest()


def sampler_weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight by its name in a checkpoint, tied ones once, on the CPU in the sampler's precision.

    An adapter is added to the weights that it sits on.
    """
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = {name: weight for name, weight in model.state_dict().items() if name in own}
    if adapted_layers(model):
        buffers = {name: weight for name, weight in model.named_buffers() if name in weights}
        weights = buffers | {name: weight.to(dtype).cpu() for name, weight in merged_weights(model)}
    return {
        name: (weight.to(dtype) if weight.is_floating_point() else weight).detach().cpu().contiguous()
        for name, weight in revert_weight_conversion(model, weights).items()
    }


class Place(NamedTuple):
    """Where a weight lies in shared memory; plain values, for a message to another process."""

    name: str
    dtype: str
    shape: list[int]
    start: int


@contextmanager
def shared_weights(weights: dict[str, Tensor]) -> Iterator[tuple[Path, list[Place]]]:
    """Lay weights into memory that other processes of this user can map; yields a path to it, and the places in it.

    The path is in no folder of any disk. The memory has no name, so it is gone with the block, or with this process
    however that ends. The weights given are dropped as they are laid down: no second copy of all is held.
    """
    places, end = [], 0
    for name, weight in weights.items():
        places.append(Place(name, str(weight.dtype).removeprefix("torch."), list(weight.shape), end))
        end += -(-weight.nbytes // ALIGNMENT) * ALIGNMENT
    descriptor = os.memfd_create(PREFIX)
    try:
        os.ftruncate(descriptor, end)
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        memory = torch.from_file(str(path), shared=True, size=end, dtype=torch.uint8)
        for place in places:
            weight = weights.pop(place.name)
            memory[place.start : place.start + weight.nbytes] = weight.contiguous().view(-1).view(torch.uint8)
        yield path, places
    finally:
        os.close(descriptor)


def read_weights(path: Path, places: Sequence[Place]) -> Iterator[tuple[str, Tensor]]:
    """The weights in shared memory one after another."""
    memory = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
    for name, kind, shape, start in places:
        dtype: torch.dtype = getattr(torch, kind)
        yield name, memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def noted(weights: Iterable[tuple[str, Tensor]], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Weights as they are; the digest of each is entered as it goes by."""
    for name, weight in weights:
        digests[name] = tensor_digest(weight)
        yield name, weight


def check_same(differences: Sequence[str | None]) -> None:
    """See that vLLM's workers hold the policy that they were given.

    Args:
        differences: what each worker has otherwise than the policy; None for nothing.
    Raises:
        JobError: one has, or there is none.
    """
    wrong = [each for each in differences if each is not None]
    if wrong or not differences:
        found = wrong[0] if wrong else "no worker answered"
        raise JobError(f"vLLM did not take the policy's weights ({found}): run the command again")


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The first weight whose digest is not the one expected, in words; None where all are the same."""
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return f"{names[0]} and {len(names) - 1} more of {len(expected)}" if names else None


def held_difference(model: PreTrainedModel, held: Mapping[str, Held]) -> str | None:
    """As `difference`, over the weights in a worker's memory that have a name and a shape in the model too.

    Others are parts of a weight, or packed together with their neighbours or for a kernel. Of an adapter nothing is
    seen here: it moves matrices alone, whose arrival `noted` proves.
    """
    own = {
        name: weight
        for name, weight in merged_weights(model)
        if name in held and list(weight.shape) == list(held[name].shape)
    }
    if not own:
        return "none of its weights is shown"
    expected = {name: tensor_digest(weight.to(getattr(torch, held[name].dtype))) for name, weight in own.items()}
    return difference(expected, {name: held[name].digest for name in own})


class WeightsFolder:
    """The folder that vLLM starts from, where the policy is in none of its own; one at a time.

    It is locked as long as this process lives. What a killed one left behind is removed by the next.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock = ExitStack()

    def write(self, policy: Policy, weights: Mapping[str, Tensor]) -> Path:
        """Write a configuration and weights into a new folder, in place of the one before."""
        self.remove()
        _remove_abandoned()
        # A new name each time: a path that vLLM has read before could be answered from a cache.
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock.enter_context(locked_folder(self.path))
        config = copy.deepcopy(policy.model.config)
        config.architectures = [type(policy.model).__name__]
        config.save_pretrained(self.path)
        save_file(dict(weights), self.path / WEIGHTS, {"format": "pt"})
        return self.path

    def remove(self) -> None:
        """Remove the folder, if there is one."""
        if self.path is not None:
            rmtree(self.path, ignore_errors=True)
            self.path = None
        self._lock.close()


def _remove_abandoned() -> None:
    """Remove the folders of processes that have ended; a folder that nobody has locked yet holds no weights."""
    for weights in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{WEIGHTS}"):
        # Another's folder, or one that is being removed, is let be.
        with suppress(UserError, OSError), locked_folder(weights.parent):
            rmtree(weights.parent, ignore_errors=True)
