"""`precision = "bfloat16"`: a GPU's arithmetic on the CPU, where it is asked for, and nothing else where it is not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from score_cli.config import DeviceConfig, PolicyConfig, SampleConfig, Stage1Config, VerifyConfig
from score_cli.errors import UserError
from score_cli.recipe import Recipe
from score_cli.run import Run
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.stages.sample import sample
from score_cli.stages.train import train
from score_cli.stages.verify import verify
from score_cli.tables import adapters
from score_cli.tables.checkpoints import TrainerState, adapted, fingerprint, load_policy, save_policy
from score_cli.tables.device import computes_in_bfloat16, float32_product, numerics, setup_device
from score_cli.tables.parquet import TRACES, read_footer
from tests.conftest import small_policy


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    setup_device(DeviceConfig(threads=1))


def test_the_cpu_computes_in_bfloat16_where_it_is_asked_for_alone() -> None:
    model = small_policy().model
    for precision, expected in (("bfloat16", True), ("auto", False)):
        setup_device(PolicyConfig(threads=1, precision=precision))  # type: ignore[arg-type]
        assert computes_in_bfloat16(model) == expected
        assert ("in bfloat16" in numerics(model.device)) == expected
    setup_device(PolicyConfig(threads=1, precision="bfloat16"))
    setup_device(DeviceConfig(threads=1))
    assert not computes_in_bfloat16(model), "a stage that has no such setting computes in float32"


def test_products_of_bfloat16_numbers_are_added_up_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 512), (512, 640)))
    exact = left.double() @ right.double()
    assert (float32_product(left, right) - exact).abs().max() < 2e-4
    rounded = (exact.bfloat16().double() - exact).abs().max()
    assert rounded > 0.1, "what bfloat16 logits would lose"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_chain_of_commands_in_bfloat16_is_on_policy_and_says_so(
    tmp_path: Path, checkpoint: Path, problems: Path
) -> None:
    config = SampleConfig(samples=2, max_tokens=6, threads=1, precision="bfloat16")
    traces, rewards = tmp_path / "traces.parquet", tmp_path / "rewards.parquet"
    setup_device(config)
    sample(config, policy=load_policy(checkpoint), problems=problems, out=traces)
    footer = read_footer(traces, TRACES)
    assert footer is not None and footer.config["precision"] == "bfloat16"
    verify(VerifyConfig(workers=1), traces=traces, problems=problems, out=rewards)
    settings = Stage1Config(threads=1, precision="bfloat16", kl="sampled")
    train(settings, model=checkpoint, reference=None, traces=traces, rewards=rewards, out=tmp_path / "next")
    assert load_policy(tmp_path / "next").state.iteration == 1


def test_an_adapter_over_weights_held_in_bfloat16_is_loaded_as_it_was_written(tmp_path: Path) -> None:
    setup_device(PolicyConfig(precision="bfloat16"))
    whole = small_policy("llama")
    for weight in whole.model.parameters():
        weight.data = weight.data.bfloat16().float()
    (tmp_path / "base").mkdir()
    save_policy(tmp_path / "base", whole.model, whole.tokenizer, TrainerState(fingerprint=fingerprint(whole.model)))
    base = load_policy(tmp_path / "base")
    made = adapted(base, rank=2, alpha=2.0, targets="q_proj")
    assert made.model.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.bfloat16
    written = {name: weight.data.clone() for name, weight in adapters.adapter_parameters(made.model).items()}
    (tmp_path / "adapter").mkdir()
    state = replace(made.state, fingerprint=made.fingerprint())
    save_policy(tmp_path / "adapter", made.model, made.tokenizer, state, base=base)
    loaded = adapters.adapter_parameters(load_policy(tmp_path / "adapter", beside=base).model)
    assert written.keys() == loaded.keys()
    for name, weight in loaded.items():
        # Drawn in float32: bfloat16 would round them.
        assert torch.equal(weight, written[name]) and (".lora_B." in name or not torch.equal(weight, weight.bfloat16()))


def test_default_tables_do_not_speak_of_it(batch: Path) -> None:
    footer = read_footer(batch / "traces.parquet", TRACES)
    assert footer is not None and "precision" not in footer.config


def test_the_two_arithmetics_sample_alike_but_not_the_same() -> None:
    """Logprobs of the same tokens differ by rounding: more than float32 would, and far less than another policy's."""
    policy = small_policy("llama")
    tokens = [[1 + (3 * index) % 20 for index in range(14)]]
    found = []
    for precision in ("auto", "bfloat16"):
        setup_device(PolicyConfig(threads=1, precision=precision))  # type: ignore[arg-type]
        found.append(TransformersEngine(policy.model, batch_size=2).token_logprobs(tokens, 1.0)[0])
    gap = sum(abs(a - b) for a, b in zip(*found, strict=True)) / len(tokens[0])
    assert 1e-5 < gap < 0.05


def test_a_run_takes_the_precision_of_its_sampling_everywhere(tmp_path: Path) -> None:
    run = Run(Recipe({"sample": {"precision": "bfloat16", "threads": 1}}), tmp_path / "run")
    found = [run.configs.stage1, run.configs.stage2, run.configs.sft, run.configs.signal, run.configs.eval]
    assert {config.precision for config in found} == {"bfloat16"}
    with pytest.raises(UserError, match="train-stage1.precision is bfloat16 and sample.precision auto"):
        Run(Recipe({"train-stage1": {"precision": "bfloat16"}}), tmp_path / "other")
