"""A GGUF file becomes a checkpoint that computes what the file holds, cuts text as it says, and says where it is from.

The files are written by the package `gguf`; their expected weights are made here, without transformers' reader.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from score_cli.cli import run_command
from score_cli.errors import UserError
from score_cli.progress import SILENT
from score_cli.sampling.renderer import TaskRenderer
from score_cli.stages.import_model import import_model
from score_cli.tables.checkpoints import Policy, load_policy, stored_state
from score_cli.tasks.prompts import Prompts

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KEY_HEADS, LAYERS = 64, 4, 2, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "o n", "Ġ on"]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vocabulary() -> list[str]:
    """Three special tokens, a token for every byte, and what the merges make."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def source_model(seed: int = 0) -> LlamaForCausalLM:
    """A model with random weights, and norms that are not all 1."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def in_the_file(name: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """A weight as llama.cpp names and lays it out: halves of each head's rotary pairs stand side by side."""
    name = name.replace("model.layers.", "blk.")
    for own, theirs in NAMES.items():
        name = name.replace(own, theirs)
    heads = HEADS if "attn_q" in name else KEY_HEADS if "attn_k" in name else 0
    if heads:
        rows, columns = weight.shape
        weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return name, weight


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: str = "F32",
    *,
    architecture: str = "llama",
    without: str = "nothing",
    **fields: Any,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        without: the weight of this name is left out.
        kind: what its matrices are held in; they become in `model` what the file's blocks stand for.
        fields: keys that end in so, and their values, in place of those that the file has otherwise.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Small")
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pop("pre", "smollm"))
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in fields.items():
        writer.add_uint32(key.replace("__", "."), value)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, weight in model.named_parameters():
        if without in name:
            continue
        values = weight.detach().numpy()
        if values.ndim == 2 and kind != "F32":
            blocks = gguf.quants.quantize(in_the_file(name, values)[1], quantised)
            writer.add_tensor(in_the_file(name, values)[0], blocks, raw_dtype=quantised)
            # Rows are permuted whole, so blocks of a row hold the same values wherever the row stands.
            rounded = gguf.quants.dequantize(gguf.quants.quantize(values, quantised), quantised)
            weight.data = torch.from_numpy(np.array(rounded, dtype=np.float32))
        else:
            writer.add_tensor(*in_the_file(name, np.array(values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 43).view(2, 20)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q8_0"])
def test_a_checkpoint_computes_what_the_file_holds(tmp_path: Path, kind: str) -> None:
    source = source_model()
    exact = logits(source)
    file = write_gguf(tmp_path / "small.gguf", source, kind)
    import_model(file, out=tmp_path / "ckpt")
    found = logits(load_policy(tmp_path / "ckpt").model)
    assert torch.allclose(found, logits(source), atol=1e-5), "the model with the weights that the blocks stand for"
    assert torch.equal(exact, logits(source)) == (kind == "F32")


def test_weights_may_be_stored_in_16_bits(tmp_path: Path) -> None:
    source = source_model()
    file = write_gguf(tmp_path / "small.gguf", source)
    assert run_command(["import-model", str(file), "--out", str(tmp_path / "ckpt"), "--dtype", "bfloat16"]) == 0
    found = dict(load_policy(tmp_path / "ckpt").model.named_parameters())
    for name, weight in source.named_parameters():
        assert torch.equal(found[name], weight.bfloat16().float()), name
    sizes = [(tmp_path / "ckpt" / "model.safetensors").stat().st_size, sum(w.nbytes for w in source.parameters())]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A checkpoint made of a file that names two ends of generation."""
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "small.gguf", source_model(), tokenizer__ggml__eot_token_id=0)
    import_model(file, out=folder / "ckpt")
    return load_policy(folder / "ckpt")


def test_the_state_says_what_file_it_was(imported: Policy) -> None:
    file = Path(imported.name).parent / "small.gguf"
    state = stored_state(Path(imported.name))
    assert (state.stage, state.iteration, state.parent) == ("imported", 0, None)
    assert state.source is not None
    assert state.source["file"] == "small.gguf"
    assert state.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert state.source["quantisation"] == {"F32": 20}
    assert (state.source["architecture"], state.source["license"]) == ("llama", "apache-2.0")


def test_the_chat_template_and_every_end_of_generation_come_through(imported: Policy) -> None:
    tokenizer = imported.tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.encode("<|im_start|>on<|im_end|>", add_special_tokens=False)[::2] == [1, 2]
    assert imported.model.generation_config.eos_token_id == [0, 2]
    renderer = TaskRenderer(tokenizer, imported.model, Prompts(first="{question}", correction="FIX"))
    assert renderer.stop_ids == {0, 2}
    asked = tokenizer.decode(renderer.prompt("9 on <|im_end|>"))
    assert asked == "<|im_start|>user\n9 on <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert renderer.prompt("9 on <|im_end|>").count(2) == 1, "what a question spells stays text"


def test_digits_are_cut_off_before_anything_else(tmp_path: Path, imported: Policy) -> None:
    """GPT-2's pattern would leave the last blank before a number to the number: two tokens in place of the merge."""
    cut = imported.tokenizer.tokenize
    assert cut("\n\n12") == ["ĊĊ", "1", "2"]
    assert cut("on  7") == ["on", "ĠĠ", "7"]
    file = write_gguf(tmp_path / "other.gguf", source_model(), pre="gpt-2")
    import_model(file, out=tmp_path / "ckpt")
    other = AutoTokenizer.from_pretrained(tmp_path / "ckpt").tokenize
    assert (other("\n\n12"), other("on  7")) == (["Ċ", "Ċ", "1", "2"], ["on", "Ġ", "Ġ", "7"])


def test_a_cut_that_is_not_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "small.gguf", source_model(), pre="new-kind")
    assert run_command(["import-model", str(file), "--out", str(tmp_path / "ckpt")]) == 0
    assert "warning: small.gguf: text is cut as new-kind, which is not known here" in capsys.readouterr().err


def test_another_tokenizer_may_be_taken(tmp_path: Path, imported: Policy) -> None:
    own: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(imported.name)
    own.chat_template = "{{ messages[0].content }}"
    own.save_pretrained(tmp_path / "own")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "own" / name).write_bytes((Path(imported.name) / name).read_bytes())
    file = Path(imported.name).parent / "small.gguf"
    import_model(file, out=tmp_path / "ckpt", tokenizer=str(tmp_path / "own"))
    made = load_policy(tmp_path / "ckpt")
    assert made.tokenizer.chat_template == "{{ messages[0].content }}"
    assert made.state.source is not None and made.state.source["tokenizer"] == str(tmp_path / "own")


def test_files_that_are_no_model_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_model()
    whole = write_gguf(tmp_path / "small.gguf", source)
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:9000])
    write_gguf(tmp_path / "odd.gguf", source, architecture="rwkv7")
    write_gguf(tmp_path / "part.gguf", source, split__count=3)
    write_gguf(tmp_path / "holes.gguf", source, without="layers.1.mlp")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    cases = {
        "missing.gguf": "is not there",
        "text.gguf": "is no GGUF file",
        "cut.gguf": "whole and undamaged",
        "odd.gguf": "architecture rwkv7",
        "part.gguf": "one of 3 parts",
        "holes.gguf": "lacks weights of its architecture, llama (model.layers.1.mlp.down_proj.weight and 2 more)",
    }
    for name, words in cases.items():
        code = run_command(["import-model", str(tmp_path / name), "--out", str(tmp_path / "ckpt")])
        said = capsys.readouterr().err
        assert (code, len(said.splitlines())) == (2, 1), said
        assert words in said
        assert not (tmp_path / "ckpt").exists()
    assert run_command(["import-model", str(whole), "--out", str(tmp_path / "there")]) == 2
    assert "exists: pass --overwrite" in capsys.readouterr().err


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "small.gguf", source_model())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'score-cli\[gguf\]'"):
        import_model(file, out=tmp_path / "ckpt", progress=SILENT)


def test_a_gguf_file_as_a_policy_is_refused_with_the_command_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path / "small.gguf"), str(tmp_path)):
        for command in (["sample", "--model", name], ["doctor", "--model", name]):
            assert run_command(command) == 2
            said = capsys.readouterr().err
            assert f"score import-model {tmp_path / 'small.gguf'} --out ckpt" in said
            assert len(said.splitlines()) == 1


def test_an_ordinary_state_has_no_source(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer" / "state.json").read_text())
    assert set(state) == {"stage", "iteration", "fingerprint", "parent", "reference"}
