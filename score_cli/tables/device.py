"""Where a model runs and in what arithmetic; the sampler and the trainer must agree on both."""

import ctypes
import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.config import DeviceConfig, PolicyConfig
from score_cli.errors import UserError

# The functions that torch hands to MKL's vector mathematics.
VECTOR_FUNCTIONS = (
    *(torch.acos, torch.asin, torch.atan, torch.cos, torch.cosh, torch.erf, torch.erfc, torch.erfinv, torch.exp),
    *(torch.expm1, torch.log, torch.log10, torch.log1p, torch.log2, torch.rsqrt, torch.sigmoid),
    *(torch.sin, torch.sinh, torch.sqrt, torch.tan, torch.tanh),
)


# Devices on which models compute in bfloat16, over float32 weights; elsewhere they compute in float32.
BFLOAT16_DEVICES = {"cuda"}
# What this process's settings ask for besides.
_ASKED: set[str] = set()
# Numbers in a model whose update is worth giving memory back.
LARGE_MODEL = 2**23


def setup_device(config: DeviceConfig) -> str:
    """Set the number of CPU threads and the arithmetic, and return the device to run on.

    Raises:
        UserError: CUDA was asked for and is not there, or the number of threads is below 1.
    """
    if config.threads < 1:
        raise UserError(f"threads is {config.threads}, expected at least 1")
    warm_up_mkl()
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    _ASKED.clear()
    if isinstance(config, PolicyConfig) and config.precision == "bfloat16":
        _ASKED.add("cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU here: use --device cpu, or install torch with CUDA")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def numerics(device: torch.device) -> str:
    """What may change the last bits of a result, in words: the device, the libraries, the instructions used."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    arithmetic = " in bfloat16" if device.type in _ASKED else ""
    return f"{device.type} {name}{arithmetic}, torch {torch.__version__}, transformers {transformers.__version__}"


def release_memory() -> None:
    """Give a GPU what dropped tensors still hold of it, for vLLM, a process of its own, to find it free."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def trim_heap(model: PreTrainedModel) -> None:
    """Give the kernel back what the C library holds free, on the CPU, where the model is large enough for it to matter.

    Tensors that come and go leave holes among those that stay, a quarter of what a gradient's passes held. The next
    passes then have pages to clear again, which small models would feel.
    """
    if model.device.type == "cpu" and sum(weight.numel() for weight in model.parameters()) > LARGE_MODEL:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def warm_up_mkl() -> None:
    """Call each vectorised function once on one thread, before several threads can.

    MKL chooses a function's kernel for this CPU at its first call, and is not safe there: where the first call
    is made by two threads at once, one of them may compute its half with a kernel that rounds otherwise. Seen
    with tanh (inside GELU) in one process of ten that started with a cold page cache: every policy trained
    from there differed in its last bits from what the same command gave at any other time.
    """
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        values = torch.linspace(0.1, 0.9, 4096, dtype=dtype)
        for function in VECTOR_FUNCTIONS:
            function(values)
        square = values.reshape(64, 64)
        square @ square


@functools.cache
def keep_freed_memory() -> None:
    """Let tensors of up to 31 MiB be made of memory that this process has had before, on the CPU.

    The C library asks the kernel for each block above a limit, which then clears every page, and raises the limit to
    the largest block it has seen freed. Decoding's tensors grow with the traces, so each was a little above it: a
    quarter of the time went into clearing pages.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def computes_in_bfloat16(model: PreTrainedModel) -> bool:
    """Whether a model's passes are bfloat16 arithmetic, where it is now."""
    return model.device.type in BFLOAT16_DEVICES | _ASKED


@contextmanager
def compute_precision(model: PreTrainedModel) -> Iterator[None]:
    """bfloat16 arithmetic on a GPU, over float32 weights, with logits in float32; float32 on the CPU unless asked.

    Each weight is cast once within the outermost block: hold one around all passes over weights that stay as they are.
    Not around passes with gradient together with passes without, whose casts have no history to go back through.
    """
    enabled = computes_in_bfloat16(model)
    head = _float32_logits(model) if enabled else nullcontext()
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled), head:
        yield


@contextmanager
def _float32_logits(model: PreTrainedModel) -> Iterator[None]:
    """Let the head add up its products in float32 and leave them there; it multiplies bfloat16 as other layers do.

    A logit of 20 is rounded to 1/16 in bfloat16, which is more than an update changes a logprob. A head that is no
    plain linear layer computes as it did.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or "forward" in vars(head):  # the latter within an outer block
        yield
        return
    casts: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            weight = head.weight.bfloat16()
        else:
            casts[:] = casts or [bfloat16_factor(head.weight)]
            weight = casts[0]
        logits: Tensor = _Float32Product.apply(hidden.bfloat16(), weight)  # type: ignore[no-untyped-call]
        return logits if head.bias is None else logits + head.bias.float()

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del head.forward


def bfloat16_factor(weight: Tensor) -> Tensor:
    """A weight rounded to bfloat16, in the form that `float32_product` takes as it is, to be used again and again."""
    rounded = weight.bfloat16()
    return rounded if weight.device.type == "cuda" else rounded.float()


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """[n, k] times [k, m]: bfloat16 numbers multiplied as such, and their products added up and left in float32.

    Others are multiplied in their own precision.

    Args:
        right: bfloat16 where left is, or such numbers in float32.
    """
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype != torch.bfloat16:
            return left @ right
        if left.device.type == "cuda":
            return torch.mm(left, right, out_dtype=torch.float32)
        with _bfloat16_factors():
            return left.float() @ right.float()


@contextmanager
def _bfloat16_factors() -> Iterator[None]:
    """Let the CPU round what it multiplies to bfloat16, which loses nothing where it is bfloat16 already."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Float32Product(torch.autograd.Function):
    """bfloat16 [..., d] times bfloat16 [V, d] transposed, in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return float32_product(hidden.flatten(0, -2), weight.t()).view(*hidden.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(hidden.dtype)
        return gradient @ weight, gradient.flatten(0, -2).t() @ hidden.flatten(0, -2)
