"""How much memory each phase of an update needs: a sum of terms, each with its formula.

N parameters, of which M are trained; with LoRA the M of an adapter come to the N. V vocabulary, d width, L layers.
Bytes. On a GPU passes compute in bfloat16 over float32 weights; on the CPU in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from score_cli.config import EvalConfig, OptimizerConfig, SampleConfig, UpdateConfig
from score_cli.doctor.activations import Passes, measure_passes
from score_cli.doctor.cards import GIB, Assumptions, Card
from score_cli.doctor.shape import Adapter, Shape, adapter_size
from score_cli.training.logprobs import CHUNK_ELEMENTS

SAMPLING, REFERENCE, GRADIENT, STEP = "sampling", "reference pass", "gradient", "optimiser step"
PHASES = (SAMPLING, REFERENCE, GRADIENT, STEP)

MIB = 2**20
# CUDA's context, its libraries' kernels and their workspaces, of a process.
CONTEXT = 1.0 * GIB
# What torch's allocator holds of a GPU without using it, as a share of what comes and goes.
SLACK = 0.05
# vLLM's own: context, graphs of its batch sizes, workspaces.
VLLM_FIXED = 3.0 * GIB
# Of the longest traces, how many vLLM should have room for at a time: with fewer it is slow.
VLLM_TRACES = 64
# Traces that vLLM works on at a time, at most, on a GPU.
VLLM_MOST = 512


class Term(NamedTuple):
    """A part of the memory: what it is, its bytes, the formula in words, and the phases that hold it."""

    name: str
    bytes: float
    formula: str
    phases: Sequence[str] = PHASES


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be predicted: a model, a card, and the settings that matter.

    Attributes:
        sample, train: the settings of sampling and of the hungrier of the two stages.
        vllm: it samples, and not the transformers engine.
        workers: processes that grade, where the recipe says so.
        evaluate: the settings of the evaluation; they matter for the time alone.
    """

    shape: Shape
    card: Card
    sample: SampleConfig
    train: UpdateConfig
    evaluate: EvalConfig
    vllm: bool
    workers: int | None
    assumptions: Assumptions

    @property
    def attempt_tokens(self) -> int:
        """The most that an attempt may have: `max_tokens`, or a fair share of the context, at most 1024."""
        if self.sample.max_tokens is not None:
            return self.sample.max_tokens
        context = self.sample.max_model_len or self.shape.context or 1 << 20
        room = (context - self._asked) // self.sample.attempts
        return max(1, min(1024, room))

    @property
    def longest(self) -> int:
        """Tokens of the longest trace: a long prompt, every attempt as long as it may be, and what is between them."""
        tokens = self._asked + self.sample.attempts * self.attempt_tokens
        limits = [limit for limit in (self.sample.max_model_len, self.shape.context) if limit is not None]
        return min([tokens, *limits])

    @property
    def attempts(self) -> int:
        """A: attempts of a trace."""
        return self.sample.attempts

    @property
    def rows_at_a_time(self) -> int:
        """Traces that are sampled at the same time, at most."""
        return min(self.traces, VLLM_MOST if self.vllm else self.sample.batch_size)

    @property
    def scores_again(self) -> bool:
        """Whether the policy scores the traces once more before its gradient: its sampler computes otherwise."""
        return self.vllm or self.card.is_gpu

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.train.gradient_checkpointing

    @property
    def _asked(self) -> int:
        given = self.assumptions
        return given.prompt_tokens * 3 // 2 + (self.sample.attempts - 1) * given.bridge_tokens

    @property
    def rows(self) -> int:
        """Longest traces of a micro-batch; one that is longer than the budget is by itself."""
        return max(1, min(self.traces, self.train.micro_batch_tokens // self.longest))

    @property
    def scoring_rows(self) -> int:
        """Longest traces of a pass without gradient."""
        return max(1, min(self.traces, self.train.scoring_tokens // self.longest))

    def scored(self, rows: int) -> int:
        """Tokens of so many traces that were sampled, at most."""
        return rows * self.sample.attempts * self.attempt_tokens

    @property
    def full_kl(self) -> bool:
        """Whether KL is taken over the vocabulary, with the reference's logits beside the policy's."""
        return self.train.kl == "full"

    @property
    def adapter(self) -> Adapter | None:
        """What is trained in place of all weights."""
        train = self.train
        return _adapter(self.shape, train.lora_rank, train.lora_targets, train.lora_layers) if train.lora_rank else None

    @property
    def trained(self) -> int:
        """M: parameters with a gradient and moments."""
        return self.shape.parameters if self.adapter is None else self.adapter.parameters

    @property
    def traces(self) -> int:
        """Traces of an update."""
        return (self.sample.problems_per_iteration or self.assumptions.eval_problems) * self.sample.samples


@cache
def _passes(shape: Shape, length: int, train: OptimizerConfig, bfloat16: bool) -> Passes:
    return measure_passes(shape, length, train, bfloat16=bfloat16)


@cache
def _adapter(shape: Shape, rank: int, targets: str, layers: int) -> Adapter:
    return adapter_size(shape, rank=rank, targets=targets, layers=layers)


def terms(job: Job) -> list[Term]:
    """Every term of the memory that the trainer's process takes."""
    return [*_held(job), *_sampling(job), *_momentary(job)]


def _held(job: Job) -> list[Term]:
    """What is there from the first update to the last."""
    n, m = job.shape.parameters, job.trained
    if job.adapter is None:
        weights = [
            Term("policy's weights", 4 * n, "4 N: float32"),
            Term("reference", 4 * n, "4 N: float32"),
        ]
    else:
        halved = job.shape.linear_weights * job.card.is_gpu
        how = f"4 N, but 2 of {halved / 1e9:.3g} billion in linear layers" if halved else "4 N: float32"
        weights = [
            Term("policy's and reference's weights", 4 * n - 2 * halved, how),
            Term("adapter", 4 * m, "4 M: float32"),
        ]
    return [
        *weights,
        Term("Adam's moments", moment_bytes(job), f"{moment_bytes(job) / m:.3g} M: two, {job.train.optimizer}"),
        Term("gradients", 4 * m, "4 M: float32", (GRADIENT, STEP)),
    ]


def _sampling(job: Job) -> list[Term]:
    """What the transformers engine adds while it samples; vLLM has its own share of the card."""
    if job.vllm:
        return []
    shape, size = job.shape, 2 if job.card.is_gpu else 4
    rows = job.rows_at_a_time + 1
    # The cache grows by doubling.
    columns = 1 << (job.longest - 1).bit_length()
    found = [
        Term(
            "keys and values",
            rows * columns * shape.layers * shape.cache_width * size,
            f"{rows} rows x {columns} columns x L x {shape.cache_width} numbers of {size} bytes",
            (SAMPLING,),
        ),
        Term(
            "logits of a step",
            rows * shape.vocabulary * (4 * 3 + 8 * 2),
            "rows x V x 28: logits, logprobs and probabilities",
            (SAMPLING,),
        ),
    ]
    if job.card.is_gpu:
        # Of an adapter's base all but the head is in bfloat16 as it is.
        head = shape.vocabulary * shape.width
        cast, how = (shape.parameters, "2 N") if job.adapter is None else (head + job.trained, "2 (V d + M)")
        found.append(Term("bfloat16 copy of the weights", 2 * cast, how, (SAMPLING,)))
    return found


def _momentary(job: Job) -> list[Term]:
    """What comes and goes within an update."""
    shape, gpu = job.shape, job.card.is_gpu
    passes = _passes(shape, job.longest, _pass_settings(job), gpu)
    kept, backward = (line.at(shape.layers, job.rows) for line in (passes.kept, passes.backward))
    # The gradient of the embeddings before it is added to the head's.
    embeddings = 4.0 * shape.vocabulary * shape.width * (job.adapter is None)
    copies = 2.0 * shape.vocabulary * shape.width * gpu
    scored, again = job.scored(job.rows), job.scored(job.scoring_rows)
    head = copies * (1 + job.full_kl) + chunk_bytes(job, scored) * (1 + gpu) * (1 + job.full_kl)
    head += 8.0 * scored * shape.width
    layers = "each layer's input" if job.checkpointing else "all layers"
    beyond = max(0.0, max(backward, embeddings) - kept - head)
    scoring = passes.forward.at(shape.layers, job.scoring_rows) + copies + chunk_bytes(job, again) * (1 + gpu)
    return [
        Term("activations", kept, f"{job.rows} traces of {job.longest} tokens, {layers}", (GRADIENT,)),
        Term("head, chunk by chunk", head, "logits of a chunk, and 8 d a scored token", (GRADIENT,)),
        Term("backward pass beyond these", beyond, "a layer's working memory, or 4 V d", (GRADIENT,)),
        Term("pass without gradient", scoring, f"{job.scoring_rows} traces, a layer, a chunk's logits", (REFERENCE,)),
        _optimizer_term(job),
    ]


def _pass_settings(job: Job) -> OptimizerConfig:
    """What of a stage's settings changes its passes."""
    train = job.train
    return OptimizerConfig(
        gradient_checkpointing=train.gradient_checkpointing, lora_rank=train.lora_rank, lora_targets=train.lora_targets
    )


def chunk_bytes(job: Job, scored: int) -> float:
    """Logits that the head holds at a time: 4 x CHUNK_ELEMENTS, or 4 V a scored token where those are fewer."""
    most = CHUNK_ELEMENTS["cuda" if job.card.is_gpu else "cpu"]
    return 4.0 * min(most, scored * job.shape.vocabulary)


def moment_bytes(job: Job) -> float:
    """Adam's two moments: 8 M; of 8 bits, a byte a number and four for the scale of a block of 256: 2.03 M."""
    return (2 * (1 + 4 / 256) if job.train.optimizer == "adam8bit" else 8.0) * job.trained


def _optimizer_term(job: Job) -> Term:
    """Adam's temporaries: two tensors of one parameter on the CPU; the fused kernel of a GPU has none."""
    size = 0 if job.card.is_gpu else 8
    largest = job.shape.largest if job.adapter is None else job.adapter.largest
    return Term("optimiser's temporaries", float(size * largest), f"{size} x the largest parameter", (STEP,))


class Peak(NamedTuple):
    """The phase that holds most, and the bytes that it holds."""

    phase: str
    bytes: float


def phase_bytes(job: Job) -> dict[str, float]:
    """What each phase holds: the sum of its terms, with the allocator's slack and CUDA's context on a GPU."""
    found = dict.fromkeys(PHASES, 0.0)
    for term in terms(job):
        for phase in term.phases:
            found[phase] += term.bytes * (1 + SLACK * (job.card.is_gpu and term.phases != PHASES))
    return {phase: held + CONTEXT * job.card.is_gpu for phase, held in found.items()}


def peak(job: Job) -> Peak:
    """The hungriest phase of the trainer's process."""
    return Peak(*max(phase_bytes(job).items(), key=lambda item: item[1]))


def budget(job: Job) -> float:
    """What of the card is the trainer's: all that vLLM does not take."""
    return job.card.memory * (1 - job.sample.gpu_memory_utilization * job.vllm)


class VllmShare(NamedTuple):
    """What vLLM does with its share: bytes of each part, and how many of the longest traces its cache has room for."""

    weights: float
    working: float
    cache: float
    traces: float


def vllm_share(job: Job) -> VllmShare:
    """Weights, 2 N; working memory; and what is left of its share as keys and values, 2 bytes a number.

    Working memory is CUDA's context and graphs, `VLLM_FIXED`, and three float32 tensors of V for each trace under way.
    """
    shape = job.shape
    weights = 2.0 * shape.parameters
    working = VLLM_FIXED + 12.0 * shape.vocabulary * job.rows_at_a_time
    cache = job.card.memory * job.sample.gpu_memory_utilization - weights - working
    trace = 2.0 * shape.layers * shape.cache_width * job.longest
    return VllmShare(weights, working, cache, cache / trace)


def vllm_needs(job: Job) -> float:
    """The least that vLLM is to have: room for `VLLM_TRACES` of the longest traces at a time."""
    share = vllm_share(job)
    return share.weights + share.working + VLLM_TRACES * share.cache / share.traces
