"""One vLLM engine for a module of tests: it takes half a minute to start."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from score_cli.config import BaseConfig, SampleConfig
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.vllm_engine import VllmEngine
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint
from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.training.base_policy import make_model

CONFIG = SampleConfig(samples=4, max_tokens=9, iteration=0, seed=3, engine="vllm", device="cpu")

MakeRollouts = Callable[..., list[Rollout]]


def noisy_policy(seed: int, architecture: str = "gpt2") -> Policy:
    """An untrained policy with noise on every weight, biases and norms too: none is the same in two policies."""
    # Heads of 32 numbers, the least that vLLM has a kernel for on CPU.
    config = BaseConfig(architecture=architecture, width=128, heads=4, seed=seed)  # type: ignore[arg-type]
    model = make_model(config, make_tokenizer())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Policy(model, make_tokenizer(), TrainerState(fingerprint=fingerprint(model)), f"noisy-{seed}")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return noisy_policy(0)


@pytest.fixture(scope="module")
def warm(policy: Policy) -> Iterator[VllmEngine]:
    with closing(VllmEngine(policy, CONFIG)) as engine:
        yield engine


@pytest.fixture
def engine(warm: VllmEngine, policy: Policy) -> VllmEngine:
    """The module's engine, holding `policy` whatever the test before did to it."""
    warm.refresh(policy)
    return warm


@pytest.fixture
def rollouts(policy: Policy) -> MakeRollouts:
    """Makes rollouts of the first problems, not yet begun."""
    dialogues = Renderer(policy, CONFIG)

    def make(config: SampleConfig = CONFIG, count: int = 12) -> list[Rollout]:
        return [
            dialogues.rollout(problem, dialogues.prompt(problem), index, config)
            for problem in division.split_problems("train")[:count]
            for index in range(config.samples)
        ]

    return make
