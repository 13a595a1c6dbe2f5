"""What `score doctor` predicts is what is measured; what it advises fits; what it cannot read is one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from score_cli.cli import run_command
from score_cli.config import EvalConfig, SampleConfig, Stage2Config
from score_cli.doctor.activations import measure_passes
from score_cli.doctor.advice import advise
from score_cli.doctor.cards import GIB, Assumptions, choose_card
from score_cli.doctor.duration import forward_operations
from score_cli.doctor.memory import Job, budget, peak, terms
from score_cli.doctor.shape import Shape, read_shape, shortened

ROOT = Path(__file__).parents[1]
PROMPT, ATTEMPT, TRACES, TOKENS = 30, 113, 16, 2048

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
# A small vocabulary, where activations are most; 32,000; Qwen2's 151,936, where the embeddings are; layers whose
# activations are computed again; and an adapter over weights that have no gradient.
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (GPT2Config(vocab_size=512, n_embd=384, n_layer=6, n_head=6, n_positions=512), {}),
    "llama": (LlamaConfig(vocab_size=32_000, hidden_size=256, intermediate_size=704, num_hidden_layers=5, **HEADS), {}),
    "qwen2": (
        Qwen2Config(vocab_size=151_936, hidden_size=128, intermediate_size=352, num_hidden_layers=4, **HEADS),
        {},
    ),
    "checkpointing": (
        LlamaConfig(vocab_size=512, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, **HEADS),
        {"gradient_checkpointing": True},
    ),
    "lora": (
        Qwen2Config(vocab_size=32_000, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, **HEADS),
        {"lora_rank": 16},
    ),
}


def write_shape(folder: Path, config: Any) -> Shape:
    config.save_pretrained(folder)
    return read_shape(folder)


def make_job(shape: Shape, card: str = "cpu", **settings: Any) -> Job:
    sample = SampleConfig(max_tokens=ATTEMPT, problems_per_iteration=TRACES // 4, samples=4, batch_size=1)
    return Job(
        shape=shape,
        card=choose_card(card, None),
        sample=sample,
        train=Stage2Config(**{"micro_batch_tokens": TOKENS} | settings),
        evaluate=EvalConfig(),
        vllm=False,
        workers=None,
        # The longest prompt is half as long again.
        assumptions=Assumptions(prompt_tokens=PROMPT * 2 // 3, bridge_tokens=0),
    )


def measured(folder: Path, settings: dict[str, Any]) -> int:
    """What two updates in a process of their own held at their peak, in bytes.

    The C library is told to give each block back when it is freed: by default its heap keeps up to half as much again.
    """
    given = {"prompt": PROMPT, "attempt": ATTEMPT, "traces": TRACES, "settings": settings}
    done = subprocess.run(
        [sys.executable, "-m", "tests.update_memory", str(folder), json.dumps(given)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("name", SHAPES)
def test_predicted_memory_is_measured_within_15_percent(name: str, tmp_path: Path) -> None:
    config, settings = SHAPES[name]
    job = make_job(write_shape(tmp_path, config), **settings)
    predicted = peak(job).bytes
    found = measured(tmp_path, {"micro_batch_tokens": TOKENS} | settings)
    print(f"{name}: predicted {predicted / 2**20:,.0f} MiB, measured {found / 2**20:,.0f}")  # -s shows it
    assert predicted == pytest.approx(found, rel=0.15)


def llama(folder: Path, **sizes: Any) -> Shape:
    given = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3} | HEADS
    return write_shape(folder, LlamaConfig(**given | sizes))


def test_the_sizes_of_a_known_model_are_its_own(tmp_path: Path) -> None:
    """Qwen2.5-1.5B, whose model card says 1.54 billion parameters, 1.31 of them in the layers."""
    sizes = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    shape = write_shape(
        tmp_path, Qwen2Config(vocab_size=151_936, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    )
    assert (shape.parameters, shape.largest) == (1_543_714_304, 151_936 * 1536)
    attention = 1536 * (1536 + 2 * 256) + 1536 * 1536
    assert shape.layer_weights == 28 * (attention + 3 * 1536 * 8960)
    assert shape.cache_width == 2 * 2 * 128


def test_a_layer_keeps_what_a_count_by_hand_gives(tmp_path: Path) -> None:
    """Llama, float32, a token: both norms' input, normed and weighted input (6 d) and 1/rms (2); q and the output (2
    d), k and v of half as many heads (d), one log-sum a head; gate, its SiLU, up and their product (4 i).
    """
    length, d, i, heads = 48, 64, 96, 4
    kept = measure_passes(llama(tmp_path), length, Stage2Config(), bfloat16=False).kept
    assert kept.layer_row == 4 * length * (9 * d + 4 * i + 2 + heads)
    assert kept.layer_fixed == 0


def test_recomputed_layers_keep_their_input_alone(tmp_path: Path) -> None:
    kept = measure_passes(llama(tmp_path), 48, Stage2Config(gradient_checkpointing=True), bfloat16=False).kept
    assert kept.layer_row == 4 * 48 * 64


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    """Torch counts the whole square of attention, of which a causal model needs half."""
    shape, length = llama(tmp_path), 48
    model = AutoModelForCausalLM.from_config(shape.config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    square = 2 * shape.layers * shape.attention_width * length**2
    assert forward_operations(make_job(shape), length, length) + square == counter.get_total_flops()


def test_advice_is_no_longer_than_it_must_be(tmp_path: Path) -> None:
    shape = llama(tmp_path, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, vocab_size=32_000)
    job = replace(make_job(shape, "h100", micro_batch_tokens=65_536), card=choose_card("h100", 40))
    assert peak(job).bytes > budget(job)
    changes = advise(job)
    assert peak(changes[-1].job).bytes <= budget(changes[-1].job)
    assert all(peak(change.job).bytes > budget(change.job) for change in changes[:-1])
    tokens = changes[0].job.train.micro_batch_tokens
    assert changes[0].settings["train-stage1.micro_batch_tokens"] == tokens < 65_536


def test_an_adapter_has_rank_numbers_for_each_input_and_output_of_its_layers(tmp_path: Path) -> None:
    """q: 64 to 64, k and v: 64 to 32, o: 64 to 64; gate and up: 64 to 96, down: 96 to 64; three layers."""
    shape = llama(tmp_path)
    job = make_job(shape, "h100", lora_rank=8)
    assert job.trained == 3 * 8 * (128 + 96 + 96 + 128 + 3 * 160)
    assert make_job(shape, lora_rank=8, lora_targets="q_proj").trained == 3 * 8 * 128
    # Held once, in 2 bytes a number beneath the adapter and 4 elsewhere: embeddings, and the norms.
    linear = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    held = {term.name: term.bytes for term in terms(job)}
    assert held["policy's and reference's weights"] == 2 * linear + 4 * (1000 * 64 + 7 * 64)
    assert held["adapter"] == 4 * job.trained


def test_a_small_card_is_advised_down_to_an_adapter(tmp_path: Path) -> None:
    """7 billion parameters at 20 bytes each fit no card of 80 GB, nor do they at 14."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "vocab_size": 32_000}
    job = make_job(llama(tmp_path, **sizes), "h100")
    changes = advise(job)
    assert changes[-1].settings["lora.rank"] == changes[-1].job.train.lora_rank
    assert peak(changes[-1].job).bytes <= budget(changes[-1].job)


def test_what_fits_needs_no_advice(tmp_path: Path) -> None:
    assert advise(make_job(llama(tmp_path), "h100")) == []


def run(*arguments: object) -> int:
    return run_command([str(argument) for argument in arguments])


def test_the_prediction_of_a_recipe_is_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama(tmp_path)
    recipe = ROOT / "pipelines" / "math.toml"
    given = ("doctor", "--model", tmp_path, "--recipe", recipe, "--gpu-memory", 24, "--set", "sample.samples=4")
    assert run(*given, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["card"] == {"name": "rtx4090", "memory": 24 * GIB}
    assert found["phases"]["sampling"] < found["peak"]["bytes"] == max(found["phases"].values())
    assert found["fits"] and found["changes"] == []
    assert found["hours"]["updates"] == pytest.approx(3000 * sum(found["seconds"].values()) / 3600)
    assert run(*given) == 0
    assert "3,000 updates" in capsys.readouterr().out


def test_a_supervised_start_takes_its_passes_over_every_dialogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of 2 rounds: 3 epochs of 3 passes, and the loss before and after; a trace has 150 + 2 x 40 + 60 tokens."""
    shape = llama(tmp_path)
    changes = ["run.start=author", "run.start_rounds=2", "dialogues.size=700", "train-sft.epochs=3"]
    changes += ["sample.max_tokens=100", "eval.max_tokens=100"]
    given = ["doctor", "--model", tmp_path, "--gpu", "cpu", *(part for each in changes for part in ("--set", each))]
    assert run(*given, "--json") == 0
    hours = json.loads(capsys.readouterr().out)["hours"]
    passes = 2 * 700 * (3 * 3 + 2)
    expected = passes * forward_operations(make_job(shape), 290, 80) / (0.35 * choose_card("cpu", None).rate)
    assert hours["supervised"] == pytest.approx(expected / 3600) and hours["updates"] == 0
    assert run(*given) == 0
    assert "0 updates: 0.0 hours, 0.0 of supervised rounds, and " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all has no configuration that a model can be made from"),
        (["--gpu", "h100"], "add --model"),
        (["--model", "MODEL", "--gpu", "abacus"], "expected one of rtx4090, l40s, a100, h100, h200, cpu"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama(tmp_path)
    assert run("doctor", *(str(tmp_path) if part == "MODEL" else part for part in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_of_an_adapter_the_model_beneath_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    llama(tmp_path)
    peft.LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(tmp_path)).save_pretrained(
        tmp_path / "lora"
    )
    assert run("doctor", "--model", tmp_path / "lora") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"lora is an adapter: give the model beneath it, {tmp_path}," in lines[0]


def test_what_is_missing_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from score_cli.doctor import environment

    monkeypatch.setattr(environment, "_OPTIONAL", {"no-such-package": "extra"})
    assert run("doctor") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip())
    assert lines["no-such-package"] == "not installed: pip install 'score-cli[extra]'"
    assert lines["torch"] == torch.__version__


def test_a_model_of_one_layer_is_lengthened_with_layers_of_its_kinds(tmp_path: Path) -> None:
    """Two layers are measured to tell what one of them keeps; the kinds of layers repeat as the model has them."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    kinds = ["sliding_attention", "full_attention"]
    for layers, expected in ((1, kinds[:1] * 3), (2, [*kinds, kinds[0]])):
        config = Qwen2Config(**sizes, num_hidden_layers=layers, layer_types=kinds[:layers])
        longer = shortened(write_shape(tmp_path / str(layers), config), 3)
        assert longer.layer_types == expected
        assert len(AutoModelForCausalLM.from_config(longer).model.layers) == 3
