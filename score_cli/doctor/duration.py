"""How long an update and a whole recipe take, and what they write: arithmetic over a card's rates.

W numbers in the layers' matrices, V vocabulary, d width, L layers, A attempts; p tokens of a prompt, a of an attempt,
b between attempts, t of a whole trace; K traces a problem, n traces in all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from score_cli.config import SftConfig, Stage1Config, Stage2Config
from score_cli.doctor.memory import Job, moment_bytes
from score_cli.phases import SFT, START, Phase, plan_phases
from score_cli.run_config import RunConfig


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


class Hours(NamedTuple):
    """Of a whole recipe."""

    updates: float
    evaluation: float
    supervised: float


class Supervised(NamedTuple):
    """What supervised rounds learn from: the dialogues of a start, and how often a round goes through its examples."""

    dialogues: int
    epochs: int


NO_ROUNDS = Supervised(dialogues=0, epochs=0)


def planned(job: Job, run: RunConfig) -> list[Phase]:
    """The phases of a run; of each stage's settings nothing matters here."""
    return plan_phases(run, stage1=Stage1Config(), stage2=Stage2Config(), sft=SftConfig(), attempts=job.attempts)


def learned_from_rewards(phases: Sequence[Phase]) -> list[Phase]:
    """Those of them that are Stage I or Stage II."""
    return [phase for phase in phases if phase.stage != SFT]


def of_phase(job: Job, phase: Phase) -> Job:
    """The job with the attempts that a phase's traces have."""
    if phase.attempts == job.attempts:
        return job
    return replace(job, sample=replace(job.sample, attempts=phase.attempts))


def recipe_hours(job: Job, run: RunConfig, supervised: Supervised = NO_ROUNDS) -> Hours:
    """Hours of all updates, of the evaluation of the base and of each phase's policy, and of supervised rounds."""
    phases = planned(job, run)
    seconds = sum(
        (phase.last - phase.first) * sum(part.seconds for part in iteration(of_phase(job, phase)))
        for phase in learned_from_rewards(phases)
    )
    problems, samples = job.assumptions.eval_problems, job.evaluate.samples
    lengths = mean_lengths(job)._replace(attempts=job.evaluate.attempts)
    once = sampling_seconds(job, lengths, problems * (samples + 1), samples + 1)
    rounds = sum(
        (phase.last - phase.first) * supervised_seconds(of_phase(job, phase), run, phase, supervised)
        for phase in phases
        if phase.stage == SFT
    )
    return Hours(seconds / 3600, (1 + len(phases)) * once / 3600, rounds / 3600)


def supervised_seconds(job: Job, run: RunConfig, phase: Phase, supervised: Supervised) -> float:
    """Of one supervised round: three passes an example and epoch for the gradient, and one before and after.

    A start has its dialogues. Other rounds sample their traces and grade them, and learn from as many at most.
    """
    given, lengths = job.assumptions, mean_lengths(job)
    examples, collected = supervised.dialogues, 0.0
    if phase.name != START:
        examples = (run.sft_problems or given.eval_problems) * job.sample.samples
        collected = sampling_seconds(job, lengths, examples, job.sample.samples)
        collected += given.verify_seconds * examples * lengths.attempts / (job.workers or given.cores)
    scored = lengths.attempts * lengths.attempt
    recomputed = forward_operations(job, lengths.trace, 0) * supervised.epochs if job.checkpointing else 0.0
    operations = (3 * supervised.epochs + 2) * forward_operations(job, lengths.trace, scored) + recomputed
    return collected + operations * examples / (given.mfu * job.card.rate)


def disk_bytes(job: Job, run: RunConfig) -> list[tuple[str, float]]:
    """Of checkpoints, weights and moments of what is trained, and of traces.

    There is one after each phase, the newest, the best where it is kept, and one that is being written. The end of a
    supervised phase has no moments. The base of a run lies there before the run is predicted, or elsewhere.
    """
    phases = planned(job, run)
    learned = learned_from_rewards(phases)
    updates = sum(phase.last - phase.first for phase in learned)
    moving = run.keep_checkpoints + 1 + (run.best_every is not None)
    weights, moments = len(phases) + moving, len(learned) + moving
    tokens = sum(
        (phase.last - phase.first) * mean_lengths(of_phase(job, phase)).trace * job.traces for phase in learned
    )
    return [
        (f"checkpoints, {weights} at most", 4.0 * job.trained * weights + moment_bytes(job) * moments),
        (f"traces of {updates:,} updates", tokens * job.assumptions.trace_bytes),
    ]
