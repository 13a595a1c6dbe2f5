"""Where a model runs and in what arithmetic; the sampler and the trainer must agree on both."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from transformers import PreTrainedModel

from score_cli.config import MachineConfig
from score_cli.errors import UserError


def use_machine(config: MachineConfig) -> str:
    """Set the number of CPU threads and return the device to run on.

    Raises:
        UserError: CUDA was asked for and is not there, or the number of threads is below 1.
    """
    if config.threads < 1:
        raise UserError(f"threads is {config.threads}, expected at least 1")
    torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU here: use --device cpu, or install torch with CUDA")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def arithmetic_of(device: torch.device) -> str:
    """What may change the last bits of a result, in words: the device, the libraries, the instructions used."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {name}, torch {torch.__version__}, transformers {transformers.__version__}"


@contextmanager
def compute_precision(model: PreTrainedModel) -> Iterator[None]:
    """bfloat16 arithmetic on a GPU, over float32 weights; float32 on CPU."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type == "cuda"):
        yield
