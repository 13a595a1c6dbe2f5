"""A policy's weights on their way to vLLM: the folder that it reads, and the digests that show what arrived."""

import copy
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from score_cli.errors import UserError
from score_cli.tables.adapters import adapted_layers, merged_weights
from score_cli.tables.atomic import locked_folder
from score_cli.tables.checkpoints import Policy, weight_bytes

PREFIX = "score-vllm-"
WEIGHTS = "model.safetensors"
# Numbers of a tensor that are copied from a GPU at a time: 64 MiB in bfloat16.
PIECE = 2**25


class Held(NamedTuple):
    """A weight as a worker holds it."""

    dtype: str
    shape: list[int]
    digest: str


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


def read_weights(folder: Path, digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The weights in a folder one after another; the digest of each is entered as it goes by."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.offset_keys():
                weight = opened.get_tensor(name)
                digests[name] = tensor_digest(weight)
                yield name, weight


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The first weight whose digest is not the one expected, in words; None where all are the same."""
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return f"{names[0]} and {len(names) - 1} more of {len(expected)}" if names else None


def held_difference(model: PreTrainedModel, held: Mapping[str, Held]) -> str | None:
    """As `difference`, over the weights in a worker's memory that have a name and a shape in the model too.

    Others are parts of a weight, or packed together with their neighbours or for a kernel. Of an adapter nothing is
    seen here: it moves matrices alone, whose arrival `read_weights` proves.
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
    """The folder that vLLM reads a policy from; a new one for each policy, and one at a time.

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
