"""What a prediction takes as given: the rates of devices, and every assumption by name."""

from dataclasses import dataclass

from score_cli.errors import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """A device as its maker describes it.

    Attributes:
        memory: bytes.
        rate: floating-point operations a second of dense matrix products, in bfloat16 (the CPU: float32).
        bandwidth: bytes a second between memory and cores.
    """

    name: str
    memory: float
    rate: float
    bandwidth: float

    @property
    def is_gpu(self) -> bool:
        """Whether it computes in bfloat16 over float32 weights."""
        return self.name != CPU


CPU = "cpu"
# Makers' data sheets: dense bfloat16 with float32 sums, SXM where there are several. The CPU: one core with AVX-512.
CARDS = {
    "rtx4090": Card(name="rtx4090", memory=24 * GIB, rate=165e12, bandwidth=1.01e12),
    "l40s": Card(name="l40s", memory=48 * GIB, rate=362e12, bandwidth=0.86e12),
    "a100": Card(name="a100", memory=80 * GIB, rate=312e12, bandwidth=2.04e12),
    "h100": Card(name="h100", memory=80 * GIB, rate=989e12, bandwidth=3.35e12),
    "h200": Card(name="h200", memory=141 * GIB, rate=989e12, bandwidth=4.8e12),
    CPU: Card(name=CPU, memory=16 * GIB, rate=0.15e12, bandwidth=14e9),
}
# A GPU by its memory alone: the first that has as much.
BY_MEMORY = ("rtx4090", "l40s", "h100", "h200")


def choose_card(name: str | None, memory: float | None) -> Card:
    """A card by its name, its memory in GiB, or both: the memory is then what is left of it.

    Raises:
        UserError: the name is not in the table.
    """
    if name is None:
        wanted = 80.0 if memory is None else memory
        name = next((each for each in BY_MEMORY if CARDS[each].memory >= wanted * GIB), BY_MEMORY[-1])
    if name.lower() not in CARDS:
        raise UserError(f"--gpu is {name}, expected one of {', '.join(CARDS)}: take the nearest, with --gpu-memory")
    card = CARDS[name.lower()]
    if memory is None:
        return card
    return Card(name=card.name, memory=memory * GIB, rate=card.rate, bandwidth=card.bandwidth)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no configuration says; each is printed beside the figures.

    Attributes:
        prompt_tokens: of a problem as it is asked; the longest may be half as long again.
        bridge_tokens: between two attempts: the request to correct, with the template's turns.
        attempt_share: an attempt's mean length over the longest that it may have.
        mfu: share of the card's rate that training and reading prompts reach.
        decode_share: share of the card's bandwidth that decoding reaches.
        step_seconds: that decoding takes for a token of every row under way, beside its reads and operations.
        verify_seconds: of one process, an attempt.
        cores: of the machine, each a process that grades, where a recipe does not say how many.
        hash_rate: bytes a second of a digest over weights.
        copy_rate: bytes a second of weights on their way from the trainer to vLLM.
        trace_bytes: of a token in traces.parquet and its texts.
        eval_problems: that each policy is measured on.
    """

    prompt_tokens: int = 150
    bridge_tokens: int = 60
    attempt_share: float = 0.4
    mfu: float = 0.35
    decode_share: float = 0.5
    step_seconds: float = 0.006
    verify_seconds: float = 0.02
    cores: int = 16
    hash_rate: float = 1.5e9
    copy_rate: float = 2e9
    trace_bytes: float = 8.0
    eval_problems: int = 500
