"""What is written for vLLM, and the digests that show what it took; nothing here needs vLLM."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from score_cli.sampling.vllm_weights import (
    PREFIX,
    Held,
    WeightsFolder,
    difference,
    held_difference,
    noted,
    read_weights,
    sampler_weights,
    shared_weights,
    tensor_digest,
)
from score_cli.tables.adapters import adapter_parameters
from score_cli.tables.checkpoints import Policy
from tests.conftest import small_policy
from tests.test_adapters import moved

ROOT = Path(__file__).parents[1]
WRITER = """
import time, torch
from score_cli.sampling.vllm_weights import WeightsFolder, sampler_weights
from tests.conftest import small_policy
policy = small_policy()
folder = WeightsFolder()
print(folder.write(policy, sampler_weights(policy.model, torch.bfloat16)), flush=True)
time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_written_once_each_in_the_samplers_precision(
    policy: Policy, dtype: torch.dtype, temporary: Path
) -> None:
    """A tied head is the embedding, and stands there once."""
    folder = WeightsFolder()
    path = folder.write(policy, sampler_weights(policy.model, dtype))
    saved = load_file(path / "model.safetensors")
    expected = dict(policy.model.named_parameters())
    assert set(saved) == set(expected)
    assert all(torch.equal(saved[name], weight.detach().to(dtype)) for name, weight in expected.items())
    assert sum(weight.nbytes for weight in saved.values()) == dtype.itemsize * sum(w.numel() for w in expected.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_into_what_is_written(dtype: torch.dtype, temporary: Path) -> None:
    """By hand: W + alpha / rank x B A in float32, then rounded once; the names are those of the model without it."""
    policy = small_policy("qwen2")
    made = moved(policy)
    saved = load_file(WeightsFolder().write(made, sampler_weights(made.model, dtype)) / "model.safetensors")
    parts, plain = adapter_parameters(made.model), dict(policy.model.named_parameters())
    assert set(saved) == set(plain)
    for name, weight in plain.items():
        own = name.removesuffix("weight")
        if f"{own}lora_A.default.weight" in parts:
            weight = weight + 2 * (parts[f"{own}lora_B.default.weight"] @ parts[f"{own}lora_A.default.weight"])
        close = 1e-6 if dtype == torch.float32 else 4e-3
        assert torch.allclose(saved[name].float(), weight.float(), rtol=close, atol=1e-6), name
    norm = Held("bfloat16", [32], tensor_digest(plain["model.norm.weight"].detach().bfloat16()))
    assert held_difference(made.model, {"model.norm.weight": norm}) is None


def test_a_written_folder_loads_as_the_same_model(policy: Policy, temporary: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = WeightsFolder().write(policy, sampler_weights(policy.model, torch.float32))
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for (name, own), (_, other) in zip(policy.model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(own, other), name


READER = """
import json, sys
from pathlib import Path
from score_cli.sampling.vllm_weights import Place, noted, read_weights
digests = {}
places = [Place(*place) for place in json.loads(sys.argv[2])]
weights = dict(noted(read_weights(Path(sys.argv[1]), places), digests))
print(sum(weight.double().sum().item() for weight in weights.values()))
print(sorted(digests.items()))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_reads_weights_out_of_memory_and_nothing_is_left(
    policy: Policy, dtype: torch.dtype, temporary: Path
) -> None:
    weights = sampler_weights(policy.model, dtype)
    expected = str(sorted((name, tensor_digest(weight)) for name, weight in weights.items()))
    total, size = (sum(f(w) for w in weights.values()) for f in (lambda w: w.double().sum().item(), lambda w: w.nbytes))
    before = set(Path("/proc/self/fd").iterdir())
    with shared_weights(weights) as (path, places):
        command = [sys.executable, "-c", READER, str(path), json.dumps([list(place) for place in places])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert path.stat().st_nlink == 0  # no name in any folder
        assert size <= path.stat().st_size < size + 64 * len(places)
    found, digests = done.stdout.splitlines()
    assert float(found) == pytest.approx(total, abs=1e-6)
    assert digests == expected
    assert not weights and not path.exists() and set(Path("/proc/self/fd").iterdir()) == before
    assert not list(temporary.iterdir())


def test_there_is_one_folder_at_a_time_and_none_in_the_end(temporary: Path) -> None:
    policy, folder = small_policy(), WeightsFolder()
    weights = sampler_weights(policy.model, torch.float32)
    first = folder.write(policy, weights)
    second = folder.write(policy, weights)
    assert first != second and list(temporary.iterdir()) == [second]
    folder.remove()
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(temporary: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        assert all(writer.stdout is not None for writer in writers)
        dead, living = (Path(writer.stdout.readline().strip()) for writer in writers)  # type: ignore[union-attr]
        writers[0].kill()
        writers[0].wait()
        assert dead.is_dir() and living.is_dir()
        policy, folder = small_policy(), WeightsFolder()
        folder.write(policy, sampler_weights(policy.model, torch.float32))
        assert not dead.exists() and living.is_dir()
        assert len(list(temporary.glob(f"{PREFIX}*"))) == 2
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def test_digests_are_of_what_was_read_and_name_the_weights_that_differ(temporary: Path) -> None:
    policy, other = small_policy(), small_policy(seed=1)
    weights = sampler_weights(policy.model, torch.bfloat16)
    expected = {name: tensor_digest(weight) for name, weight in weights.items()}
    found: dict[str, str] = {}
    with shared_weights(dict(weights)) as (path, places):
        assert {name for name, _ in noted(read_weights(path, places), found)} == set(weights)
    assert not list(temporary.iterdir())
    assert found == expected and difference(expected, found) is None
    name = "transformer.h.0.mlp.c_fc.weight"
    moved = weights[name].clone()
    moved[0, 0] += 1
    assert difference(expected, {**found, name: tensor_digest(moved)}) == f"{name} and 0 more of {len(weights)}"
    del found[name]
    assert difference(expected, found) == f"{name} and 0 more of {len(weights)}"
    foreign = sampler_weights(other.model, torch.bfloat16)
    assert difference(expected, {n: tensor_digest(w) for n, w in foreign.items()}) is not None


def test_a_digest_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    values = torch.arange(101, dtype=torch.float32).view(101, 1).bfloat16()
    whole = hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert tensor_digest(values) == whole
    monkeypatch.setattr("score_cli.sampling.vllm_weights.PIECE", 7)
    assert tensor_digest(values) == whole


def test_a_worker_is_compared_by_the_weights_that_it_holds_whole() -> None:
    """Parts and packed ones have another shape or name; one of the policy's must be among them."""
    model = small_policy("qwen2").model
    name = "model.layers.1.input_layernorm.weight"
    norm = dict(model.named_parameters())[name].detach().bfloat16()
    held = {
        name: Held("bfloat16", [32], tensor_digest(norm)),
        "model.embed_tokens.weight": Held("float32", [9, 32], ""),
    }
    assert held_difference(model, held) is None
    held[name] = Held("bfloat16", [32], tensor_digest(norm + 1))
    assert held_difference(model, held) == f"{name} and 0 more of 1"
    assert held_difference(model, {"other": Held("float32", [32], "")}) == "none of its weights is shown"
