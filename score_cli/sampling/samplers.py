"""Which sampler the settings ask for: one in this process, or actors of a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.engine import VLLM, engine_name
from score_cli.sampling.ray_sampler import RaySampler
from score_cli.sampling.sampler import Sampler
from score_cli.sampling.weight_transfer import BROADCAST
from score_cli.tables.checkpoints import Policy


def make_sampler(config: SampleConfig, policy: Policy) -> Sampler:
    """A sampler that holds a policy.

    Raises:
        UserError: a setting is out of bounds, or what it asks for is not installed or not there.
    """
    if config.ray_weights == BROADCAST:
        if config.ray is None:
            raise UserError("ray_weights is broadcast, which is for actors of a Ray cluster: set ray, or leave it out")
        if engine_name(config) != VLLM:
            raise UserError(
                "ray_weights is broadcast, which needs engines of vLLM, and the engine is transformers: use --engine "
                "vllm, or --ray-weights store"
            )
    return Sampler(config, policy) if config.ray is None else RaySampler(config, policy)


@contextmanager
def sampler_for(config: SampleConfig, policy: Policy, sampler: Sampler | None = None) -> Iterator[Sampler]:
    """The sampler given, which its owner closes, or one of our own, closed at the end."""
    if sampler is not None:
        yield sampler
        return
    with make_sampler(config, policy) as own:
        yield own
