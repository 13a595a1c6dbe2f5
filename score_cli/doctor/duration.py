"""How long an update and a whole recipe take, and what they write: arithmetic over a card's rates.

W numbers in the layers' matrices, V vocabulary, d width, L layers, A attempts; p tokens of a prompt, a of an attempt,
b between attempts, t of a whole trace; K traces a problem, n traces in all.
"""

from typing import NamedTuple

from score_cli.config import RunConfig
from score_cli.doctor.memory import Job, moment_bytes


class Part(NamedTuple):
    """A part of an update: its seconds, and the formula in words."""

    name: str
    seconds: float
    formula: str


class Lengths(NamedTuple):
    """Mean tokens of a trace's parts."""

    prompt: int
    bridge: int
    attempt: float
    attempts: int

    @property
    def trace(self) -> float:
        """t = p + A a + (A - 1) b."""
        return self.prompt + self.attempts * self.attempt + (self.attempts - 1) * self.bridge


def mean_lengths(job: Job) -> Lengths:
    """What a trace is expected to be like."""
    given = job.assumptions
    return Lengths(given.prompt_tokens, given.bridge_tokens, given.attempt_share * job.attempt_tokens, job.attempts)


def iteration(job: Job) -> list[Part]:
    """The seconds of an update, part by part."""
    given = job.assumptions
    lengths = mean_lengths(job)
    sampled = sampling_seconds(job, lengths, job.traces, job.sample.samples)
    workers = job.workers or given.cores
    attempts = job.traces * lengths.attempts
    operations = training_operations(job, lengths) * job.traces
    return [
        Part(
            "sample", sampled, f"{job.rows_at_a_time} at a time, {lengths.attempts * job.attempt_tokens} steps or more"
        ),
        Part("verify", given.verify_seconds * attempts / workers, f"A n attempts over {workers} processes"),
        Part("train", operations / (given.mfu * job.card.rate), f"{operations:.3g} operations"),
        Part("refresh", refresh_seconds(job), "digests of the weights, and vLLM's copy of them"),
    ]


def forward_operations(job: Job, tokens: float, scored: float) -> float:
    """Of a pass over one trace: 2 W t in the layers, 2 L x attention's width x t^2, and 2 V d a token scored.

    A token attends to half of the trace on average, with two products.
    """
    shape = job.shape
    attention = 2 * shape.layers * shape.attention_width * tokens**2
    return 2 * shape.layer_weights * tokens + attention + 2 * shape.vocabulary * shape.width * scored


def training_operations(job: Job, lengths: Lengths) -> float:
    """Of an update, a trace: passes x a forward pass.

    The reference's pass is one, the policy's gradient three. Where the sampler computes otherwise than the trainer, as
    vLLM and every sampler on a GPU do, the policy scores the trace once more. With gradient checkpointing the layers'
    forward pass is done twice. Weights beneath an adapter have no gradient, which is one of the policy's three.
    """
    scored = lengths.attempts * lengths.attempt
    passes = 4 + job.scores_again - (job.adapter is not None)
    recomputed = forward_operations(job, lengths.trace, 0) if job.checkpointing else 0.0
    return passes * forward_operations(job, lengths.trace, scored) + recomputed


def sampling_seconds(job: Job, lengths: Lengths, traces: int, samples: int) -> float:
    """Of `traces` traces, `samples` a problem: reading what is given, and writing token after token.

    A prompt is read once for its K samples. Decoding takes a step for a token of every row under way, and no fewer
    than the longest trace has. A step reads the weights (2 bytes a number on a GPU) once and each row's own keys and
    values, or does its operations, whichever takes longer.
    """
    shape, card, given = job.shape, job.card, job.assumptions
    size = 2 if card.is_gpu else 4
    rows = min(traces, job.rows_at_a_time)
    written = lengths.attempts * lengths.attempt * traces
    read = lengths.prompt * traces / samples + (lengths.attempts - 1) * lengths.bridge * traces
    rate = given.mfu * card.rate
    reading = forward_operations(job, 1, 0) * read / rate
    weights = size * (shape.layer_weights + shape.vocabulary * shape.width)
    context = size * shape.layers * shape.cache_width * lengths.trace / 2
    steps = max(written / rows, lengths.attempts * job.attempt_tokens)
    reads = (steps * weights + written * context) / (given.decode_share * card.bandwidth)
    return reading + steps * given.step_seconds + max(reads, forward_operations(job, 1, 1) * written / rate)


def refresh_seconds(job: Job) -> float:
    """Of the digest of what is trained (4 bytes a number), and, with vLLM, of 2 N bytes hashed and copied twice."""
    given, n = job.assumptions, job.shape.parameters
    digest = 4 * job.trained / given.hash_rate
    return digest + (2 * n * (1 / given.hash_rate + 2 / given.copy_rate) if job.vllm else 0.0)


def recipe_hours(job: Job, run: RunConfig) -> tuple[float, float]:
    """Hours of all updates, and of the evaluation of the base and of each stage's policy, sampled and greedy."""
    updates = run.stage1_iterations + run.stage2_iterations
    seconds = sum(part.seconds for part in iteration(job))
    policies = 1 + (run.stage1_iterations > 0) + (run.stage2_iterations > 0)
    problems, samples = job.assumptions.eval_problems, job.evaluate.samples
    lengths = mean_lengths(job)._replace(attempts=job.evaluate.attempts)
    once = sampling_seconds(job, lengths, problems * (samples + 1), samples + 1)
    return updates * seconds / 3600, policies * once / 3600


def disk_bytes(job: Job, run: RunConfig) -> list[tuple[str, float]]:
    """Of checkpoints, weights and moments of what is trained, and of traces.

    There is one after each stage, the newest, the best where it is kept, and one that is being written.
    """
    updates = run.stage1_iterations + run.stage2_iterations
    kept = (run.stage1_iterations > 0) + (run.stage2_iterations > 0) + run.keep_checkpoints + 1
    kept += run.best_every is not None
    tokens = mean_lengths(job).trace * job.traces * updates
    return [
        (f"checkpoints, {kept} at most", (4.0 * job.trained + moment_bytes(job)) * kept),
        (f"traces of {updates} updates", tokens * job.assumptions.trace_bytes),
    ]
