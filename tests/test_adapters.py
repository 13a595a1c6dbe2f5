"""LoRA: what training moves, what a checkpoint holds, and that base, reference and samplers are what they should be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from score_cli import (
    Grader,
    Loop,
    SampleConfig,
    Sampler,
    Stage1Config,
    Stage2Config,
    Trainer,
    VerifyConfig,
    run_updates,
)
from score_cli.cli import run_command
from score_cli.errors import UserError
from score_cli.stages.merge_adapter import merge_adapter
from score_cli.tables import adapters
from score_cli.tables.checkpoints import Policy, adapted, fingerprint, load_optimizer, load_policy, save_policy
from score_cli.tasks import division
from score_cli.training.sft import sft_round
from tests.conftest import ARCHITECTURES, small_policy, write_checkpoint
from tests.test_train import reward_some, rewarded, step

assert rewarded  # a fixture

LORA1 = Stage1Config(learning_rate=1e-2, kl="full", threads=1, lora_rank=4)
LORA2 = Stage2Config(learning_rate=1e-2, kl="full", threads=1, lora_rank=4)
TOKENS = torch.tensor([[1, 5, 9, 7, 3]])


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


def moved(policy: Policy, seed: int = 0) -> Policy:
    """The policy with an adapter as training might leave it: B is not 0."""
    made = adapted(policy, rank=3, alpha=6.0, targets="all-linear")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapters.adapter_parameters(made.model).items():
        if ".lora_B." in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 10)
    return replace(made, state=replace(made.state, fingerprint=made.fingerprint()))


def write_moved(policy: Policy, folder: Path) -> Path:
    folder.mkdir()
    save_policy(folder, policy.model, policy.tokenizer, policy.state, base=policy.base)
    return folder


def test_a_fresh_adapter_changes_no_logit(policy: Policy) -> None:
    made = adapted(policy, rank=3, alpha=6.0, targets="all-linear")
    assert torch.equal(logits_of(made.model), logits_of(policy.model))
    assert made.state == policy.state and made.base is policy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_weights_with_the_product_added(architecture: str) -> None:
    """By hand: W + alpha / rank x B A on every linear layer but the head, transposed where GPT-2 keeps W so."""
    plain, made = small_policy(architecture), moved(small_policy(architecture))
    weights = dict(plain.model.named_parameters())
    parts = adapters.adapter_parameters(made.model)
    changed = 0
    for name in [name for name in parts if ".lora_A." in name]:
        product = 6.0 / 3 * (parts[name.replace("_A.", "_B.")] @ parts[name]).detach()
        target = weights[name.replace("lora_A.default.", "")]
        target.data += product.t() if architecture == "gpt2" else product
        changed += 1
    assert changed == {"gpt2": 8, "llama": 14, "qwen2": 14}[architecture]
    assert not torch.allclose(logits_of(made.model), logits_of(small_policy(architecture).model), atol=0.05)
    assert torch.allclose(logits_of(made.model), logits_of(plain.model), atol=1e-4)
    for name, weight in adapters.merged_weights(made.model):
        assert torch.allclose(weight, weights.pop(name), atol=1e-6)
    assert not weights


def test_the_base_is_the_adapter_switched_off_over_the_same_memory() -> None:
    plain = small_policy("qwen2")
    made = moved(plain)
    own = {weight.data_ptr() for weight in adapters.adapter_parameters(made.model).values()}
    beneath = {weight.data_ptr() for weight in made.model.parameters()} - own
    assert beneath == {weight.data_ptr() for weight in plain.model.parameters()}
    assert not torch.equal(logits_of(made.model), logits_of(plain.model))
    for layer in adapters.adapted_layers(made.model).values():
        layer.enable_adapters(False)
    assert torch.equal(logits_of(made.model), logits_of(plain.model))


def loop(config: Stage1Config | Stage2Config = LORA2) -> Loop:
    policy = small_policy("qwen2")
    sampler = Sampler(SampleConfig(samples=4, problems_per_iteration=4, max_tokens=6, threads=1), policy)
    return Loop(
        sampler=sampler,
        grader=Grader(VerifyConfig()),
        trainer=Trainer(config, policy),
        problems=division.split_problems("train")[:12],
    )


def test_updates_move_the_adapter_alone_and_leave_the_base_to_the_bit() -> None:
    """No reference is given: it is the base. The loop's own checks prove that the sampler holds each new policy."""
    untouched = small_policy("qwen2")
    made = loop(replace(LORA2, beta1=5.0))  # divergence alone teaches something where nothing is right
    trainer = made.trainer
    first = trainer.policy
    for weight in adapters.adapter_parameters(first.model).values():
        weight.data.add_(0.05)
    start = {name: weight.clone() for name, weight in first.model.named_parameters()}
    begun = first.fingerprint()
    made.sampler.load(first)
    run_updates(made, 3)
    assert trainer.reference is first.base and trainer.policy.state.reference == untouched.state.fingerprint
    for name, weight in trainer.policy.model.named_parameters():
        assert torch.equal(weight, start[name]) != (".lora_" in name), name
    for own, other in zip(trainer.reference.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(own, other) and own.grad is None
    assert fingerprint(trainer.reference.model) == untouched.state.fingerprint
    assert trainer.policy.state.fingerprint == trainer.policy.fingerprint() != begun


def test_a_step_is_adam_on_the_adapters_gradient(rewarded: Path) -> None:
    """Adam's first step moves each weight by the learning rate; A's gradient is 0 where B is."""
    made = load_policy(step(rewarded, "next", LORA2))
    fresh = adapted(load_policy(rewarded / "ckpt"), rank=4, alpha=32.0, targets="all-linear")
    before, after = (adapters.adapter_parameters(each.model) for each in (fresh, made))
    for name, weight in after.items():
        change = (weight - before[name]).detach().abs()
        if ".lora_A." in name:
            assert not change.any()
        else:
            assert 0 < change.max() <= 1.001e-2 and change.median() > 0.9e-2
    moments = load_optimizer(rewarded / "next")
    assert moments is not None and {key.split(".", 1)[1] for key in moments} == set(after)


def test_an_adapter_checkpoint_comes_back_bit_for_bit(tmp_path: Path, policy: Policy) -> None:
    write = tmp_path / "base"
    write.mkdir()
    save_policy(write, policy.model, policy.tokenizer, policy.state)
    base = load_policy(write)
    made = moved(base)
    folder = write_moved(made, tmp_path / "adapter")
    loaded = load_policy(folder)
    assert torch.equal(logits_of(loaded.model), logits_of(made.model))
    assert loaded.fingerprint() == made.fingerprint() == loaded.state.fingerprint
    assert loaded.base is not None and loaded.base.state == base.state
    assert not list(folder.glob("model*.safetensors")) and not (folder / "config.json").exists()
    shared = load_policy(folder, beside=base)
    assert shared.base is base and torch.equal(logits_of(shared.model), logits_of(made.model))


def test_peft_and_transformers_load_an_adapter_checkpoint_as_it_is(tmp_path: Path) -> None:
    from peft import PeftModel

    made = moved(load_policy(write_checkpoint(tmp_path / "base", "llama")))
    folder = write_moved(made, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for theirs in (PeftModel.from_pretrained(plain, folder), AutoModelForCausalLM.from_pretrained(folder)):
        assert torch.allclose(logits_of(theirs), logits_of(made.model), atol=1e-5)


def test_an_adapter_made_by_peft_is_taken(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    write_checkpoint(tmp_path / "base", "qwen2")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)).eval()
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_policy(tmp_path / "adapter")
    assert torch.allclose(logits_of(theirs), logits_of(ours.model), atol=1e-5)
    assert ours.state.iteration == 0 and ours.state.fingerprint == ours.fingerprint()
    assert ours.tokenizer.encode("53") == small_policy().tokenizer.encode("53")


def test_the_fingerprint_covers_base_adapter_and_scale() -> None:
    made = moved(small_policy("qwen2"))
    same = moved(small_policy("qwen2"))
    assert made.fingerprint() == same.fingerprint()
    others = [moved(small_policy("qwen2"), seed=1), moved(small_policy("qwen2", seed=1))]
    with torch.no_grad():
        next(iter(adapters.adapter_parameters(same.model).values())).view(-1)[0] += 1e-6
    scaled = moved(small_policy("qwen2"))
    next(iter(adapters.adapted_layers(scaled.model).values())).scaling["default"] = 3.0
    found = [made.fingerprint(), *(other.fingerprint() for other in (*others, same, scaled))]
    assert len(set(found)) == 5 and small_policy("qwen2").state.fingerprint not in found


def test_a_merged_checkpoint_is_a_whole_model_with_the_same_logits(tmp_path: Path, policy: Policy) -> None:
    write = tmp_path / "base"
    write.mkdir()
    save_policy(write, policy.model, policy.tokenizer, policy.state)
    made = moved(load_policy(write))
    folder = write_moved(made, tmp_path / "adapter")
    assert run_command(["merge-adapter", str(folder), "--out", str(tmp_path / "merged")]) == 0
    merged = load_policy(tmp_path / "merged")
    assert merged.base is None and (merged.state.iteration, merged.state.reference) == (0, None)
    assert merged.state.parent == made.state.fingerprint
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for model in (merged.model, plain):
        assert torch.allclose(logits_of(model), logits_of(made.model), atol=1e-4)
    assert run_command(["merge-adapter", str(folder), "--dtype", "bfloat16", "--out", str(tmp_path / "rounded")]) == 0
    exact, rounded = (
        dict(model.named_parameters()) for model in (merged.model, load_policy(tmp_path / "rounded").model)
    )
    assert all(torch.equal(rounded[name], exact[name].bfloat16().float()) for name in exact)
    # The base itself stays as it was.
    assert load_policy(write).state.fingerprint == policy.state.fingerprint
    with pytest.raises(UserError, match="has no adapter: it is a whole model already"):
        merge_adapter(write, out=tmp_path / "twice")


def test_a_moved_run_folder_still_finds_its_base(rewarded: Path, tmp_path: Path) -> None:
    step(rewarded, "next", LORA2)
    moved_to = tmp_path / "elsewhere"
    moved_to.mkdir()
    for name in ("ckpt", "next"):
        shutil.move(rewarded / name, moved_to / name)
    (moved_to / "latest").mkdir()
    shutil.copytree(moved_to / "next", moved_to / "latest" / "0001")
    assert load_policy(moved_to / "next").state == load_policy(moved_to / "latest" / "0001").state
    shutil.rmtree(moved_to / "ckpt")
    with pytest.raises(UserError, match=r"is an adapter over .*ckpt, which is not there: put it back"):
        load_policy(moved_to / "next")


def test_another_base_under_the_same_name_is_refused(rewarded: Path) -> None:
    done = step(rewarded, "next", LORA2)
    shutil.rmtree(rewarded / "ckpt")
    write_checkpoint(rewarded / "ckpt", seed=1)
    with pytest.raises(
        UserError, match="was trained over policy [0-9a-f]+, but .*ckpt is [0-9a-f]+: put the base back"
    ):
        load_policy(done)


def test_changed_adapter_weights_and_files_of_another_adapter_are_refused(rewarded: Path) -> None:
    done = step(rewarded, "next", LORA2)
    weights = load_file(done / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, done / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the weights were changed"):
        load_policy(done)
    save_file({key: value for key, value in weights.items() if key != name}, done / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit its adapter_config.json and base"):
        load_policy(done)
    (done / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is damaged"):
        load_policy(done)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "more than LoRA on linear layers"),
        ({"modules_to_save": ["wte"]}, "more than LoRA on linear layers"),
        ({"bias": "all"}, "more than LoRA on linear layers"),
        ({"target_modules": ["nothing"]}, "the adapter does not fit the model"),
        ({"peft_type": "IA3"}, "is an adapter of kind .*IA3, expected LoRA"),
        ({"peft_type": "unheard of"}, "cannot be read"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
    ],
)
def test_what_is_no_plain_lora_is_refused(rewarded: Path, change: dict[str, object], message: str) -> None:
    done = step(rewarded, "next", LORA2)
    file = done / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        load_policy(done)
    assert "\n" not in str(caught.value)


def test_targets_arelinear_layers_and_never_the_head() -> None:
    policy = small_policy("llama")
    made = adapted(policy, rank=2, alpha=2.0, targets="q_proj, v_proj")
    assert {name.rsplit(".", 1)[1] for name in adapters.adapted_layers(made.model)} == {"q_proj", "v_proj"}
    for wrong in ("lm_head", "embed_tokens", "q_proj,k", ""):
        with pytest.raises(UserError, match=r"expected all-linear, or of the linear layers down_proj, gate_proj, "):
            adapted(policy, rank=2, alpha=2.0, targets=wrong)


def test_an_adapter_of_the_last_layers_sits_on_no_other_and_nothing_goes_back_below_it() -> None:
    for kind, place in (("llama", "model.layers.1."), ("gpt2", "transformer.h.1.")):
        made = adapted(small_policy(kind), rank=2, alpha=2.0, targets="all-linear", layers=1)
        names = set(adapters.adapted_layers(made.model))
        every = set(adapters.adapted_layers(adapted(small_policy(kind), rank=2, alpha=2.0, targets="all-linear").model))
        assert names == {name for name in every if name.startswith(place)} and len(every) == 2 * len(names) > 0
        with adapters.only_adapter_learns(made.model):
            states = made.model(torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states
        # The embeddings' and the first layer's states take no gradient; the second layer's do.
        assert [state.requires_grad for state in states] == [False, False, True]
    with pytest.raises(UserError, match="lora_layers is 3, expected at most the model's 2 layers"):
        adapted(small_policy(), rank=2, alpha=2.0, targets="all-linear", layers=3)


def test_an_adapter_goes_on_with_its_own_settings_and_no_other(rewarded: Path) -> None:
    policy = load_policy(step(rewarded, "next", LORA2))
    for settings in ({}, {"lora_rank": 4}, {"lora_rank": 4, "lora_targets": "c_attn,c_fc,c_proj"}):
        trainer = Trainer(replace(LORA2, **{"lora_rank": 0} | settings), policy, new_phase=True)
        assert trainer.policy.model is policy.model
    for settings, words in (
        ({"lora_rank": 8}, "lora_rank is 8, but .* has an adapter of 4"),
        ({"lora_alpha": 4.0}, "lora_alpha is 4.0, but .* has an adapter of 32"),
        ({"lora_layers": 1}, r"\(lora_layers\) is 1, but .* has an adapter of all"),
        ({"lora_targets": "c_fc"}, "lora_targets is .'c_fc'., but .* has an adapter of .'c_attn', 'c_fc', 'c_proj'."),
    ):
        with pytest.raises(UserError, match=words):
            Trainer(replace(LORA2, **settings), policy, new_phase=True)  # type: ignore[arg-type]


def test_the_reference_shares_the_bases_weights_whichever_policy_it_is(
    rewarded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base itself, and another adapter over it: the weights are in memory once."""
    from score_cli.stages import train as stage

    seen: list[Trainer] = []
    monkeypatch.setattr(stage, "Trainer", lambda *given, **more: seen.append(Trainer(*given, **more)) or seen[-1])
    first = step(rewarded, "next", LORA2, reference=rewarded / "ckpt")
    step(
        rewarded, "again", LORA1, model=first, reference=first, new_phase=True, allow_foreign=True, **foreign(rewarded)
    )
    for trainer in seen:
        beneath = {w.data_ptr() for n, w in trainer.policy.model.named_parameters() if ".lora_" not in n}
        assert beneath <= {weight.data_ptr() for weight in trainer.reference.model.parameters()}
        assert trainer.reference.model is not trainer.policy.model
    own, other = (adapters.adapter_parameters(each.model) for each in (seen[1].policy, seen[1].reference))
    assert seen[1].reference.state.fingerprint == load_policy(first).state.fingerprint
    assert own.keys() == other.keys() and any(not torch.equal(own[name], other[name]) for name in own)


def foreign(folder: Path) -> dict[str, object]:
    """The folder's tables sampled anew from `next`."""
    from score_cli.stages.sample import sample
    from score_cli.stages.verify import verify

    traces, rewards = folder / "more.parquet", folder / "rewards.parquet"
    settings = SampleConfig(samples=4, max_tokens=6, threads=1)
    sample(settings, policy=load_policy(folder / "next"), problems=folder / "problems.parquet", out=traces)
    rewards.unlink()
    verify(VerifyConfig(), traces=traces, problems=folder / "problems.parquet", out=rewards)
    reward_some(folder)
    return {"traces": traces}


def test_a_supervised_round_trains_an_adapter_too(rewarded: Path) -> None:
    from score_cli.config import SftConfig
    from score_cli.tables.traces import read_traces, read_verdicts
    from score_cli.training.sft import make_examples

    config = SftConfig(method="pair-sft-plus", learning_rate=1e-2, threads=1, lora_rank=2, lora_targets="c_fc")
    base = load_policy(rewarded / "ckpt")
    traces, verdicts = read_traces(rewarded / "traces.parquet"), read_verdicts(rewarded / "rewards.parquet")
    done = sft_round(config, base, traces, verdicts, make_examples(config, base, traces, verdicts))
    assert done.policy.base is base and fingerprint(base.model) == base.state.fingerprint
    assert done.policy.state.fingerprint == done.policy.fingerprint() and done.policy.state.reference is not None
    measured = {row["name"]: row["value"] for row in done.metrics}
    assert measured["loss_after"] < measured["loss_before"]


def test_another_seed_draws_another_adapter() -> None:
    first, same, other = (
        adapted(small_policy(), rank=2, alpha=2.0, targets="c_fc", seed=seed).fingerprint() for seed in (1, 1, 2)
    )
    assert first == same != other
