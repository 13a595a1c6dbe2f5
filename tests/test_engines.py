"""Which engine samples, and what is refused before one starts; nothing here needs vLLM."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from score_cli.cli import run_command
from score_cli.config import EvalConfig, SampleConfig
from score_cli.errors import UserError
from score_cli.sampling import engine as engines
from score_cli.sampling.engine import context_limit, engine_name, policy_device
from score_cli.sampling.sampler import make_engine
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.stages.sample import sample
from score_cli.tables.checkpoints import load_policy
from tests.conftest import sampler_of, small_policy
from tests.test_cli import one_line


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Says whether vLLM is installed and whether there is a GPU."""

    def pretend(*, vllm: bool, cuda: bool) -> None:
        found = find_spec("json") if vllm else None
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: found)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    return pretend


@pytest.mark.parametrize(
    ("vllm", "cuda", "device", "chosen"),
    [
        (True, True, "auto", "vllm"),
        (True, True, "cuda", "vllm"),
        (True, True, "cpu", "transformers"),
        (True, False, "auto", "transformers"),
        (False, True, "auto", "transformers"),
        (False, False, "auto", "transformers"),
    ],
)
def test_auto_takes_vllm_where_it_is_installed_and_the_model_runs_on_a_gpu(
    machine, vllm: bool, cuda: bool, device: str, chosen: str
) -> None:  # type: ignore[no-untyped-def]
    machine(vllm=vllm, cuda=cuda)
    for kind in (SampleConfig, EvalConfig):
        assert engine_name(kind(device=device)) == chosen  # type: ignore[arg-type]


def test_an_engine_that_is_named_is_taken(machine) -> None:  # type: ignore[no-untyped-def]
    machine(vllm=True, cuda=False)
    assert engine_name(SampleConfig(engine="vllm")) == "vllm"
    machine(vllm=True, cuda=True)
    assert engine_name(SampleConfig(engine="transformers")) == "transformers"
    assert isinstance(make_engine(SampleConfig(engine="transformers"), small_policy()), TransformersEngine)


def test_a_policy_that_vllm_copies_stays_off_the_gpu(machine) -> None:  # type: ignore[no-untyped-def]
    machine(vllm=True, cuda=True)
    assert policy_device(SampleConfig(), "cuda") == "cpu"
    assert policy_device(SampleConfig(engine="transformers"), "cuda") == "cuda"


@pytest.mark.parametrize("command", ["sample", "eval", "run"])
def test_vllm_that_is_not_installed_is_one_line_that_tells_how(
    machine, command: str, batch: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    machine(vllm=False, cuda=False)
    out = batch / "out"
    arguments: list[object] = ["--engine", "vllm", "--model", batch / "ckpt", "--problems", batch / "problems.parquet"]
    if command == "run":
        recipe = batch / "recipe.toml"
        recipe.write_text('[sample]\nengine = "vllm"\n')
        arguments = [recipe]
    assert run_command([command, *map(str, arguments), "--out", str(out)]) == 2
    assert "engine is vllm, but vLLM is not installed: `pip install 'score-cli[vllm]'`" in one_line(capsys)
    assert not out.exists()


class Untouched:
    """An engine that must not be asked for anything."""

    name = "untouched"

    def generate(self, rollouts: object, decoding: object) -> None:
        raise AssertionError("sampling began")


def test_long_prompts_are_named_before_the_engine_is_asked(batch: Path) -> None:
    policy = load_policy(batch / "ckpt")
    for config in (
        SampleConfig(samples=2, max_tokens=40, threads=1),
        SampleConfig(samples=2, max_tokens=14, max_model_len=20, threads=1),
    ):
        limit = config.max_model_len or 64
        with pytest.raises(UserError, match=f"traces of 12 problems can reach .* is {limit} .problems division-"):
            sample(
                replace(config, chunk_problems=1),
                policy=policy,
                problems=batch / "problems.parquet",
                out=batch / "more.parquet",
                sampler=sampler_of(Untouched(), policy),  # type: ignore[arg-type]
            )
        assert not (batch / "more.parquet").exists()


def test_attempts_share_the_context_that_was_set(batch: Path) -> None:
    """Without --max-tokens an attempt gets what is left of the limit: no trace is longer than that."""
    from score_cli.tables.traces import read_traces

    policy, out = load_policy(batch / "ckpt"), batch / "more.parquet"
    config = SampleConfig(samples=4, max_model_len=32, threads=1)
    sample(config, policy=policy, problems=batch / "problems.parquet", out=out)
    lengths = [len(trace.token_ids) for trace in read_traces(out)]
    assert 28 < max(lengths) <= 32


def test_a_limit_beyond_the_models_own_context_is_refused() -> None:
    policy = small_policy()
    assert context_limit(policy, None) == 64
    assert context_limit(policy, 48) == 48
    with pytest.raises(UserError, match="max_model_len is 65, expected at most 64, the context of small"):
        context_limit(policy, 65)
