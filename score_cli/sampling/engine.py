"""What a sampling engine does, whichever library runs the model."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from score_cli.sampling.rollout import Rollout
from score_cli.tables.checkpoints import Policy


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

    def score(self, sequences: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """The sampler's own logprob of each token given those before it; 0.0 for each first token.

        The policy proof compares these with the trainer's.
        """

    def refresh(self, policy: Policy) -> None:
        """Hold another policy of the same architecture from now on; whoever calls this proves it afterwards."""

    def close(self) -> None:
        """Give back what the engine holds; it is not used again."""
