"""What a sampling engine does, whichever library runs the model, and what `--engine` asks for."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from score_cli.config import EvalConfig, SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.rollout import Rollout
from score_cli.tables.checkpoints import Policy, context_length

VLLM = "vllm"
TRANSFORMERS = "transformers"


class Decoding(NamedTuple):
    """How tokens are chosen: temperature divides the logits; 0 takes the likeliest token.

    Then the `top_k` likeliest tokens are kept (0: all), and of these the fewest whose share reaches
    `top_p`. The logprobs kept are those of the distribution sampled from, so truncated and normed
    anew where tokens were left out; greedy leaves none out and keeps those of temperature 1.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0


class Engine(Protocol):
    """Grows rollouts to their end, and tells the logprobs it would sample given tokens with."""

    name: str

    def generate(self, rollouts: Sequence[Rollout], decoding: Decoding) -> None:
        """Sample every rollout to its end, in place."""

    def token_logprobs(self, sequences: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """The sampler's own logprob of each token given those before it; 0.0 for each first token.

        After every update these are compared with the trainer's.
        """

    def refresh(self, policy: Policy) -> None:
        """Hold another policy of the same architecture from now on; whoever calls this compares logprobs afterwards."""

    def close(self) -> None:
        """Give back what the engine holds; it is not used again."""


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
