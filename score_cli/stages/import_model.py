"""`score import-model`: a GGUF file as a checkpoint like any other.

transformers reads the file and makes plain weights of its blocks. What it leaves out is put right here: it refuses to
save such a model, it knows one end of generation alone, and it splits the text of some vocabularies in another way
than the model was trained with.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from score_cli.config import Stored
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import (
    Policy,
    TrainerState,
    is_gguf,
    load_policy,
    load_tokenizer,
    write_state,
)
from score_cli.tables.provenance import file_sha256, short_digest

STAGE = "imported"

# Names of `tokenizer.ggml.pre`: how text is cut before tokens are merged.
# Every digit by itself, then as GPT-2 does; transformers leaves the digits out.
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
# As GPT-2 does, which is what transformers does with a name that it does not know.
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        fields: its values by key; those of a vocabulary's length are left out.
        tensors: the type of each of its tensors by name.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """As the file names it: `llama` for SmolLM2."""
        return str(self.fields.get("general.architecture"))

    @property
    def quantisation(self) -> dict[str, int]:
        """How many tensors are held in each type, the commonest first."""
        return dict(Counter(self.tensors.values()).most_common())

    def end_tokens(self) -> list[int]:
        """Every token that ends what the model writes: of a text, of a turn, of a message."""
        ids = [self.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return sorted({int(each) for each in ids if each is not None})


def import_model(
    file: Path,
    *,
    out: Path,
    dtype: Stored = "float32",
    tokenizer: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Write the model of a GGUF file, and its tokenizer, as a checkpoint that starts a chain of its own.

    Args:
        dtype: what the weights are stored in; a quantised weight has more digits than 16 bits hold.
        tokenizer: folder or hub id of the tokenizer to take in place of the file's.
        progress: is told of what may differ from the model that the file was made of.
    Returns:
        One line that says what it is.
    Raises:
        UserError: the file is not there, is no GGUF file, or is of a kind that transformers does not read; the
            checkpoint exists; or the package gguf is missing. Nothing is written.
    """
    check_output(out, overwrite=overwrite, folder=True)
    header = read_header(file)
    model = _read_model(file, header, dtype)
    made = _read_tokenizer(file, header) if tokenizer is None else load_tokenizer(tokenizer)
    for line in _doubts(header, own_tokenizer=tokenizer is None):
        progress.line(f"warning: {file.name}: {line}")
    with replacing_folder(out) as folder:
        model.save_pretrained(folder)
        made.save_pretrained(folder)
        policy = load_policy(folder)
        if tokenizer is None:
            _check_tokenizer(file, header, policy)
        source = {
            "file": file.name,
            "sha256": file_sha256(file),
            "architecture": header.architecture,
            "name": header.fields.get("general.name"),
            "license": header.fields.get("general.license"),
            "quantisation": header.quantisation,
            "stored": dtype,
            "tokenizer": tokenizer,
            "transformers": transformers.__version__,
            "gguf": version("gguf"),
        }
        write_state(folder, TrainerState(stage=STAGE, fingerprint=policy.state.fingerprint, source=source))
    size = sum(weight.numel() for weight in policy.model.parameters()) / 1e6
    kinds = ", ".join(header.quantisation)
    return f"policy {short_digest(policy.state.fingerprint)}, {header.architecture}, {size:.1f}M weights from {kinds}"


def read_header(file: Path) -> Header:
    """What a GGUF file says of itself; the weights stay on disk.

    Raises:
        UserError: there is no such file, it is no GGUF file, or one part of several; or gguf is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file} is not there, or is no file: name a GGUF file")
    if not is_gguf(file):
        raise UserError(f"{file} is no GGUF file (it does not begin with GGUF): name one")
    with _reading(file, "it"):
        from gguf import GGUFReader, GGUFValueType

        reader = GGUFReader(file)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if field.types and field.types[0] != GGUFValueType.ARRAY
        }
        tensors = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    if (parts := int(fields.get("split.count", 1))) > 1:
        raise UserError(f"{file} is one of {parts} parts: join them first (llama-gguf-split --merge)")
    return Header(fields=fields, tensors=tensors)


def _read_model(file: Path, header: Header, dtype: Stored) -> PreTrainedModel:
    """The file's model with plain weights, which transformers can save."""
    with _reading(file, f"architecture {header.architecture}"), redirect_stderr(io.StringIO()):  # a bar of its own
        # Where kernels for it are installed, transformers would keep the weights in their blocks.
        plain = {"quantization_config": kind(dequantize=True)} if (kind := _gguf_config()) else {}
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            output_loading_info=True,
            **plain,
        )
    if absent := sorted(str(key) for key in loaded["missing_keys"]):
        raise UserError(
            f"{file} lacks weights of its architecture, {header.architecture} ({absent[0]} and "
            f"{len(absent) - 1} more): the file is incomplete, or transformers does not read all of it"
        )
    model.to(getattr(torch, dtype))
    if odd := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(
            f"{file} gives weights that are no finite {dtype} ({odd[0]} and {len(odd) - 1} more): "
            "get the file again, or pass --dtype float32"
        )
    # What refuses to be saved is the mark of the blocks that the weights came from.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if len(ends := header.end_tokens()) > 1:
        model.generation_config = GenerationConfig(
            eos_token_id=ends, bos_token_id=model.config.bos_token_id, pad_token_id=model.config.pad_token_id
        )
    return model


def _gguf_config() -> Any:
    return getattr(transformers, "GgufConfig", None)


def _read_tokenizer(file: Path, header: Header) -> PreTrainedTokenizerBase:
    """The file's tokenizer, its text cut as the file names it."""
    with _reading(file, f"tokenizer {header.fields.get('tokenizer.ggml.model')}"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if header.fields.get("tokenizer.ggml.pre") in DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _check_tokenizer(file: Path, header: Header, policy: Policy) -> None:
    """See that the chat template and the special tokens have come through as the file has them.

    Raises:
        UserError: they have not.
    """
    found, said = policy.tokenizer, header.fields
    wanted = {
        "chat template": (said.get("tokenizer.chat_template"), found.chat_template),
        "bos token": (said.get("tokenizer.ggml.bos_token_id"), found.bos_token_id),
        "eos token": (said.get("tokenizer.ggml.eos_token_id"), found.eos_token_id),
    }
    if lost := [name for name, (want, has) in wanted.items() if want is not None and want != has]:
        raise UserError(
            f"{file}: its {lost[0]} does not come through transformers: pass --tokenizer with the model's "
            "own, a folder or a hub id"
        )


def _doubts(header: Header, *, own_tokenizer: bool) -> Iterator[str]:
    """What may differ from the model that the file was made of, a line each."""
    cut = header.fields.get("tokenizer.ggml.pre")
    byte_level = own_tokenizer and header.fields.get("tokenizer.ggml.model") == "gpt2"
    if byte_level and cut not in DIGITS_FIRST | AS_GPT2 | _cuts_of_transformers():
        yield f"text is cut as {cut}, which is not known here; GPT-2's way is taken: --tokenizer takes another"
    if own_tokenizer and header.fields.get("tokenizer.chat_template") is None:
        yield "it has no chat template: turns are set apart by empty lines"
    if "rope_freqs.weight" in header.tensors:
        yield "its scaled rotary frequencies (rope_freqs) are left out by transformers: the model computes otherwise"


def _cuts_of_transformers() -> set[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # another version keeps them elsewhere
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


@contextmanager
def _reading(file: Path, what: str) -> Iterator[None]:
    """Give what gguf and transformers raise one line of its own."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"a GGUF file is read by the package gguf ({error}): pip install 'score-cli[gguf]'") from None
    except Exception as error:  # a boundary: a damaged or unknown file raises whatever the readers happen to
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{file} cannot be read ({what}: {reason}): expected an architecture that transformers "
            f"{transformers.__version__} reads from GGUF, whole and undamaged"
        ) from None
