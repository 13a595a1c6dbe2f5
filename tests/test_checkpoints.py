"""A checkpoint is a Hugging Face folder with the trainer's state beside it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from score_cli.errors import UserError
from score_cli.tables import checkpoints
from score_cli.tables.checkpoints import fingerprint, load_policy, save_policy
from tests.conftest import small_model, small_policy, write_checkpoint


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for architecture in ("gpt2", "llama", "qwen2"):
        path = write_checkpoint(tmp_path / architecture, architecture)
        made, loaded = small_model(architecture), load_policy(path)
        for (name, before), (_, after) in zip(made.named_parameters(), loaded.model.named_parameters(), strict=True):
            assert torch.equal(before, after), name
        assert loaded.state.fingerprint == fingerprint(made)


def test_transformers_loads_a_checkpoint_as_it_is(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert model.dtype == torch.float32
    text = "Divide 264 by 5. \\boxed{53}: product 265, remainder -01<eos><fix>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "5"}], tokenize=False) == "5"


def test_nothing_is_pickled(checkpoint: Path) -> None:
    names = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert names <= {".json", ".safetensors", ".jinja", ".parquet"}


def test_the_fingerprint_tells_policies_apart_and_forgets_how_they_were_saved(tmp_path: Path) -> None:
    base = fingerprint(small_model())
    assert base == fingerprint(small_model())
    assert base != fingerprint(small_model(seed=1))
    changed = small_model()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[5] += 1e-6
    assert fingerprint(changed) != base
    heads = small_model()
    heads.config.n_head = 8
    assert fingerprint(heads) != base, "the same weights with other heads are another policy"
    loaded = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "ckpt"))
    assert fingerprint(loaded) == base


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    with pytest.raises(UserError, match="it lacks a tokenizer"):
        load_policy(checkpoint)


def test_a_checkpoint_with_damaged_weights_is_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_policy(checkpoint)


def test_a_folder_that_is_not_there_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`score base` makes the built-in task's"):
        load_policy(tmp_path / "ckpt")


def test_weights_changed_behind_the_state_are_noticed(checkpoint: Path) -> None:
    state = checkpoint / "trainer" / "state.json"
    content = json.loads(state.read_text())
    content["fingerprint"] = small_policy(seed=1).state.fingerprint
    state.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the weights were changed"):
        load_policy(checkpoint)


def test_missing_weights_are_not_drawn_at_random(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "ln_f" not in k}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights that its config.json asks for \(transformer.ln_f"):
        load_policy(checkpoint)


def test_a_generation_config_that_transformers_would_not_save_keeps_its_tokens_alone(checkpoint: Path) -> None:
    """Llama 2 was published so: a temperature beside `do_sample: false`."""
    file = checkpoint / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 5]}))
    policy = load_policy(checkpoint)
    again = checkpoint.parent / "again"
    again.mkdir()
    save_policy(again, policy.model, policy.tokenizer, policy.state)
    saved = json.loads((again / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 5] and not {"temperature", "top_p", "do_sample"} & set(saved)


def test_a_generation_config_that_can_be_saved_stays_as_it_is(checkpoint: Path) -> None:
    file = checkpoint / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.9, "eos_token_id": 2}))
    policy = load_policy(checkpoint)
    assert (policy.model.generation_config.temperature, policy.model.generation_config.do_sample) == (0.9, True)


@pytest.mark.parametrize("change", [{"n_embd": 64}, {"n_head": 0}, {"n_layer": "two"}, {"model_type": "bert"}])
def test_a_configuration_of_another_model_is_refused(checkpoint: Path, change: dict[str, object]) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError) as caught:
        load_policy(checkpoint)
    assert "\n" not in str(caught.value)


def test_the_renderer_is_hashed_once_for_a_policy_and_all_that_updates_make_of_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(checkpoint)
    asked: list[str] = []
    own = type(policy.tokenizer.backend_tokenizer).to_str
    parts = [own(policy.tokenizer.backend_tokenizer), str(policy.tokenizer.chat_template), "1", "1", "1"]
    assert policy.tokenizer.eos_token_id == 1
    expected = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    digest = checkpoints._digest_renderer
    monkeypatch.setattr(checkpoints, "_digest_renderer", lambda policy: (asked.append(policy.name), digest(policy))[1])
    updated = replace(policy, state=replace(policy.state, iteration=1))
    assert [checkpoints.renderer_digest(each) for each in (policy, updated, policy)] == [expected] * 3
    assert len(asked) == 1
    policy.tokenizer.chat_template = "{{ messages[0].content }}"
    other = replace(policy, digests={})
    assert checkpoints.renderer_digest(other) != expected
