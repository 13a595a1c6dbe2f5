"""LoRA through peft: small matrices beside a model's linear layers, over weights that are shared and stay as they are.

    ckpt/adapter_config.json, adapter_model.safetensors   loads in peft, transformers and vLLM as any adapter
    ckpt/trainer/base.json                                fingerprint of the weights it sits on

The model with an adapter is another tree of modules over the very tensors of its base: the base is the adapter
switched off, without a second copy. Nothing here knows of policies; `checkpoints.py` puts the two together.
"""

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from score_cli.errors import UserError
from score_cli.tables.device import computes_in_bfloat16

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_FILE = "base.json"

NAME = "default"
ALL_LINEAR = "all-linear"
# What peft puts before the names of a causal model's weights in its files.
_PREFIX = "base_model.model."
_BENEATH = ".base_layer."
_PARTS = (".lora_A.", ".lora_B.")


def has_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in place of a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def lora_config(model: PreTrainedModel, *, rank: int, alpha: float, targets: str, layers: int = 0) -> Any:
    """peft's configuration of an adapter for a model's linear layers.

    Args:
        targets: the linear layers' names with commas between, or `all-linear` for all but the output head.
        layers: of the model, from its last one down, that get an adapter; 0 for all.
    Raises:
        UserError: peft is not installed, no linear layer has a name that was given, or there are not so many layers.
    """
    names = [name.strip() for name in targets.split(",") if name.strip()]
    known = sorted({name.rsplit(".", 1)[-1] for name, _ in linear_layers(model)})
    unknown = [name for name in names if name not in known]
    if names == [ALL_LINEAR]:
        names, unknown = known, []
    if unknown or not names:
        raise UserError(
            f"lora_targets is {targets}, expected {ALL_LINEAR}, or of the linear layers {', '.join(known)} with commas "
            "between"
        )
    last = _last_layers(model, layers) if layers else None
    with _importing():
        from peft import LoraConfig
    whole = int(alpha) if float(alpha).is_integer() else alpha
    return LoraConfig(r=rank, lora_alpha=whole, target_modules=names, layers_to_transform=last, task_type="CAUSAL_LM")


def _last_layers(model: PreTrainedModel, layers: int) -> list[int] | None:
    """The numbers of a model's last layers; None for all of them."""
    count = model.config.get_text_config().num_hidden_layers
    if layers > count:
        raise UserError(f"lora_layers is {layers}, expected at most the model's {count} layers")
    return list(range(count - layers, count)) if layers < count else None


def sits_on(config: Any, layer: str) -> bool:
    """Whether an adapter of this configuration sits on the linear layer of this name."""
    with _importing():
        from peft.tuners.tuners_utils import check_target_module_exists
    return bool(check_target_module_exists(config, layer))


def with_adapter(model: PreTrainedModel, config: Any, *, seed: int = 0) -> PreTrainedModel:
    """A model with a fresh adapter over the weights of another, which are shared.

    The adapter adds nothing yet: its `B` is 0. Its `A` is drawn from the seed alone, layer by layer in the order of
    their names.

    Args:
        config: as `lora_config` gives it, or read from a folder.
    Raises:
        UserError: the adapter is of a kind that is not known here.
    """
    with _importing():
        from peft import inject_adapter_in_model
    made = share(model)
    config = copy.deepcopy(config)
    config.lora_dropout, config.inference_mode = 0.0, False
    with _importing(), torch.random.fork_rng(devices=[]):
        try:
            inject_adapter_in_model(config, made, NAME)
        except ValueError as error:
            raise UserError(f"the adapter does not fit the model ({str(error).splitlines()[0]})") from None
    _check_kind(made, config)
    # At rest all weights look trainable, as without an adapter: torch multiplies by others in another order, to other
    # last bits. `only_adapter_learns` tells them apart.
    made.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(adapter_parameters(made).items()):
        # peft makes it in the precision that the layer beneath is held in, which would round what is loaded into it.
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        if ".lora_A." in name:
            drawn = torch.empty(weight.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            weight.data.copy_(drawn)
    settle_precision(made)
    return made.eval()


def share(model: PreTrainedModel) -> PreTrainedModel:
    """Another tree of modules over a model's own tensors; an adapter's, if it has one, are copied."""
    own = {id(weight) for weight in adapter_parameters(model).values()}
    shared = {id(weight): weight for weight in model.parameters() if id(weight) not in own}
    return copy.deepcopy(model, dict(shared))


@contextmanager
def only_adapter_learns(model: nn.Module) -> Iterator[None]:
    """Within the block the weights beneath a model's adapter take no gradient; a model without one stays as it is."""
    learned = adapter_parameters(model)
    beneath = [weight for name, weight in model.named_parameters() if learned and name not in learned]
    for weight in beneath:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in beneath:
            weight.requires_grad_(True)


def settle_precision(model: PreTrainedModel) -> None:
    """Hold the linear layers beneath an adapter in bfloat16 where they compute in bfloat16 and lose no bit by it.

    They would be cast at every pass anyway, from twice the memory. Call it again on another device.
    """
    if not computes_in_bfloat16(model):
        for weight in model.parameters():
            if weight.dtype == torch.bfloat16:
                weight.data = weight.data.float()
    elif adapted_layers(model):
        for name, layer in linear_layers(model):
            for weight in layer.parameters() if type(layer) is nn.Linear and ".lora_" not in name else ():
                rounded = weight.data.bfloat16()
                if torch.equal(rounded.float(), weight.data):
                    weight.data = rounded


def adds_nothing(model: nn.Module) -> bool:
    """Whether an adapter is as fresh: its `B` is 0."""
    return not any(weight.any() for name, weight in adapter_parameters(model).items() if ".lora_B." in name)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a model's adapter by name; none where it has none."""
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by the name that each has in the model without one."""
    return {name: layer for name, layer in model.named_modules() if NAME in getattr(layer, "lora_A", ())}


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in the model without adapter, tied ones once, the adapter added in; one at a time.

    Sums are made in float32 or better, whatever the weight is held in.
    """
    layers = adapted_layers(model)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        plain = name.replace(_BENEATH, ".")
        layer = layers.get(plain.removesuffix(".weight"))
        if layer is None or plain == name:
            yield plain, weight.detach()
            continue
        with torch.no_grad():
            wide = torch.promote_types(weight.dtype, torch.float32)
            yield plain, weight.detach().to(wide) + layer.get_delta_weight(NAME).to(wide)


def merge_into(base: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give a model of its own, the base of an adapter, the weights of base and adapter together."""
    own = dict(base.named_parameters())
    for name, weight in merged_weights(model):
        own[name].data = weight.to(own[name].dtype, copy=True)


def save_adapter(folder: Path, model: PreTrainedModel, *, base: str, fingerprint: str) -> None:
    """Write an adapter into an existing folder that has a folder `trainer`.

    Args:
        base: folder or hub id of the weights beneath; fingerprint: theirs.
    """
    local = Path(base)
    where = str(local.resolve()) if local.is_dir() else base
    config = model.peft_config[NAME].to_dict()
    config |= {"base_model_name_or_path": where, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
    weights = {
        _PREFIX + name.replace(f".{NAME}.", "."): weight.detach().cpu().contiguous()
        for name, weight in adapter_parameters(model).items()
    }
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    known = json.dumps({"fingerprint": fingerprint}, indent=2, sort_keys=True)
    (folder / "trainer" / BASE_FILE).write_text(known + "\n")


def read_adapter_config(folder: Path) -> Any:
    """peft's configuration of the adapter in a folder.

    Raises:
        UserError: it cannot be read, or is of another kind than LoRA on linear layers.
    """
    with _importing():
        from peft import LoraConfig, PeftConfig

        try:
            config = PeftConfig.from_pretrained(str(folder))
        except Exception as error:  # a boundary: a damaged file raises whatever the class happens to
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{folder / ADAPTER_CONFIG} cannot be read ({reason}): name another checkpoint") from None
    if not isinstance(config, LoraConfig):
        raise UserError(f"{folder} is an adapter of kind {config.peft_type}, expected LoRA: merge it with peft first")
    return config


def base_fingerprint(folder: Path) -> str | None:
    """Of the policy that the adapter in a folder sits on; None for an adapter that was not made here."""
    file = folder / "trainer" / BASE_FILE
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): name another checkpoint") from None


def base_places(folder: Path, config: Any) -> list[str]:
    """Where the weights that an adapter sits on may lie: a folder or hub id, the likeliest first.

    The folder may lie beside the adapter's or above it instead, under the same name: a run's folder can be moved.

    Raises:
        UserError: the adapter does not say, or there is no such folder.
    """
    named = config.base_model_name_or_path
    if named is None:
        raise UserError(f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: write the base's place there")
    if not Path(named).is_absolute():
        return [str(named)]
    above = folder.resolve().parents
    places = [Path(named), *(parent / Path(named).name for parent in above[:3])]
    found = [str(place) for place in places if (place / "config.json").is_file()]
    if not found:
        raise UserError(
            f"{folder} is an adapter over {named}, which is not there: put it back, or write its place into "
            f"{folder / ADAPTER_CONFIG}"
        )
    return found


def load_adapter_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights in a folder into a model that has an adapter of their shape.

    Raises:
        UserError: the file is damaged, or another adapter's.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): go back to an earlier checkpoint") from None
    own = {_PREFIX + name.replace(f".{NAME}.", "."): weight for name, weight in adapter_parameters(model).items()}
    odd = sorted({*given} ^ {*own}) or sorted(name for name in own if own[name].shape != given[name].shape)
    if odd:
        raise UserError(
            f"{file} does not fit its {ADAPTER_CONFIG} and base ({odd[0]} and {len(odd) - 1} more): the folder is "
            "incomplete, or one of its files is another adapter's"
        )
    for name, weight in own.items():
        weight.data.copy_(given[name])


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The layers an adapter may sit on: the output head is scored piece by piece, past the layer itself."""
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head:
            yield name, layer


def _check_kind(model: PreTrainedModel, config: Any) -> None:
    """Refuse an adapter that trains or computes anything else than two matrices beside each linear layer."""
    head = model.get_output_embeddings()
    other = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and not any(part in name for part in _PARTS)
    ]
    layers = adapted_layers(model)
    if any(layer is head or layer.lora_variant or layer.lora_bias.get(NAME) for layer in layers.values()):
        other.append("its output head, or a variant of LoRA")
    if other or config.bias != "none" or config.modules_to_save or not layers:
        raise UserError(
            f"the adapter has more than LoRA on linear layers ({(other or ['biases or whole modules'])[0]}): merge it "
            "with peft first"
        )


@contextmanager
def _importing() -> Iterator[None]:
    """peft without the chatter of what it looks for and does not need here.

    Raises:
        UserError: peft is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise UserError(f"adapters need peft ({error}): pip install 'score-cli[lora]'") from None
    finally:
        logging.disable(before)
