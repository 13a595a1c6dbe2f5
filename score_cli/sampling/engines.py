"""Which library samples: the choice behind `--engine`, and the engine made from it."""

import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch

from score_cli.config import EvalConfig, SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.engine import Engine
from score_cli.sampling.transformers_engine import TransformersEngine, context_length
from score_cli.tables.checkpoints import Policy

VLLM = "vllm"
TRANSFORMERS = "transformers"


def engine_name(config: SampleConfig | EvalConfig) -> str:
    """The engine to use; `auto` takes vLLM where it is installed and the model runs on a GPU, else transformers.

    Raises:
        UserError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if config.engine == "auto":
        return VLLM if installed and config.device != "cpu" and torch.cuda.is_available() else TRANSFORMERS
    if config.engine == VLLM and not installed:
        raise UserError(
            "engine is vllm, but vLLM is not installed: `pip install 'score-cli[vllm]'`, or use --engine transformers"
        )
    return config.engine


def policy_device(config: SampleConfig | EvalConfig, device: str) -> str:
    """Where a policy that is only sampled from should be loaded: vLLM keeps its own copy of the weights."""
    return "cpu" if engine_name(config) == VLLM else device


def context_limit(policy: Policy, max_model_len: int | None) -> int | None:
    """Longest trace in tokens: what the model's positions are made for, or the smaller limit that was set.

    Raises:
        UserError: the limit set is beyond the model's own.
    """
    own = context_length(policy.model)
    if max_model_len is None or own is None:
        return max_model_len or own
    if max_model_len > own:
        raise UserError(f"max_model_len is {max_model_len}, expected at most {own}, the context of {policy.name}")
    return max_model_len


def make_engine(config: SampleConfig, policy: Policy) -> Engine:
    """The engine that `config.engine` asks for, holding this policy.

    Raises:
        UserError: the engine is not installed, or cannot sample from this kind of model.
    """
    if engine_name(config) == VLLM:
        from score_cli.sampling.vllm_engine import VllmEngine

        return VllmEngine(policy, config)
    engine = TransformersEngine(policy.model, batch_size=config.batch_size)
    engine.check()
    return engine


@contextmanager
def holding(policy: Policy, config: SampleConfig, engine: Engine | None = None) -> Iterator[Engine]:
    """The engine given, which its owner closes, or one of our own, closed at the end.

    Raises:
        UserError: as `make_engine`.
    """
    if engine is not None:
        yield engine
        return
    with closing(make_engine(config, policy)) as own:
        yield own
