"""What a model's configuration alone says of its size: no weight is loaded or made."""

import copy
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from score_cli.errors import UserError
from score_cli.tables.adapters import base_places, has_adapter, linear_layers, lora_config, read_adapter_config, sits_on
from score_cli.tables.checkpoints import refuse_gguf


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model.

    Attributes:
        config: what transformers builds the model from.
        parameters: all of them, tied ones once.
        largest: of its parameters, in numbers.
        layer_weights: numbers in the matrices of all layers: what each token is multiplied with.
        linear_weights: numbers in linear layers, but for the head's: what lies beneath an adapter.
        vocabulary, width, layers: V, d and L of the formulas.
        attention_width: numbers that a token's heads hold together.
        cache_width: numbers that a token leaves in the cache of one layer, keys and values together.
        context: most tokens of a trace, None without a limit.
    """

    name: str
    config: Any = field(compare=False, repr=False)
    parameters: int
    largest: int
    layer_weights: int
    linear_weights: int
    vocabulary: int
    width: int
    layers: int
    attention_width: int
    cache_width: int
    context: int | None


def read_shape(name: str | Path) -> Shape:
    """The shape of a checkpoint folder's model, or of one of the hub by its id; the weights are not needed.

    Raises:
        UserError: no such folder or model, or one that transformers cannot build as a causal language model.
    """
    refuse_gguf(name)
    if has_adapter(Path(name)):
        base = base_places(Path(name), read_adapter_config(Path(name)))[0]
        raise UserError(f"{name} is an adapter: give the model beneath it, {base}, and a rank (--set lora.rank=16)")
    try:
        config = AutoConfig.from_pretrained(str(name))
        model = empty_model(config)
    except Exception as error:  # a boundary: a damaged config.json raises whatever the model's code happens to
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} has no configuration that a model can be made from ({reason}): name a folder with a config.json, "
            "or a Hugging Face id such as Qwen/Qwen2.5-1.5B-Instruct"
        ) from None
    text = config.get_text_config()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    embeddings = model.get_input_embeddings().weight
    return Shape(
        name=str(name),
        config=config,
        parameters=sum(sizes.values()),
        largest=max(sizes.values()),
        layer_weights=sum(weight.numel() for weight in layer_parameters(model) if weight.dim() > 1),
        linear_weights=sum(weight.numel() for _, layer in linear_layers(model) for weight in layer.parameters()),
        vocabulary=len(embeddings),
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        attention_width=head_width * text.num_attention_heads,
        cache_width=2 * head_width * key_heads,
        context=getattr(text, "max_position_embeddings", None),
    )


def empty_model(config: Any) -> PreTrainedModel:
    """A model of this configuration whose tensors have shapes and no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


def layer_parameters(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters of a model's layers: all but embeddings, head and last norm."""
    layers = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    longest: list[torch.nn.Module] = max(layers, key=len, default=[])
    return [weight for layer in longest for weight in layer.parameters()]


class Adapter(NamedTuple):
    """What an adapter of given settings has: numbers in all of it, and in its largest matrix."""

    parameters: int
    largest: int


def adapter_size(shape: Shape, *, rank: int, targets: str, layers: int = 0) -> Adapter:
    """The size of an adapter for a model: rank x (inputs + outputs) of each linear layer that has one.

    Raises:
        UserError: no layer has a name that was given, or peft is not installed.
    """
    model = empty_model(shape.config)
    config = lora_config(model, rank=rank, alpha=rank, targets=targets, layers=layers)
    sizes = [
        dict(layer.named_parameters())["weight"].shape for name, layer in linear_layers(model) if sits_on(config, name)
    ]
    return Adapter(rank * sum(sum(size) for size in sizes), rank * max(max(size) for size in sizes))


def shortened(shape: Shape, layers: int) -> Any:
    """The configuration of a model with another number of layers and a vocabulary of 16, else the same."""
    config = copy.deepcopy(shape.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, 16
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if getattr(text, "layer_types", None):
        text.layer_types = [kind for _, kind in zip(range(layers), itertools.cycle(text.layer_types), strict=False)]
    return config
