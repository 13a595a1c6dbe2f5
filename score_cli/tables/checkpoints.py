"""Checkpoints: a Hugging Face model folder, plus `trainer/` with what the next update needs.

    ckpt/config.json, model.safetensors, tokenizer.json, ...   loads in transformers and vLLM as it is
    ckpt/trainer/state.json                                     stage, iteration, fingerprints
    ckpt/trainer/optimizer.safetensors                          Adam moments (float32) and step
    ckpt/trainer/metrics.parquet                                what the update logged

Where an adapter was trained (`adapters.py`), its files stand in place of the model's. No pickle anywhere.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from score_cli.errors import UserError
from score_cli.tables import adapters
from score_cli.tables.provenance import short_digest

TRAINER = "trainer"
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
METRICS_FILE = "metrics.parquet"
GGUF_MAGIC = b"GGUF"

# Its progress bars and advice about its own training arguments would drown ours.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# Key of `Policy.digests`.
_RENDERER = "renderer"
# Keys of a model's configuration that say how it was saved, not what it computes.
_UNSPECIFIC_KEYS = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache"}


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What `trainer/state.json` holds.

    `iteration` counts the updates since the base policy, a round of supervised training as one;
    `reference` is the fingerprint of the policy that the KL terms of this chain are measured from;
    `source` says what file an imported model was made of.
    """

    stage: str = "base"
    iteration: int = 0
    fingerprint: str = ""
    parent: str | None = None
    reference: str | None = None
    source: dict[str, Any] | None = None


def stored_state(path: Path) -> TrainerState:
    """What a checkpoint's `state.json` says, without looking at the weights.

    Raises:
        UserError: it cannot be read.
    """
    file = path / TRAINER / STATE_FILE
    try:
        return TrainerState(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): resume from an earlier checkpoint") from None


@dataclass(frozen=True)
class Policy:
    """A loaded checkpoint: the model in float32 evaluation mode, its tokenizer, and where it stands.

    Attributes:
        digests: what was hashed once for this policy and all that are made from it by updates (`renderer_digest`).
        base: what the model's adapter sits on, over the same tensors; None where the model has no adapter.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    state: TrainerState
    name: str
    digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    base: "Policy | None" = None

    def fingerprint(self) -> str:
        """Of the weights as they are now; see `fingerprint`."""
        return fingerprint(self.model, None if self.base is None else self.base.state.fingerprint)

    def as_base(self) -> "Policy":
        """The same policy where a chain begins: without updates before it, a parent or a reference."""
        state = TrainerState(fingerprint=self.state.fingerprint, source=self.state.source)
        return replace(self, state=state)


def fingerprint(model: nn.Module, base: str | None = None) -> str:
    """sha256 over the model's configuration and every weight: equal policies, equal fingerprints.

    Tied weights count once. The digest does not depend on the folder, the file layout or the device.

    Args:
        base: the fingerprint of what the model's adapter sits on, which stands for its configuration and all weights
            but the adapter's.
    """
    if base is not None:
        return _adapter_fingerprint(model, base)
    config: Any = model.config
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in _UNSPECIFIC_KEYS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight_bytes(weight))
    return digest.hexdigest()


def _adapter_fingerprint(model: nn.Module, base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for name, layer in sorted(adapters.adapted_layers(model).items()):
        digest.update(f"{name} {layer.scaling[adapters.NAME]!r}".encode())
    for name, weight in sorted(adapters.adapter_parameters(model).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight_bytes(weight))
    return digest.hexdigest()


def weight_bytes(weight: torch.Tensor) -> memoryview:
    """A tensor's values as they lie in memory, whatever its type and device."""
    return weight.detach().cpu().contiguous().view(torch.uint8).numpy().data


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as stream:
        return stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def refuse_gguf(name: str | Path) -> None:
    """Refuse a GGUF file where a checkpoint is expected, or a folder that holds such files and no checkpoint."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf")) if path.is_dir() else []
    held = path.is_dir() and ((path / "config.json").exists() or adapters.has_adapter(path))
    if files and not held and is_gguf(files[0]):
        raise UserError(
            f"{files[0]} is a GGUF file: make a checkpoint of it first (score import-model {files[0]} --out ckpt)"
        )


def check_checkpoint(name: str | Path) -> None:
    """Refuse what is neither a whole checkpoint folder nor could be the id of a model of the hub."""
    refuse_gguf(name)
    path = Path(name)
    if not path.is_dir():
        local = path.exists() or path.is_absolute() or Path(path.parts[0] if path.parts else ".").is_dir()
        if local or str(name).count("/") != 1 or str(name).endswith("/"):
            raise UserError(
                f"{name} is not a checkpoint folder: name one (`score base` makes the built-in task's), or a Hugging "
                "Face id such as Qwen/Qwen2.5-1.5B-Instruct"
            )
        return
    if adapters.has_adapter(path):
        if not (path / adapters.ADAPTER_WEIGHTS).exists():
            raise UserError(f"{path} is no checkpoint: it lacks {adapters.ADAPTER_WEIGHTS}: name a folder that has it")
        return
    parts = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": [file.name for file in path.glob("*.safetensors")],
        "a tokenizer (tokenizer.json or tokenizer_config.json)": ["tokenizer.json", "tokenizer_config.json"],
    }
    missing = [part for part, names in parts.items() if not any((path / name).exists() for name in names)]
    if missing:
        raise UserError(f"{path} is no checkpoint: it lacks {', '.join(missing)}: name a folder that has them")


def renderer_digest(policy: Policy) -> str:
    """sha256 of what turns problems into tokens and ends attempts: tokenizer, chat template, stop tokens.

    It is kept with the policy: a large tokenizer takes a second to write out, and no update changes it.
    """
    if _RENDERER not in policy.digests:
        policy.digests[_RENDERER] = _digest_renderer(policy)
    return policy.digests[_RENDERER]


def _digest_renderer(policy: Policy) -> str:
    generation = getattr(policy.model, "generation_config", None)
    parts = [
        policy.tokenizer.backend_tokenizer.to_str() if policy.tokenizer.is_fast else str(policy.tokenizer.get_vocab()),
        str(policy.tokenizer.chat_template),
        str(policy.tokenizer.eos_token_id),
        str(policy.model.config.eos_token_id),
        str(getattr(generation, "eos_token_id", None)),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; errors as `load_policy`."""
    check_checkpoint(name)
    path = Path(name)
    if adapters.has_adapter(path) and not (path / "tokenizer_config.json").exists():
        return load_tokenizer(adapters.base_places(path, adapters.read_adapter_config(path))[0])
    with _loading(name):
        return AutoTokenizer.from_pretrained(str(name))


@contextmanager
def _loading(name: str | Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a boundary: a damaged config.json raises whatever the model's code happens to
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} cannot be loaded as a model ({reason}): name a folder or hub id that can") from None


def load_policy(name: str | Path, *, device: str = "cpu", beside: Policy | None = None) -> Policy:
    """Load a checkpoint folder, or a model of the Hugging Face hub by its id.

    Weights come as float32: bfloat16 weights lose updates of 5e-6.

    Args:
        beside: a policy in memory. What is loaded shares the weights of its base, or its own where it has no
            adapter, if they are the same: only for policies whose base stays as it is.
    Raises:
        UserError: no such folder or model, or a part of it is missing or damaged.
    """
    check_checkpoint(name)
    if adapters.has_adapter(name):
        return _load_adapted(Path(name), device, beside)
    held = None if beside is None else beside.base or beside
    if held is not None and _is_the_same(name, held):
        return held
    tokenizer = load_tokenizer(name)
    with _loading(name):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(name), dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    # transformers would draw what is missing at random, and train on.
    absent = sorted({*loaded["missing_keys"], *(str(key) for key in loaded["mismatched_keys"])})
    if absent:
        raise UserError(
            f"{name} lacks weights that its config.json asks for ({absent[0]} and {len(absent) - 1} more): "
            "the folder is incomplete, or its config.json is another model's"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{name} is an adapter on the hub: download it, and name the folder")
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, more than the model's vocabulary: use its own"
        )
    _make_savable(model)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the fused kernels leave the cap out
    # Loaded weights are views into a file mapping; fresh tensors are aligned alike in every process,
    # which matrix products need to give the same last bits.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.to(device).eval()
    return Policy(model, tokenizer, read_state(Path(name), model), str(name))


def _is_the_same(name: str | Path, held: Policy) -> bool:
    """Whether a whole checkpoint is the policy held, as far as its state or its place says."""
    path = Path(name)
    if (path / TRAINER / STATE_FILE).exists():
        return stored_state(path).fingerprint == held.state.fingerprint
    # An update in place would have given the policy held a parent.
    return held.state.parent is None and (
        str(name) == held.name if not path.is_dir() else path.resolve() == Path(held.name).resolve()
    )


def _load_adapted(path: Path, device: str, beside: Policy | None) -> Policy:
    """Load an adapter and the base that it sits on, which is shared with a policy in memory if it is its base too."""
    config = adapters.read_adapter_config(path)
    expected = adapters.base_fingerprint(path)
    base = None if beside is None else beside.base or beside
    if base is None or expected is None or base.state.fingerprint != expected:
        places = adapters.base_places(path, config)
        same = [p for p in places if (Path(p) / TRAINER / STATE_FILE).exists()]
        same = [p for p in same if stored_state(Path(p)).fingerprint == expected]
        place = (same or places)[0]
        if adapters.has_adapter(place):
            raise UserError(
                f"{path} is an adapter over an adapter, {place}: merge that one first (score merge-adapter)"
            )
        base = load_policy(place, device=device, beside=beside)
    if expected not in (None, base.state.fingerprint):
        raise UserError(
            f"{path} was trained over policy {short_digest(expected)}, but {base.name} is "
            f"{short_digest(base.state.fingerprint)}: put the base back, or write its place into "
            f"{path / adapters.ADAPTER_CONFIG}"
        )
    model = adapters.with_adapter(base.model, config)
    adapters.load_adapter_weights(model, path)
    policy = Policy(model, load_tokenizer(path), base.state, str(path), base=base)
    return replace(policy, state=_checked_state(path, policy.fingerprint()))


def adapted(policy: Policy, *, rank: int, alpha: float, targets: str, layers: int = 0, seed: int = 0) -> Policy:
    """A policy whose training moves an adapter alone: its own, or a fresh one, which changes nothing yet.

    The weights beneath are shared with the policy given, and frozen; its state stays, since it computes the same.

    Raises:
        UserError: it has an adapter of another kind already, or no layer that the adapter could sit on.
    """
    beneath = policy if policy.base is None else policy.base
    config = adapters.lora_config(beneath.model, rank=rank, alpha=alpha, targets=targets, layers=layers)
    if policy.base is None:
        return replace(policy, model=adapters.with_adapter(policy.model, config, seed=seed), base=policy)
    own: Any = policy.model.peft_config[adapters.NAME]
    for name, asked, has in (
        ("lora_rank", rank, own.r),
        ("lora_alpha", alpha, own.lora_alpha),
        ("lora_targets", sorted(config.target_modules), sorted(own.target_modules)),
        ("the layers with an adapter (lora_layers)", _layers_of(config), _layers_of(own)),
    ):
        if asked != has:
            raise UserError(
                f"{name} is {asked}, but {policy.name} has an adapter of {has}: set no lora_rank to go on with it, or "
                "merge it first (score merge-adapter)"
            )
    return policy


def _layers_of(config: Any) -> str:
    """Which layers have an adapter of this configuration, in words."""
    chosen = config.layers_to_transform
    return "all" if chosen is None else ", ".join(map(str, [chosen] if isinstance(chosen, int) else sorted(chosen)))


def _make_savable(model: PreTrainedModel) -> None:
    """Cut a generation_config.json that transformers loads and would not save down to its eos, pad and bos.

    Such files are published (a temperature beside `do_sample: false`), and would lose an update at its end. Nothing
    else in them is used here.
    """
    given = getattr(model, "generation_config", None)
    if given is None:
        return
    try:
        given.validate(strict=True)
    except ValueError:
        tokens = {name: getattr(given, name, None) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
        model.generation_config = GenerationConfig(**tokens)


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens up to which a trace's positions mean the same whatever else is in the batch; None without a limit.

    Some rotary embeddings change for the whole batch once its longest row passes the original length.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "dynamic"):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        limit = min(size for size in (original, limit) if size is not None)
    return None if limit is None else int(limit)


def read_state(path: Path, model: PreTrainedModel) -> TrainerState:
    """Where a checkpoint stands in its chain; a model without `trainer/` is a base policy.

    Raises:
        UserError: the weights are not those that `state.json` was written for.
    """
    return _checked_state(path, fingerprint(model))


def _checked_state(path: Path, found: str) -> TrainerState:
    file = path / TRAINER / STATE_FILE
    if not file.exists():
        return TrainerState(fingerprint=found)
    state = stored_state(path)
    if state.fingerprint != found:
        raise UserError(
            f"{path} holds policy {short_digest(found)}, but its {STATE_FILE} was written for "
            f"{short_digest(state.fingerprint)}: the weights were changed; "
            f"delete {file.parent} to start a new chain from them"
        )
    return state


def save_policy(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: TrainerState,
    optimizer: dict[str, torch.Tensor] | None = None,
    *,
    base: Policy | None = None,
) -> None:
    """Write a checkpoint's files into an existing empty folder (see `tables.atomic.replacing_folder`).

    Args:
        base: what the model's adapter sits on; then the adapter alone is written.
    """
    (folder / TRAINER).mkdir()
    if base is None:
        model.save_pretrained(folder)
    else:
        adapters.save_adapter(folder, model, base=base.name, fingerprint=base.state.fingerprint)
    tokenizer.save_pretrained(folder)
    if optimizer is not None:
        save_file(optimizer, folder / TRAINER / OPTIMIZER_FILE)
    write_state(folder, state)


def write_state(folder: Path, state: TrainerState) -> None:
    """Write `trainer/state.json` of a checkpoint; `source` stands in it where there is one."""
    values = {key: value for key, value in asdict(state).items() if key != "source" or value is not None}
    file = folder / TRAINER / STATE_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def load_optimizer(path: Path) -> dict[str, torch.Tensor] | None:
    """The Adam moments saved with a checkpoint, or None where it has none.

    Raises:
        UserError: the file is damaged.
    """
    file = path / TRAINER / OPTIMIZER_FILE
    if not file.exists():
        return None
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): resume from an earlier checkpoint") from None
    return tensors
